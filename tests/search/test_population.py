"""Populations: the weak go on from the strong with other values, and nobody loses its name."""

import math
import random
import warnings

import numpy as np
import pytest
from ray.tune.experiment import Trial

from raysft.job import Job
from raysft.search.earlier import EarlierTrials
from raysft.search.explore import Explorer, keep_bounds
from raysft.search.schedulers import make_scheduler
from tests.search.controller import Controller, epochs, result_of, trial_of

LR = "train.optimizer.lr"
SPACE = {LR: {"loguniform": [1e-4, 1.0]}}
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0]


def made(known=EarlierTrials(), length=12, space=SPACE, **scheduler):
    given = {"trials": 8, "space": space, "scheduler": {"name": "pbt", "synch": False} | scheduler}
    job = Job.model_validate({"search": given, "train": {"epochs": length}})
    return make_scheduler(job, 8, 2, known)


def best_at_a_hundredth(number, epoch, config):
    return 1 / (1 + abs(math.log10(config[LR]) + 2)) + epoch / 1000


def population(teams=2, interval=2, seed=0, **scheduler):
    random.seed(seed)
    # scikit-learn, on a function as simple as this one.
    warnings.filterwarnings("ignore", module="sklearn")
    configs = {number: {LR: rate} for number, rate in enumerate(RATES)}
    return Controller(
        made(perturbation_interval=interval, **scheduler),
        best_at_a_hundredth,
        8,
        12,
        teams,
        configs=configs,
        paced=False,
        chance=random.Random(seed),
    ).run()


@pytest.mark.parametrize(
    ("name", "interval", "synch", "teams"),
    [("pb2", 5, True, 3)]
    + [("pbt", 2, synch, teams) for synch in (False, True) for teams in (1, 3, 8)],
)
def test_weak_trials_go_on_from_strong_ones(name, interval, synch, teams):
    search = population(teams, interval, name=name, synch=synch)
    assert set(search.ended.values()) == {"finished"}
    assert search.clones
    for number, checkpoint in search.clones:
        assert checkpoint.number != number
        assert checkpoint.epoch % interval == 0
    assert [trial.config["number"] for trial in search.trials] == list(range(8))
    rates = [trial.config["config"][LR] for trial in search.trials]
    assert all(1e-4 <= rate <= 1.0 for rate in rates)
    assert rates != RATES


def test_population_gathers_where_it_is_good():
    def distance(rates):
        return np.mean([abs(math.log10(rate) + 2) for rate in rates])

    found = []
    for seed in range(5):
        search = population(seed=seed, resample_probability=0.0)
        found.append(distance([trial.config["config"][LR] for trial in search.trials]))
    assert np.mean(found) < distance(RATES) / 2


class Told:
    """A controller by hand: of a population that runs."""

    search_alg = None

    def __init__(self, scheduler, configs):
        self.scheduler = scheduler
        self.trials = [trial_of(number, config) for number, config in configs.items()]
        self.saved = []
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)
            trial.set_status(Trial.RUNNING)

    def epoch(self, number, value, epoch):
        trial = next(trial for trial in self.trials if trial.config["number"] == number)
        trial.set_status(Trial.RUNNING)
        (metrics,) = epochs(value, first=epoch)
        result = result_of(metrics)
        decision = self.scheduler.on_trial_result(self, trial, result)
        trial.update_last_result(result)
        return decision

    def source(self, number):
        """The trial whose checkpoint another one got."""
        stored = self.trials[number].latest_checkpoint_result
        return None if stored is None else stored.checkpoint

    def get_trials(self):
        return self.trials

    def pause_trial(self, trial, should_checkpoint=True):
        trial.set_status(Trial.PAUSED)

    def _schedule_trial_save(self, trial, result=None):
        return f"checkpoint of {trial.config['number']} after {result['epoch']}"


def test_clone_gets_weights_and_changed_values_of_the_better_one():
    told = Told(made(perturbation_interval=2), {0: {LR: 0.01}, 1: {LR: 0.5}})
    told.epoch(0, 0.9, 2)
    # Alone, it was not known to be the better one: there is nothing yet to go on from.
    assert told.epoch(1, 0.1, 2) == "CONTINUE"
    told.epoch(0, 0.9, 4)
    assert told.epoch(1, 0.1, 4) == "NOOP"
    assert told.source(1) == "checkpoint of 0 after 4"
    config = told.trials[1].config
    assert config["number"] == 1
    assert config["config"][LR] not in (0.01, 0.5)
    assert told.trials[0].config == {"number": 0, "config": {LR: 0.01}}


