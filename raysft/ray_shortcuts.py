"""Uses of Ray beyond its public interface."""

from __future__ import annotations

from typing import Any


def start_coordinator() -> Any:
    """The actor that Ray Train's controllers register with, started before them; returns its
    handle.

    A controller would start it itself, and wait a second and a half for it before it starts
    workers. Ray has no public way to it, so this is to be looked at with every new series of Ray.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    return get_or_create_autoscaling_coordinator()


def recount_nodes(coordinator: Any) -> None:
    """Have the coordinator count the nodes now; by itself it does so every 20 seconds.

    Until then it lets an elastic slot start workers on a node that is dead, which fails after a
    minute. To be looked at with every new series of Ray, as `start_coordinator`.
    """
    coordinator.get_reserved_resources.remote("raysft", recompute=True)


def preemption_announced() -> bool:
    """In a worker: whether Ray Train has heard that a machine of this worker group will be taken
    away.

    Ray's public `get_preemption_info` waits until all workers of the group ask, and teams do not
    march in step; so this reads what it would hand out. To be looked at with every new series of
    Ray.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
