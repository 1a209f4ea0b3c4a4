"""What a run is doing at the moment: epochs, time left, what each team does; progress.json."""

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
        self.doing = doing
        self.trial = trial
        self.step = self.steps = None
        self.images_per_s = self.data_wait = self.gpu = None

    def set_speed(self, images: float, seconds: float | None, waited: float | None) -> None:
        """Its speed and its waiting for data, over `seconds` of training."""
        if seconds:
            self.images_per_s = round(images / seconds, 1)
            self.data_wait = round((waited or 0.0) / seconds, 4)

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
        self.rows = plan.train_rows
        self.epochs = job.train.epochs
        self.total = plan.total_epochs
        self.repeats = 0
        self.halving = False
        self.may_end_early = job.train.patience is not None
        if job.search is not None:
            self.repeats = job.search.confirm
            scheduler = job.search.scheduler
            # Halving too ends trials early, but how many of them and when is known in advance.
            self.halving = scheduler.name == "halving"
            if scheduler.may_stop or job.search.target is not None:
                self.may_end_early = True
        self.teams: dict[tuple[int, int], TeamState] = {}
        for number, slot in enumerate(plan.slots):
            for team in range(slot.teams):
                self.teams[number, team] = TeamState(number, team)
        self.inside: dict[str, float] = {}
        """The part of its epoch that each trial has done."""
        # Epochs of before this part of the run say nothing about how fast it is.
        self._trained_before = sum(len(record.history) for record in before)
        self._first_start: float | None = None

    def apply(self, event: Event) -> None:
        """Follow what happened."""
        if isinstance(event, TrialStarted):
            self._start(event)
        elif isinstance(event, TeamRestarted):
            self.teams[event.slot, event.team].enter("starting")
        elif isinstance(event, TrialProgress):
            self._advance(event)
        elif isinstance(event, EpochEnded):
            self._end_epoch(event)
        elif isinstance(event, TrialEvent) and not isinstance(event, TrialProposed):
            # Paused, ended or waiting for a team with a smaller batch: no team has it.
            self.inside.pop(event.trial, None)
            for team in self._teams_of(event.trial):
                team.enter("waiting")

    def _start(self, event: TrialStarted) -> None:
        if self._first_start is None:
            self._first_start = event.at
        doing = "training" if event.doing == "train" else "scoring"
        team = self.teams[event.slot, event.team]
        team.enter(doing, event.trial)

    def _advance(self, event: TrialProgress) -> None:
        part = event.step / event.steps
        self.inside[event.trial] = part
        for team in self._teams_of(event.trial):
            team.step = event.step
            team.steps = event.steps
            if event.gpu is not None:  # it is asked less often than the step
                team.gpu = event.gpu
            team.set_speed(self.rows * part, event.seconds, event.waited)

    def _end_epoch(self, event: EpochEnded) -> None:
        # Not gone: the trial stays with its team until the next step is reported.
        self.inside[event.trial] = 0.0
        metrics = event.metrics
        seconds, waited = metrics["train_seconds"], metrics["data_wait_seconds"]
        for team in self._teams_of(event.trial):
            team.step = team.steps = None
            team.set_speed(metrics["images"], seconds, waited)

    def remove_slot(self, slot: int) -> None:
        """A slot will not come back."""
        for team in self.teams.values():
            if team.slot == slot:
                team.enter("gone")

    def done(self, records: Sequence[TrialRecord]) -> float:
        """Epochs of all trials that are over and done with, of `total`."""
        if all(record.ended for record in records):
            return self.total  # however early: nothing of it is left to do
        done = 0.0
        for record in records:
            # With halving, `total` counts the epochs that the rungs leave, not those of all trials.
            done += self._trained(record) if self.halving else self._decided(record)
        return min(self.total, done)

    def document(
        self, records: Sequence[TrialRecord], repeats: Sequence[TrialRecord]
    ) -> ProgressDocument:
        """A progress.json; `repeats` are those of the best trial with other seeds."""
        now = time.time()
        done = self.done(records)
        left = self.total - done + self.repeats * self.epochs
        left -= sum(self._decided(record) for record in repeats)
        speed = self._epochs_per_s([*records, *repeats], now)
        return {
            "at": round(now, 1),
            "epochs": {"done": round(done, 2), "total": self.total, "each": self.epochs},
            "left_s": round(left / speed, 1) if speed > 0 else None,
            "may_end_early": self.may_end_early,
            "inside": self._rounded_parts(),
            "teams": [team.document() for team in self.teams.values()],
        }

    def _epochs_per_s(self, records: Sequence[TrialRecord], now: float) -> float:
        """The speed of all teams together since the first trial started; 0.0 before."""
        if self._first_start is None or now <= self._first_start:
            return 0.0
        # All that was trained, not what is decided: trials that ended early took no time.
        whole = sum(len(record.history) for record in records)
        parts = self._rounded_parts().values()
        trained = whole + sum(parts) - self._trained_before
        return trained / (now - self._first_start)

    def _rounded_parts(self) -> dict[str, float]:
        rounded = {}
        for trial, part in self.inside.items():
            rounded[trial] = round(part, 3)
        return rounded

    def _trained(self, record: TrialRecord) -> float:
        whole = len(record.history)
        part = self.inside.get(record.trial, 0.0)
        return whole + part

    def _decided(self, record: TrialRecord) -> float:
        """Epochs that need no training any more; of a trial that ended early, all of them."""
        if record.ended:
            return self.epochs
        return self._trained(record)

    def _teams_of(self, trial: str) -> list[TeamState]:
        teams = []
        for team in self.teams.values():
            if team.trial == trial:
                teams.append(team)
        return teams
