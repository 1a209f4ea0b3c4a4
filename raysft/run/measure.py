"""How long a job would take: a few steps of it are trained, the rest is arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysft.job import Job
from raysft.job.plan import Node, RunPlan
from raysft.job.spec import Tracking
from raysft.records.documents import EpochMetrics
from raysft.records.reading import read_trials
from raysft.records.run import Run
from raysft.run.driver import Workspace, execute
from raysft.run.listener import SilentListener
from raysft.run.slot_pool import SlotPool
from raysft.storage import StoragePath

STEPS = 8


@dataclass(frozen=True)
class Estimate:
    """What was measured of one team, and what follows for the whole job if no trial ends early."""

    images_per_s: float
    start_s: float
    epoch_s: float
    hours: float
    cost: float | None

    def line(self) -> str:
        """The estimate in words."""
        span = f"{self.hours:,.1f} hours"
        if self.hours < 1:
            minutes = 60 * self.hours
            span = f"{minutes:,.1f} minutes"
        line = (
            f"measured {self.images_per_s:,.0f} images/s a team: {self.epoch_s:,.1f} s an epoch, "
            f"at most {span}"
        )
        if self.cost is None:
            return line
        return f"{line}, {self.cost:.2f} at cluster.price_per_hour"


def measure(
    job: Job,
    plan: RunPlan,
    nodes: Sequence[Node],
    storage: StoragePath,
    workspace: Workspace,
    slots: SlotPool | None = None,
) -> Estimate:
    """Train `STEPS` steps of the job twice, in a run of its own which is removed again.

    With no more images than that takes, the validation share and all else as the job says. `slots`
    keeps the workers for the run that is measured here.
    """
    small = _shorten(job, plan, storage)
    run = Run.create(small, f".measure-{job.name}-{workspace.scratch.name}")
    try:
        results = execute(run, nodes, SilentListener(), workspace, wait_for_end=True, slots=slots)
        # The second epoch: in the first one, memory is allocated and kernels are chosen.
        last = read_trials(run.folder)[0]["history"][-1]
    finally:
        run.discard()
    val_rows = run.info["data"]["rows"]["val"]
    return _estimate(job, plan, last, val_rows, results["timing"]["startup_s"])


def _shorten(job: Job, plan: RunPlan, storage: StoragePath) -> Job:
    """The job with two short epochs and no search, logged nowhere."""
    # Each class needs images to train on and images to validate on.
    fewest = 4 * plan.classes
    rows = max(STEPS * job.train.batch_size / (1 - job.data.val_fraction), fewest)
    limit = min(math.ceil(rows), plan.train_rows + plan.val_rows)
    schedule = job.train.schedule.model_copy(update={"warmup_epochs": 0.0})
    train = {"epochs": 2, "head_epochs": 0, "patience": None, "schedule": schedule}
    changes = {
        "search": None,
        "storage": str(storage),
        "tracking": Tracking(tensorboard=False),
        "train": job.train.model_copy(update=train),
        "data": job.data.model_copy(update={"limit": limit}),
    }
    return job.model_copy(update=changes)


def _estimate(
    job: Job, plan: RunPlan, epoch: EpochMetrics, val_rows: int, start_s: float
) -> Estimate:
    """What an epoch on `val_rows` validation images says of the whole job."""
    images_per_s = epoch["images"] / epoch["train_seconds"]
    s_per_val_image = (epoch["seconds"] - epoch["train_seconds"]) / val_rows
    epoch_s = plan.train_rows / images_per_s + plan.val_rows * s_per_val_image
    repeats = job.search.confirm if job.search else 0
    # The repeats of the best trial follow the search, as many at a time as there are teams.
    repeat_epochs = math.ceil(repeats / plan.teams) * job.train.epochs
    seconds = start_s + (plan.epochs_in_sequence + repeat_epochs) * epoch_s
    hours = seconds / 3600
    price = job.cluster.price_per_hour
    cost = None if price is None else price * hours
    return Estimate(images_per_s, start_s, epoch_s, hours, cost)
