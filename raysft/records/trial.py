"""What a run knows of its trials, and their order from best to worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raysft.job.metrics import sort_key
from raysft.job.values import Config
from raysft.records.documents import (
    MORE_METRICS,
    BestEpochMetrics,
    EpochMetrics,
    Takeover,
    TrialDocument,
    TrialRow,
    ValidationMetrics,
)

GOING_ON = ("pending", "running", "paused")  # the status of a trial that may still train


@dataclass
class TrialRecord:
    """One trial, as trial.json and the leaderboard show it."""

    trial: str
    config: Config
    status: str = "pending"
    history: list[EpochMetrics] = field(default_factory=list)
    started: float | None = None
    seconds: float = 0.0
    error: str | None = None
    trace: str | None = None
    host: str | None = None
    """Address of the node that rank 0 of its team trained on last."""
    came_from: list[Takeover] = field(default_factory=list)
    """Whose weights it went on from, and when."""

    @classmethod
    def from_document(cls, stored: TrialDocument) -> TrialRecord:
        """The trial of a trial.json; one that had not ended is pending again."""
        record = cls(
            stored["trial"],
            stored["config"],
            stored["status"],
            stored["history"],
            seconds=stored["seconds"],
            error=stored["error"],
            trace=stored.get("trace"),
            host=stored["host"],
            came_from=stored.get("came_from", []),
        )
        if not record.ended:
            record.status = "pending"
        return record

    @property
    def ended(self) -> bool:
        """Whether the trial is over, however it ended."""
        return self.status not in GOING_ON

    def add(self, epoch: EpochMetrics, before: Sequence[EpochMetrics] = ()) -> None:
        """Add an epoch in place of any later ones, and those `before` it that are not known yet."""
        # A team that starts again from a checkpoint reports epochs once more. Those already in the
        # history win over `before`, which a driver that was away needs; the new one wins over all.
        known = {m["epoch"]: m for m in before}
        known |= {m["epoch"]: m for m in self.history}
        known[epoch["epoch"]] = epoch
        self.history = [known[number] for number in sorted(known) if number <= epoch["epoch"]]

    def take_over(self, source: str, config: Config, history: Sequence[EpochMetrics]) -> None:
        """Go on from the weights of another trial, that have a `history`, with a configuration."""
        taken: Takeover = {
            "trial": source,
            "epoch": history[-1]["epoch"] if history else 0,
            "left": self.history[-1]["epoch"] if self.history else 0,
            "was": self.config,
            "config": config,
        }
        self.came_from = [*self.came_from, taken]
        self.config, self.history = config, list(history)

    @property
    def trained(self) -> list[EpochMetrics]:
        """The epochs of its history that it trained itself."""
        copied = self.came_from[-1]["epoch"] if self.came_from else 0
        return [epoch for epoch in self.history if epoch["epoch"] > copied]

    def best(self, metric: str) -> EpochMetrics | None:
        """The epoch with the best metric."""
        if not self.history:
            return None
        # Ties go to the lower loss, then to the earlier epoch.
        return min(self.history, key=lambda m: sort_key(m, metric))

    def row(self, metric: str) -> TrialRow:
        """The trial's entry in results.json."""
        best = self.best(metric)
        metrics: BestEpochMetrics
        metrics = _no_metrics(metric) if best is None else {**validation_metrics(best)}
        row: TrialRow = {
            "trial": self.trial,
            "status": self.status,
            "config": self.config,
            "epochs": len(self.history),
            **metrics,  # type: ignore[typeddict-item]  # mypy fears a "came_from" in it
            # A hundredth of a second is less than what starting a trial varies by.
            "seconds": round(self.seconds, 2),
            "host": self.host,
            "error": self.error,
        }
        if self.came_from:
            row["came_from"] = self.came_from
        return row

    def document(self, metric: str) -> TrialDocument:
        """The trial's trial.json."""
        return {**self.row(metric), "history": self.history, "trace": self.trace}


def metric_value(metrics: Mapping[str, object], metric: str) -> float:
    """One metric of an epoch or of a result by its name, which a job may choose."""
    value = metrics[metric]
    if not isinstance(value, (int, float)):
        raise TypeError(f"{metric} is {value!r}")
    return value


def _no_metrics(metric: str) -> BestEpochMetrics:
    found: BestEpochMetrics = {"val_accuracy": None, "val_loss": None}
    for key in MORE_METRICS:
        if key == metric:  # the report and the console show it beside those two
            found[key] = None
    return found


def validation_metrics(epoch: EpochMetrics) -> ValidationMetrics:
    """Of all that is known of an epoch its metrics on the validation split."""
    found: ValidationMetrics = {
        "val_loss": epoch["val_loss"],
        "val_accuracy": epoch["val_accuracy"],
    }
    for key in MORE_METRICS:
        if key in epoch:
            found[key] = epoch[key]
    return found


def leaderboard(records: list[TrialRecord], metric: str) -> list[TrialRecord]:
    """Trials from best to worst; those without a finished epoch last."""

    def key(record: TrialRecord) -> tuple[float, ...]:
        best = record.best(metric)
        return sort_key(best, metric) if best else (math.inf,)

    return sorted(records, key=key)
