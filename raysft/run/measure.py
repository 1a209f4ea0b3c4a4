"""How long a job would take: a few steps of it are trained, the rest is arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysft.job import Job
from raysft.job.plan import Node, RunPlan
from raysft.job.spec import Tracking
from raysft.records.documents import ProgressDocument
from raysft.records.reading import read_trials
from raysft.records.run import Run
from raysft.run.driver import Workspace, execute
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
        cost = f", {self.cost:.2f} at cluster.price_per_hour" if self.cost is not None else ""
        return (
            f"measured {self.images_per_s:,.0f} images/s a team: {self.epoch_s:,.1f} s an epoch, "
            "at most "
            f"{_span(self.hours)}{cost}"
        )


class _Silent:
    """A listener for a run that nobody follows."""

    def note(self, text: str) -> None: ...
    def progress(self, what: str, done: int, total: int) -> None: ...
    def epochs(self, done: float, total: int, records: Sequence[Any]) -> None: ...
    def trial_ended(self, record: Any, ended: int, total: int) -> None: ...
    def status(self, document: ProgressDocument, records: Sequence[Any]) -> None: ...


def measure(
    job: Job,
    plan: RunPlan,
    nodes: Sequence[Node],
    storage: StoragePath,
    workspace: Workspace,
) -> Estimate:
    """Train `STEPS` steps of the job twice in a run of its own, which is removed again; the second
    time counts.

    With no more images than that takes, the validation share and all else as the job says.
    """
    classes = plan.classes
    rows = max(STEPS * job.train.batch_size / (1 - job.data.val_fraction), 4 * classes)
    small = job.model_copy(
        update={
            "search": None,
            "storage": str(storage),
            "tracking": Tracking(tensorboard=False),
            "train": job.train.model_copy(
                update={
                    "epochs": 2,
                    "head_epochs": 0,
                    "patience": None,
                    "schedule": job.train.schedule.model_copy(update={"warmup_epochs": 0.0}),
                }
            ),
            "data": job.data.model_copy(
                update={"limit": min(math.ceil(rows), plan.train_rows + plan.val_rows)}
            ),
        }
    )
    run = Run.create(small, f".measure-{job.name}-{workspace.scratch.name}")
    try:
        results = execute(run, nodes, _Silent(), workspace, wait_for_end=True)
        last = read_trials(run.folder)[0]["history"][-1]
    finally:
        run.discard()
    rate = last["images"] / last["train_seconds"]
    judged = (last["seconds"] - last["train_seconds"]) / run.info["data"]["rows"]["val"]
    repeats = job.search.confirm if job.search else 0
    epoch_s = plan.train_rows / rate + plan.val_rows * judged
    turns = plan.epochs_in_sequence + math.ceil(repeats / plan.teams) * job.train.epochs
    seconds = results["timing"]["startup_s"] + turns * epoch_s
    price = job.cluster.price_per_hour
    return Estimate(
        rate,
        results["timing"]["startup_s"],
        epoch_s,
        seconds / 3600,
        None if price is None else price * seconds / 3600,
    )


def _span(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
