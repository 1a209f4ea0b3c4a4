"""Job + data + cluster → RunPlan: what would run, on what, how often. Arithmetic only; nothing
starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysft.errors import DataError, ResourceError
from raysft.job.batches import batch_sizes, fewest_rows
from raysft.job.rungs import plan_stages
from raysft.job.space import count_trials
from raysft.job.spec import Job, Resources, Scheduler


@dataclass(frozen=True)
class Outline:
    """What is known of a data set before it is read."""

    classes: tuple[str, ...]
    train_rows: int
    test_rows: int
    where: str
    val_rows: int | None = None
    """Of a validation split of its own; None: it is taken from train."""
    notes: tuple[str, ...] = ()
    """What a person has to know of how the data was read: what was taken for what, what was left
    out.
    """


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Slot:
    """One Ray Train worker group: `teams` times `workers` worker processes.

    Where there is a `least`, it has one team, of `least` to `workers`, as many as there is room
    for.
    """

    teams: int
    workers: int
    least: int | None = None


@dataclass(frozen=True)
class RunPlan:
    """Everything that follows from a job before it runs."""

    train_rows: int
    val_rows: int
    test_rows: int
    classes: int
    trials: int
    stages: tuple[tuple[int, int], ...]
    """(trials, epochs that each of them trains), one after the other; some may fail, or end early
    in other ways.
    """
    slots: tuple[Slot, ...]
    steps_per_epoch: int
    batch_per_worker: int

    @property
    def teams(self) -> int:
        """Trials that train at the same time."""
        return sum(slot.teams for slot in self.slots)

    @property
    def total_epochs(self) -> int:
        """Of all trials together."""
        return sum(trials * each for trials, each in self.stages)

    @property
    def epochs_in_sequence(self) -> int:
        """Epochs that are trained one after the other."""
        return sum(math.ceil(trials / self.teams) * each for trials, each in self.stages)


def make_plan(job: Job, outline: Outline, nodes: Sequence[Node]) -> RunPlan:
    """The plan of `job` on `nodes`; raises ResourceError or DataError where it cannot be done."""
    limit = min(job.data.limit or outline.train_rows, outline.train_rows)
    val, train = _val_and_train(limit, job.data.val_fraction, outline.val_rows)
    classes = len(outline.classes)
    if classes < 2:
        raise DataError(
            outline.where, f"has a single class ({', '.join(outline.classes)})", "give at least two"
        )
    held_out = (
        val if outline.val_rows is None else classes
    )  # a split of its own need not have every class
    if train + held_out < 2 * classes or train < classes:
        raise DataError(
            outline.where,
            f"{train} training and {val} validation images for {classes} classes",
            "give at least one for training and one for validation in each class",
        )
    if job.search is not None and "top5" in job.search.metric and classes <= 5:
        raise DataError(
            outline.where,
            f"has {classes} classes, too few for search.metric {job.search.metric}",
            "choose another metric",
        )
    trials = count_trials(job)
    slots = make_slots(job.resources, nodes, trials)
    for size in job.batch_sizes():
        workers = job.resources.most_workers
        if fewest_rows(train, size, workers) < 1:
            smallest = min(batch_sizes(train, size, workers))
            raise DataError(
                outline.where,
                f"a batch of {smallest} images for {workers} workers",
                "lower resources.workers or raise train.batch_size",
            )
    sizes = batch_sizes(train, job.train.batch_size, job.resources.most_workers)
    scheduler = job.search.scheduler if job.search else Scheduler(name="none")
    stages = plan_stages(scheduler, trials, job.train.epochs, sum(slot.teams for slot in slots))
    return RunPlan(
        train,
        val,
        outline.test_rows,
        classes,
        trials,
        stages,
        slots,
        len(sizes),
        math.ceil(max(sizes) / job.resources.least_workers),
    )


def _val_and_train(limit: int, val_fraction: float, val_rows: int | None) -> tuple[int, int]:
    """Rows of validation and train: a split of its own, or a fraction of the `limit` training
    rows.
    """
    if val_rows is not None:
        return val_rows, limit
    val = max(1, round(limit * val_fraction))
    return val, limit - val


def make_slots(resources: Resources, nodes: Sequence[Node], trials: int) -> tuple[Slot, ...]:
    """Worker groups that fit on `nodes` together, with no more teams than there are trials.

    A team that fits on one node gets a slot there, shared with the other teams of that node: one
    failure domain a node. A team larger than every node makes one slot over all nodes. Elastic
    teams have a slot each, as many as there is room for at their full size, and at least one.
    Raises ResourceError when not one team fits.
    """
    on_node, most = [_fitting(resources, node) for node in nodes], resources.most_workers
    if sum(on_node) < resources.least_workers:
        raise ResourceError(
            "resources.workers", _shortage(resources, nodes), "lower it, or use a larger cluster"
        )
    if resources.elastic:
        return (Slot(1, most, resources.least_workers),) * max(1, min(trials, sum(on_node) // most))
    teams_on_node = [n // most for n in on_node]
    if not any(teams_on_node):
        return (Slot(min(sum(on_node) // most, trials), most),)
    slots: list[Slot] = []
    for teams in sorted(filter(None, teams_on_node), reverse=True):
        teams = min(teams, trials - sum(s.teams for s in slots))
        if teams:
            slots.append(Slot(teams, most))
    return tuple(slots)


def _fitting(resources: Resources, node: Node) -> int:
    by_cpu = int(node.cpus // resources.cpus_per_worker)
    if not resources.gpus_per_worker:
        return by_cpu
    share = resources.gpus_per_worker
    return min(by_cpu, int(node.gpus) * int(1 / share + 1e-9))


def _shortage(resources: Resources, nodes: Sequence[Node]) -> str:
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    need_cpus = resources.least_workers * resources.cpus_per_worker
    need_gpus = resources.least_workers * resources.gpus_per_worker
    needs = (("CPU", need_cpus, cpus), ("GPU", need_gpus, gpus))
    short = [f"{need:g} {kind}{'s' * (need != 1)}" for kind, need, have in needs if need > have]
    asked = (
        " and ".join(short) or f"{need_cpus:g} CPUs and {need_gpus:g} GPUs on nodes of that size"
    )
    return (
        f"a trial of {resources.least_workers} workers needs {asked}, "
        f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs"
    )
