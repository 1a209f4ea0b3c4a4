"""Job + data + cluster → RunPlan: what would run, on what, how often. Nothing starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysft.errors import DataError, ResourceError
from raysft.job.batches import batch_sizes, fewest_rows
from raysft.job.rungs import plan_stages
from raysft.job.scheduler import Scheduler
from raysft.job.space import count_trials
from raysft.job.spec import Job, Resources


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
    """How the data was read, for a person: what was taken for what, what was left out."""


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Slot:
    """One Ray Train worker group: `teams` times `workers` worker processes.

    With a `least` it has one team, of `least` to `workers`, as many as there is room for.
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
    """(trials, epochs that each of them trains), in this order, if none fails or ends early."""
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
        total = 0
        for trials, epochs in self.stages:
            rounds = math.ceil(trials / self.teams)  # in the last one some teams may have no trial
            total += rounds * epochs
        return total


def make_plan(job: Job, outline: Outline, nodes: Sequence[Node]) -> RunPlan:
    """The plan of `job` on `nodes`; raises ResourceError or DataError where it cannot be done."""
    val, train = _split_rows(job, outline)
    _check_classes(job, outline, val, train)
    trials = count_trials(job)
    slots = make_slots(job.resources, nodes, trials)
    _check_batches(job, outline, train)
    sizes = batch_sizes(train, job.train.batch_size, job.resources.most_workers)
    scheduler = job.search.scheduler if job.search else Scheduler(name="none")
    teams = sum(slot.teams for slot in slots)
    return RunPlan(
        train_rows=train,
        val_rows=val,
        test_rows=outline.test_rows,
        classes=len(outline.classes),
        trials=trials,
        stages=plan_stages(scheduler, trials, job.train.epochs, teams),
        slots=slots,
        steps_per_epoch=len(sizes),
        # An elastic trial may come down to its fewest workers, whose shares are the largest.
        batch_per_worker=math.ceil(max(sizes) / job.resources.least_workers),
    )


def _split_rows(job: Job, outline: Outline) -> tuple[int, int]:
    """Rows of validation and train, as `raysft.data` will split them."""
    rows = outline.train_rows
    if job.data.limit is not None:
        rows = min(job.data.limit, rows)
    if outline.val_rows is not None:
        return outline.val_rows, rows
    val = max(1, round(rows * job.data.val_fraction))
    return val, rows - val


def _check_classes(job: Job, outline: Outline, val: int, train: int) -> None:
    classes = len(outline.classes)
    if classes < 2:
        raise DataError(
            outline.where, f"has a single class ({', '.join(outline.classes)})", "give at least two"
        )
    # A validation split of its own need not have every class; one that is taken from train has.
    held_out = val if outline.val_rows is None else classes
    if train + held_out < 2 * classes or train < classes:
        raise DataError(
            outline.where,
            f"{train} training and {val} validation images for {classes} classes",
            "give at least one for training and one for validation in each class",
        )
    # Among five classes every answer is one of the best five.
    if job.search is not None and "top5" in job.search.metric and classes <= 5:
        raise DataError(
            outline.where,
            f"has {classes} classes, too few for search.metric {job.search.metric}",
            "choose another metric",
        )


def _check_batches(job: Job, outline: Outline, train: int) -> None:
    """Refuse a batch size that any trial may have, and that leaves a worker without an image."""
    workers = job.resources.most_workers
    for size in job.batch_sizes():
        if fewest_rows(train, size, workers) < 1:
            smallest = min(batch_sizes(train, size, workers))
            raise DataError(
                outline.where,
                f"a batch of {smallest} images for {workers} workers",
                "lower resources.workers or raise train.batch_size",
            )


def make_slots(resources: Resources, nodes: Sequence[Node], trials: int) -> tuple[Slot, ...]:
    """Worker groups that fit on `nodes` together, with no more teams than there are trials.

    A team that fits on one node gets a slot there, shared with the other teams of that node: one
    failure domain a node. A team larger than every node makes one slot over all nodes. Elastic
    teams have a slot each, as many as there is room for at their full size, and at least one.
    Raises ResourceError when not one team fits.
    """
    most = resources.most_workers
    fitting = [_workers_that_fit(resources, node) for node in nodes]
    if sum(fitting) < resources.least_workers:
        raise ResourceError(
            "resources.workers", _shortage(resources, nodes), "lower it, or use a larger cluster"
        )
    if resources.elastic:
        # At least one, which waits for its full size while it trains with what there is.
        count = max(1, min(trials, sum(fitting) // most))
        return (Slot(1, most, resources.least_workers),) * count
    teams_on_node = [workers // most for workers in fitting]
    if not any(teams_on_node):
        return (Slot(min(sum(fitting) // most, trials), most),)
    slots: list[Slot] = []
    left = trials
    # The largest nodes first: fewer slots, and so fewer processes that start, for the same teams.
    for teams in sorted(teams_on_node, reverse=True):
        teams = min(teams, left)
        if teams:
            slots.append(Slot(teams, most))
            left -= teams
    return tuple(slots)


def _workers_that_fit(resources: Resources, node: Node) -> int:
    by_cpu = int(node.cpus // resources.cpus_per_worker)
    share = resources.gpus_per_worker
    if not share:
        return by_cpu
    # Shares are of one GPU each: two of 0.6 need two. 1 / 0.1 is a little less than 10 in floats.
    workers_a_gpu = int(1 / share + 1e-9)
    return min(by_cpu, int(node.gpus) * workers_a_gpu)


def _shortage(resources: Resources, nodes: Sequence[Node]) -> str:
    workers = resources.least_workers
    cpus = sum(node.cpus for node in nodes)
    gpus = sum(node.gpus for node in nodes)
    need_cpus = workers * resources.cpus_per_worker
    need_gpus = workers * resources.gpus_per_worker
    short = []
    if need_cpus > cpus:
        short.append(_count_text(need_cpus, "CPU"))
    if need_gpus > gpus:
        short.append(_count_text(need_gpus, "GPU"))
    # Enough in total, but no worker fits on the rest of any one node.
    if not short:
        short = [f"{need_cpus:g} CPUs and {need_gpus:g} GPUs on nodes of that size"]
    return (
        f"a trial of {workers} workers needs {' and '.join(short)}, "
        f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs"
    )


def _count_text(count: float, unit: str) -> str:
    return f"{count:g} {unit}" if count == 1 else f"{count:g} {unit}s"