def test_resumed_population_is_compared_with_what_it_was():
    going_on = {0: epochs(0.9, 0.9, 0.9), 1: epochs(0.1, 0.1, 0.1)}
    configs = {0: {LR: 0.01}, 1: {LR: 0.5}}
    told = Told(made(EarlierTrials(going_on=going_on), perturbation_interval=2), configs)
    # Each tells its last epoch again, which was no time to compare.
    for number in (0, 1):
        assert told.epoch(number, going_on[number][-1]["val_accuracy"], 3) == "CONTINUE"
    assert told.trials[1].config["config"] == configs[1]
    told.epoch(0, 0.9, 4)
    assert told.epoch(1, 0.1, 4) == "NOOP"
    assert told.source(1) == "checkpoint of 0 after 4"


def test_nobody_goes_on_from_a_checkpoint_of_before_the_resume():
    going_on = {0: epochs(0.9, 0.9, 0.9), 1: epochs(0.1, 0.1, 0.1)}
    known = EarlierTrials(going_on=going_on)
    told = Told(made(known, perturbation_interval=2), {0: {LR: 0.01}, 1: {LR: 0.5}})
    assert told.epoch(1, 0.1, 4) == "CONTINUE"
    assert told.trials[1].config["config"] == {LR: 0.5}


def test_search_by_a_searcher_may_be_a_population():
    # Tune's PBT refuses them, as they may learn from results.
    search = Controller(made(), best_at_a_hundredth, 1, 12, configs={0: {LR: 0.1}})
    assert search.search_alg is not None
    search.run()


# --- new values ----------------------------------------------------------------------------------


def explorer(space, factors=(2.0, 0.5), resample=0.0):
    return Explorer(space, factors, resample, np.random.RandomState(0))


def explored(space, config, **settings):
    """All that may become of a configuration."""
    explore = explorer(space, **settings).explore
    return [explore(config) for _ in range(50)]


def test_number_changes_by_a_factor_within_its_range():
    values = {c[LR] for c in explored(SPACE, {LR: 0.4})}
    assert values == {0.2, 0.8}
    assert {c[LR] for c in explored(SPACE, {LR: 0.9})} == {0.45, 1.0}


def test_whole_number_stays_one():
    space = {"train.schedule.step_epochs": {"int": [2, 9]}}
    values = explored(space, {"train.schedule.step_epochs": 5}, factors=(1.3, 0.7))
    assert {repr(c["train.schedule.step_epochs"]) for c in values} == {"6", "4"}


def test_listed_value_moves_to_its_neighbour():
    space = {"train.label_smoothing": {"choice": [0.0, 0.1, 0.2]}}
    assert {
        c["train.label_smoothing"] for c in explored(space, {"train.label_smoothing": 0.1})
    } == {
        0.0,
        0.2,
    }
    ends = explored(space, {"train.label_smoothing": 0.2})
    assert {c["train.label_smoothing"] for c in ends} == {0.1, 0.2}


def test_alternative_stays_and_its_values_change():
    space = {
        "optimizer": [
            {"name": "sgd", "lr": {"uniform": [0.1, 1.0]}, "momentum": 0.9},
            {"name": "adamw", "lr": {"uniform": [0.001, 0.01]}},
        ]
    }
    config = {"optimizer": {"name": "adamw", "lr": 0.004}}
    assert {c["optimizer"]["lr"] for c in explored(space, config)} == {0.002, 0.008}
    assert {c["optimizer"]["name"] for c in explored(space, config)} == {"adamw"}
    assert config["optimizer"]["lr"] == 0.004


def test_drawn_anew_values_are_spread_over_the_range():
    values = [c[LR] for c in explored(SPACE, {LR: 0.01}, resample=1.0)]
    assert min(values) < 1e-3
    assert max(values) > 0.1
    assert all(1e-4 <= value <= 1.0 for value in values)


def test_configuration_from_outside_the_space_stays_as_it_is():
    space = {"optimizer": [{"name": "sgd", "lr": {"uniform": [0.1, 1.0]}}]}
    config = {"optimizer": {"name": "adam", "lr": 0.1}}
    assert explorer(space).explore(config) == config
    assert explorer(space).explore({}) == {}


def test_numbers_beside_their_range_are_brought_inside():
    assert keep_bounds(SPACE, {LR: 1.00001}) == {LR: 1.0}
    assert keep_bounds(SPACE, {LR: 0.5}) == {LR: 0.5}
