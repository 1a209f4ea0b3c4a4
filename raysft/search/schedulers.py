"""What ends, pauses or changes trials, as schedulers of Ray Tune: its own by their names, and
raysft's halving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from raysft.job import Job
from raysft.job.metrics import metric_mode
from raysft.job.rungs import first_rung, rung_epochs, rung_sizes
from raysft.job.spec import Search
from raysft.records.documents import EpochMetrics
from raysft.search.earlier import EarlierTrials
from raysft.search.halving import Halving, paused_ones_wait
from raysft.search.population import EPOCH, make_population
from raysft.search.results import Result

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

LEAST_SAMPLES = 3  # Tune's own default
_NOBODY = cast("TuneController", None)  # where Tune's own code does not look at its controller


def make_scheduler(job: Job, trials: int, teams: int, known: EarlierTrials) -> TrialScheduler:
    """What decides on the trials of a job; known: those of an earlier part of its run."""
    assert job.search is not None
    search, epochs = job.search, job.train.epochs
    given = search.scheduler
    if given.name == "halving":
        rungs = rung_epochs(given, epochs)
        places = rung_sizes(given, trials, len(rungs), teams)
        return Halving(rungs, places, search.metric, teams, known)
    if given.changes_trials:
        return make_population(search, epochs, job.seed, known)
    if given.name == "median":
        return _median(search, epochs, teams, known)
    return _OF_TUNE[given.name](search, epochs, known)


# --- Tune's own -----------------------------------------------------------------------------------


class Asha(AsyncHyperBandScheduler):
    """Tune's ASHA, which is told again what an earlier part of the run came to."""

    def __init__(self, known: EarlierTrials, **arguments: JsonValue) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.known = known
        for number, history in known.ended.items():
            trial = _ended_trial(number)
            super().on_trial_add(_NOBODY, trial)
            self._hear(_NOBODY, trial, history)

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Add a trial, with the epochs that it had but for the last one."""
        super().on_trial_add(tune_controller, trial)
        # That one is reported again: the run may have died before it was decided on.
        history = self.known.going_on.get(trial.config["number"], ())
        self._hear(tune_controller, trial, history[:-1])

    def _hear(
        self, tune_controller: TuneController, trial: Trial, history: Sequence[EpochMetrics]
    ) -> None:
        """Let epochs count at their rungs; what is decided on them was decided before."""
        for metrics in history:
            self.on_trial_result(tune_controller, trial, _result(metrics))


class Median(MedianStoppingRule):
    """Tune's rule of the median, which is told again what an earlier part of the run came to."""

    def __init__(self, teams: int, known: EarlierTrials, **arguments: JsonValue) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.teams, self.known = teams, known
        for number, history in known.ended.items():
            self._hear(_ended_trial(number), history)

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Add a trial, with the epochs that it had but for the last one."""
        super().on_trial_add(tune_controller, trial)
        history = self.known.going_on.get(trial.config["number"], ())
        self._hear(trial, history[:-1])

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: Result
    ) -> None:
        """Let the last epoch of a trial count, if it had any."""
        if self.metric in result:
            super().on_trial_complete(tune_controller, trial, result)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """A trial that has not begun, else one that made room for others."""
        trial = super().choose_trial_to_run(tune_controller)
        is_paused = trial is not None and trial.status == Trial.PAUSED
        return None if is_paused and paused_ones_wait(tune_controller, self.teams) else trial

    def _hear(self, trial: Trial, history: Sequence[EpochMetrics]) -> None:
        """Let epochs count for others, and decide nothing on their own trial."""
        for metrics in history:
            # As of a trial that is complete: the rule then takes the metrics and asks nothing.
            super().on_trial_complete(_NOBODY, trial, _result(metrics))


def _ended_trial(number: int) -> Trial:
    """In the place of a trial of an earlier part of the run."""
    return Trial("", stub=True, config={"number": number})


def _result(metrics: EpochMetrics) -> dict[str, object]:
    return {**metrics, EPOCH: metrics["epoch"]}


# --- by name --------------------------------------------------------------------------------------


def _asha(search: Search, epochs: int, known: EarlierTrials) -> TrialScheduler:
    given = search.scheduler
    return Asha(
        known,
        **_compared_by(search),
        max_t=epochs,
        grace_period=min(first_rung(given, epochs), epochs),
        reduction_factor=given.factor,
        brackets=given.brackets or 1,
    )


def _hyperband(search: Search, epochs: int, known: EarlierTrials) -> TrialScheduler:
    # Its brackets are made of the trials there are: those that have ended count in none.
    factor = search.scheduler.factor
    return HyperBandScheduler(**_compared_by(search), max_t=epochs, reduction_factor=factor)


def _bohb(search: Search, epochs: int, known: EarlierTrials) -> TrialScheduler:
    factor = search.scheduler.factor
    return HyperBandForBOHB(**_compared_by(search), max_t=epochs, reduction_factor=factor)


def _median(search: Search, epochs: int, teams: int, known: EarlierTrials) -> TrialScheduler:
    given = search.scheduler
    grace = first_rung(given, epochs)
    return Median(
        teams,
        known,
        **_compared_by(search),
        grace_period=grace,
        min_samples_required=given.min_samples_required or LEAST_SAMPLES,
        # Tune's own default takes turns after every epoch, each at the price of a checkpoint.
        min_time_slice=grace if given.min_time_slice is None else given.min_time_slice,
        hard_stop=given.hard_stop is not False,
    )


def _every_trial(search: Search, epochs: int, known: EarlierTrials) -> TrialScheduler:
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def _compared_by(search: Search) -> dict[str, Any]:
    """What all of them are told."""
    mode = metric_mode(search.metric)
    return {"time_attr": EPOCH, "metric": search.metric, "mode": mode}


_OF_TUNE: dict[str, Callable[[Search, int, EarlierTrials], TrialScheduler]] = {
    "asha_tune": _asha,
    "hyperband": _hyperband,
    "bohb": _bohb,
    "none": _every_trial,
}
