"""Population-based training on slots: Tune's PBT and PB2 decide, a clone is a trial that goes on
from another one's checkpoint.

After Jaderberg et al., Population Based Training of Neural Networks (2017), and Parker-Holder et
al., Provably Efficient Online Hyperparameter Optimization with Population-Based Bandits (2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from raysft.errors import UserError
from raysft.job.metrics import metric_mode
from raysft.job.ranges import Interval, parse_range
from raysft.job.rungs import perturbation_interval
from raysft.job.space import with_usual_ranges
from raysft.job.spec import Search
from raysft.job.values import Config, Space
from raysft.search.earlier import EarlierTrials
from raysft.search.explore import Explorer, keep_bounds
from raysft.search.results import Result

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

Proposed = dict[str, Any]
"""What a trial of Tune has as its configuration: its number, and ours."""

EPOCH = "training_iteration"  # the key under which Tune counts steps, each of which is an epoch
# Tune's own defaults.
QUANTILE, RESAMPLE, FACTORS = 0.25, 0.25, (1.2, 0.8)


class Population(TrialScheduler):
    """Lets PBT or PB2 decide, and keeps each trial's number when it gets another configuration.

    They copy the whole configuration of the better trial, in which stands its number: by that it is
    known who came from whom.
    """

    def __init__(self, inner: PopulationBasedTraining, known: EarlierTrials, synch: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner, self.known, self.synch = inner, known, synch
        self.numbers: dict[Trial, int] = {}

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Add a trial to the population, with what it was in an earlier part of the run."""
        number = trial.config["number"]
        self.numbers[trial] = number
        idle = cast("TuneController", _Idle())
        self.inner.on_trial_add(idle, trial)
        # Its last epoch is reported again, and decided on then. Where all are compared at the same
        # epoch, the first comparison waits for all in any case.
        if not self.synch:
            for metrics in self.known.going_on.get(number, ())[:-1]:
                result = {**metrics, EPOCH: metrics["epoch"]}
                self.inner.on_trial_result(idle, trial, result)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: Result) -> str:
        """Compare the population; the worst of it may get other weights and values."""
        decision = self.inner.on_trial_result(tune_controller, trial, result)
        for each, number in self.numbers.items():
            if each.config["number"] != number:
                each.set_config({**each.config, "number": number})  # type: ignore[no-untyped-call]
        return decision

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: Result
    ) -> None:
        """A trial has ended: it passes nothing on any more."""
        self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """A trial has failed."""
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """A paused trial was stopped."""
        self.inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The trial that has trained least."""
        return self.inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """For Tune's log."""
        return self.inner.debug_string()


class _Idle:
    """In the place of Tune's controller where a population is only told what was."""

    # PBT refuses searchers, which may propose what depends on results. Here trials begin with what
    # is proposed, whatever proposes it.
    search_alg = None

    def get_trials(self) -> list[Trial]:
        """None that waits for its turn."""
        return []

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Nothing is done: no checkpoint is taken of where a trial was then."""
        return lambda *arguments, **named: None


def make_population(search: Search, epochs: int, seed: int, known: EarlierTrials) -> Population:
    """PBT or PB2 with the arguments of the job, and the ranges of its space to change."""
    given = search.scheduler
    made = _pb2(search, epochs) if given.name == "pb2" else _pbt(search, epochs, seed)
    return Population(made, known, synch=given.in_step)


def _pbt(search: Search, epochs: int, seed: int) -> PopulationBasedTraining:
    given = search.scheduler
    resample = RESAMPLE if given.resample_probability is None else given.resample_probability
    factors = given.perturbation_factors or FACTORS
    explorer = Explorer(search.space, factors, resample, np.random.RandomState(seed))

    def explore(config: Proposed) -> Proposed:
        return {**config, "config": explorer.explore(config["config"])}

    return PopulationBasedTraining(
        **_common(search, epochs),
        burn_in_period=given.burn_in_period or 0,
        custom_explore_fn=explore,
    )


def _pb2(search: Search, epochs: int) -> PopulationBasedTraining:
    # Only here: it imports scikit-learn, which takes a second of every search.
    from ray.tune.schedulers.pb2 import PB2

    def bound(config: Proposed) -> Proposed:
        # It computes in float32, whose nearest number may lie outside.
        return {**config, "config": keep_bounds(search.space, config["config"])}

    try:
        return PB2(
            **_common(search, epochs),
            hyperparam_bounds={"config": _bounds(search.space)},
            custom_explore_fn=bound,
        )
    except RuntimeError:
        raise UserError(
            "search.scheduler: pb2", "needs scikit-learn", "pip install scikit-learn"
        ) from None


def _common(search: Search, epochs: int) -> dict[str, Any]:
    """What both are told."""
    given = search.scheduler
    quantile = QUANTILE if given.quantile_fraction is None else given.quantile_fraction
    return {
        "time_attr": EPOCH,
        "metric": search.metric,
        "mode": metric_mode(search.metric),
        "perturbation_interval": perturbation_interval(given, epochs),
        "quantile_fraction": quantile,
        "synch": given.in_step,
        # It would write files of its own; trial.json has who came from whom.
        "log_config": False,
    }


def _bounds(space: Space) -> Config:
    """The two ends of every range, below the keys that lead to its value in a configuration."""
    bounds: Config = {}
    for key, value in with_usual_ranges(space).items():
        # The check of the job has seen to it that alternatives with ranges are one alone.
        if not isinstance(value, list):
            bounds |= _ends({key: value})
        elif isinstance(value[0], dict) and _ends(value[0]):
            bounds[key] = _ends(value[0])
    return bounds


def _ends(values: Config) -> Config:
    """The two ends of each range among some values."""
    found: Config = {}
    for name, value in values.items():
        given = parse_range(value)
        if isinstance(given, Interval):
            found[name] = [given.low, given.high]
    return found
