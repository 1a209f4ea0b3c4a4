"""Where a run stands at a moment: epochs, time left, what each team does; told as a small document
of plain values.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raysft.job import Job
from raysft.job.plan import RunPlan
from raysft.records.documents import ProgressDocument, TeamProgress
from raysft.records.trial import TrialRecord
from raysft.train.queue.events import (
    EpochEnded,
    Event,
    TeamRestarted,
    TrialEvent,
    TrialProgress,
    TrialProposed,
    TrialStarted,
)


@dataclass
class TeamState:
    """One team: starting, training, scoring, waiting, or gone with its slot."""

    slot: int
    team: int
    doing: str = "starting"
    trial: str | None = None
    step: int | None = None
    steps: int | None = None
    images_per_s: float | None = None
    data_wait: float | None = None
    """Share of its training time that it waited for data."""
    gpu: float | None = None
    """Percent of the time that its first GPU was busy lately; None where that is not known."""

    def enter(self, doing: str, trial: str | None = None) -> None:
        """Begin something else, of which no figures are known yet."""
        self.doing, self.trial = doing, trial
        self.step = self.steps = self.images_per_s = self.data_wait = self.gpu = None

    def document(self) -> TeamProgress:
        """As progress.json has it."""
        return {
            "slot": self.slot,
            "team": self.team,
            "doing": self.doing,
            "trial": self.trial,
            "step": self.step,
            "steps": self.steps,
            "images_per_s": self.images_per_s,
            "data_wait": self.data_wait,
            "gpu": self.gpu,
        }


class Progress:
    """What the events of a run say about its teams, and how long it will take."""

    def __init__(self, job: Job, plan: RunPlan, before: Collection[TrialRecord]) -> None:
        search = job.search
        self.rows, self.epochs, self.total = plan.train_rows, job.train.epochs, plan.total_epochs
        self.repeats = search.confirm if search else 0
        self.may_end_early = job.train.patience is not None or (
            search is not None and (search.scheduler.name == "median" or search.target is not None)
        )
        self.halving = search is not None and search.scheduler.name == "asha"
        self.teams = {
            (number, team): TeamState(number, team)
            for number, slot in enumerate(plan.slots)
            for team in range(slot.teams)
        }
        self.inside: dict[str, float] = {}
        """Share of the epoch in progress, by trial."""
        self._trained_before = sum(len(record.history) for record in before)
        self._first: float | None = None

    def take(self, event: Event) -> None:
        """Take in what happened."""
        if isinstance(event, TrialStarted):
            self._first = event.at if self._first is None else self._first
            self.teams[event.slot, event.team].enter(
                "training" if event.doing == "train" else "scoring", event.trial
            )
        elif isinstance(event, TeamRestarted):
            self.teams[event.slot, event.team].enter("starting")
        elif isinstance(event, TrialProgress):
            self.inside[event.trial] = event.step / event.steps
            self._figure(
                event.trial,
                self.rows * self.inside[event.trial],
                event.seconds,
                event.waited,
                event.step,
                event.steps,
                event.gpu,
            )
        elif isinstance(event, EpochEnded):
            metrics = event.metrics
            self.inside[event.trial] = 0.0
            self._figure(
                event.trial,
                metrics["images"],
                metrics["train_seconds"],
                metrics["data_wait_seconds"],
            )
        elif isinstance(event, TrialEvent) and not isinstance(event, TrialProposed):
            self.inside.pop(event.trial, None)
            for team in self._teams_of(event.trial):
                team.enter("waiting")

    def lost(self, slot: int) -> None:
        """A slot will not come back."""
        for team in self.teams.values():
            if team.slot == slot:
                team.enter("gone")

    def done(self, records: Sequence[TrialRecord]) -> float:
        """Epochs of all trials that are over and done with, of `total`."""
        if all(record.ended for record in records):
            return self.total
        return min(
            self.total, sum(self._trained(r) if self.halving else self._over(r) for r in records)
        )

    def document(
        self, records: Sequence[TrialRecord], repeats: Sequence[TrialRecord]
    ) -> ProgressDocument:
        """Where the run stands; `repeats` are those of the best trial with other seeds."""
        now = time.time()
        done, total = self.done(records), self.total
        left = total - done + self.repeats * self.epochs - sum(map(self._over, repeats))
        inside = {trial: round(share, 3) for trial, share in self.inside.items()}
        trained = sum(len(record.history) for record in (*records, *repeats)) + sum(inside.values())
        seconds = 0.0 if self._first is None else now - self._first
        rate = (trained - self._trained_before) / seconds if seconds > 0 else 0.0
        return {
            "at": round(now, 1),
            "epochs": {"done": round(done, 2), "total": total, "each": self.epochs},
            "left_s": round(left / rate, 1) if rate > 0 else None,
            "may_end_early": self.may_end_early,
            "inside": inside,
            "teams": [team.document() for team in self.teams.values()],
        }

    def _trained(self, record: TrialRecord) -> float:
        return len(record.history) + self.inside.get(record.trial, 0.0)

    def _over(self, record: TrialRecord) -> float:
        """Epochs of a trial; all of them where it ended early."""
        return self.epochs if record.ended else self._trained(record)

    def _figure(
        self,
        trial: str,
        images: float,
        seconds: float | None,
        waited: float | None,
        step: int | None = None,
        steps: int | None = None,
        gpu: float | None = None,
    ) -> None:
        for team in self._teams_of(trial):
            team.step, team.steps, team.gpu = step, steps, team.gpu if gpu is None else gpu
            if seconds:
                team.images_per_s, team.data_wait = (
                    round(images / seconds, 1),
                    round((waited or 0.0) / seconds, 4),
                )

    def _teams_of(self, trial: str) -> list[TeamState]:
        return [team for team in self.teams.values() if team.trial == trial]
