"""Slots: Ray Train worker groups that live as long as the run, each with teams that train trial
after trial.

The worker groups are plain data-parallel ones, see `slot_trainer`: every team makes a process group
of its own.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from typing import TypedDict

import ray
from ray import train
from ray.actor import ActorHandle
from ray.train.collective import broadcast_from_rank_zero

from raysft.errors import describe_error
from raysft.gc_pause import gc_paused
from raysft.job.plan import Slot
from raysft.job.spec import Resources
from raysft.ray_shortcuts import Trainer, slot_trainer
from raysft.train.queue.client import QueueClient
from raysft.train.run_feed import PublishedRun, RunFeed, WorkerRun
from raysft.train.setup import WorkerPlace

# Ray Train waits without end by default where something is wrong; these are its limits, in seconds.
LIMITS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
}
# An elastic slot soon tries again with what is there: Ray may not know yet that the node it has
# counted on is gone.
ELASTIC_LIMITS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
_GIVEN = frozenset(LIMITS) & os.environ.keys()  # a person's own


def own_start_seconds() -> float:
    """How long a person lets Ray Train wait for the workers of a slot; 0 where none has said."""
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    try:
        return float(os.environ[name]) if name in _GIVEN else 0.0
    except ValueError:
        return 0.0  # Ray Train itself says that it is no number


class SlotWork(TypedDict, total=False):
    """What the processes of a slot are given: one run, or a feed of runs."""

    run: WorkerRun
    feed: ActorHandle[RunFeed]
    slot: int


# How often an elastic slot that has fewer workers than it might asks for more. To grow costs what a
# failure costs: the start of the workers, and the time since the last checkpoint.
GROW_SECONDS = 60.0


class SlotThread(threading.Thread):
    """A thread that holds one Ray Train run; `error` says why it ended, if it should not have."""

    def __init__(
        self,
        number: int,
        slot: Slot,
        resources: Resources,
        storage: str,
        restarts: int,
        config: SlotWork,
    ) -> None:
        super().__init__(name=f"slot-{number}", daemon=True)
        self.number, self.slot, self.resources, self.storage = number, slot, resources, storage
        self.restarts, self.config = restarts, config
        # looked for here and not in the thread, so that the run can say what is missing
        self._make_trainer = slot_trainer()
        self.error: BaseException | None = None
        self.started: float | None = None
        """When it was begun, by the clock that never jumps; None before."""

    def run(self) -> None:
        """Train until the queue has no more; what ended it otherwise is kept in `error`."""
        self.started = time.monotonic()
        try:
            self._trainer().fit()
        except BaseException as error:
            self.error = error

    def _trainer(self) -> Trainer:
        limits = LIMITS | (ELASTIC_LIMITS if self.slot.least else {})
        os.environ.update({name: seconds for name, seconds in limits.items() if name not in _GIVEN})
        each = {"CPU": float(self.resources.cpus_per_worker)}
        if self.resources.gpus_per_worker:
            each["GPU"] = self.resources.gpus_per_worker
        slot = self.slot
        workers: int | tuple[int, int] = slot.teams * slot.workers
        if slot.least:
            workers = (
                slot.least,
                slot.workers,
            )  # Ray Train starts as many of them as there is room for
        # The class of Ray Train's second version, where type checkers see that of the first.
        scaling = train.ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]
            resources_per_worker=each,
            use_gpu=bool(self.resources.gpus_per_worker),
            elastic_resize_monitor_interval_s=GROW_SECONDS,  # type: ignore[call-arg]
        )
        # A node that dies just when workers start on it is no reason to give an elastic slot up.
        starts = self.restarts if slot.least else 0
        failures = train.FailureConfig(max_failures=self.restarts, controller_failure_limit=starts)  # type: ignore[call-arg]
        run = train.RunConfig(
            name=f"slot-{self.number}", storage_path=self.storage, failure_config=failures
        )
        config: SlotWork = {**self.config, "slot": self.number}
        return self._make_trainer(
            _enter, train_loop_config=config, scaling_config=scaling, run_config=run
        )


def _enter(config: SlotWork) -> None:
    """What Ray Train runs in each process of a slot: one run, or those of a pool one by one."""
    slot = config["slot"]
    feed = config.get("feed")
    if feed is None:
        _take_part(config["run"], slot, None)
        return
    # All processes that start together agree on it before any run, which might end in between.
    incarnation = broadcast_from_rank_zero(time.time_ns())
    rank = train.get_context().get_world_rank()
    this_worker = ray.get_runtime_context().current_actor
    number = 0
    while True:
        answer: ray.ObjectRef[PublishedRun | None] = feed.next_run.remote(
            slot, rank, number, this_worker
        )
        given = ray.get(answer)
        if given is None:
            return
        number = given.number
        _take_part_cleanly(given.run, slot, incarnation)


def _take_part_cleanly(run: WorkerRun, slot: int, incarnation: int) -> None:
    with gc_paused():
        from raysft.train.clean_process import clean_process  # imports torch, as does every run

    with clean_process(run.setup.import_from):
        _take_part(run, slot, incarnation)


def _take_part(run: WorkerRun, slot: int, incarnation: int | None) -> None:
    queue, context = run.queue, train.get_context()
    if not queue.register_worker(slot, context.get_world_rank()):
        return  # the run goes on without this slot, and Ray Train has started it once more
    try:
        with gc_paused():
            from raysft.train.worker import run_worker  # torch is imported here, in the worker
    except Exception as error:  # whatever a library raises that is broken here
        _report_unable(queue, slot, error)
        raise
    if incarnation is None:  # the same for all that start together, and ever growing
        incarnation = broadcast_from_rank_zero(time.time_ns())
    place = WorkerPlace(slot, context.get_world_rank(), context.get_world_size(), incarnation)
    try:
        run_worker(run.setup, place, queue, run.model, run.seed)
    except ImportError as error:  # of what is imported later, and not by a trial
        _report_unable(queue, slot, error)
        raise


def _report_unable(queue: QueueClient, slot: int, error: Exception) -> None:
    """Say why this process cannot work, which Ray Train alone would only try again, for as long as
    it is let.
    """
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{describe_error(error)}, in {place.filename}, line {place.lineno}"
    queue.report_unable(slot, ray.util.get_node_ip_address(), text)  # type: ignore[no-untyped-call]
