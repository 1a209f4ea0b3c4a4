"""What ends or pauses trials early, as schedulers of Ray Tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pydantic import JsonValue
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raysft.job.rungs import first_rung
from raysft.job.spec import Search
from raysft.records.documents import EpochMetrics
from raysft.search.earlier import EarlierTrials
from raysft.search.halving import Halving
from raysft.search.rules import Median, Scheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

Result = dict[str, JsonValue]
"""The metrics of an epoch, and what Tune adds to them."""


def make_scheduler(
    search: Search, trials: int, epochs: int, teams: int, known: EarlierTrials
) -> TrialScheduler:
    """What decides on the trials of a job; known: those of an earlier part of its run."""
    given = search.scheduler
    if given.name == "asha":
        return ByRule(Halving(given, trials, epochs, teams, search.metric, known))
    if given.name == "median":
        return ByRule(Median(first_rung(given, epochs), search.metric, known))
    return ByRule(Scheduler())


class ByRule(TrialScheduler):
    """Asks a rule, which knows trials by their numbers."""

    def __init__(self, rule: Scheduler) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = rule
        self.trials: dict[int, Trial] = {}

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """A trial was proposed."""
        self.trials[trial.config["number"]] = trial

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: Result) -> str:
        """What becomes of a trial that has trained an epoch and has more to come."""
        number = trial.config["number"]
        decision = self.rule.epoch(number, cast(EpochMetrics, result))
        if decision == "pause":
            self.rule.paused(number)
            return self.PAUSE
        return self.CONTINUE if decision == "go on" else self.STOP

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: Result
    ) -> None:
        """A trial has trained its last epoch."""
        self.rule.ended(trial.config["number"], cast(EpochMetrics, result))

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """A trial has failed."""
        self.rule.ended(trial.config["number"])

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """A trial that waits was stopped."""
        self.rule.ended(trial.config["number"])

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The next trial that has not begun, else the paused one that goes on."""
        for number, trial in self.trials.items():
            if trial.status == Trial.PENDING:
                self.rule.begin(number)
                return trial
        promoted = self.rule.promoted()
        return None if promoted is None else self.trials[promoted]

    def debug_string(self) -> str:
        """For Tune's console, which nobody sees."""
        return type(self.rule).__name__
