"""Searchers: every trial gets one configuration inside the space, known ones first, and what was
told of earlier trials is used. Those whose libraries are installed: of the tests' own, tpe.
"""

import importlib.util

import numpy as np
import pytest
from ray.tune.search import Searcher

from raysft.errors import UserError
from raysft.job import Job
from raysft.job.algorithms import ALGORITHMS, PLANNED
from raysft.job.space import settings_problems
from raysft.job.values import Config
from raysft.run.preflight import check_algorithm
from raysft.search.parameters import Parameters
from raysft.search.searchers import MOST_REFUSALS, make_searcher
from raysft.search.space import configurations, known_configurations

SPACE = {
    "optimizer": [
        {"name": "sgd", "lr": {"loguniform": [1e-5, 1.0]}, "momentum": 0.9},
        {"name": "adam", "lr": {"loguniform": [1e-5, 1.0]}},
    ],
    "train.batch_size": {"choice": [64, 128]},
    "train.accumulate": {"int": [1, 3]},
}
RATES = {
    "optimizer": [{"name": "sgd", "lr": {"loguniform": [1e-5, 1.0]}, "momentum": 0.9}],
    "train.label_smoothing": {"uniform": [0.0, 0.5]},
}


def job(name="tpe", space=None, arguments=None, **search) -> Job:
    space = space or (RATES if name == "bayesopt" else SPACE)
    if name == "bohb":
        search["scheduler"] = {"name": "bohb"}
    algorithm = {"name": name, **(arguments or {})}
    return Job.model_validate({"search": {"algorithm": algorithm, "space": space, **search}})


def bowl(config) -> float:
    """Best at sgd with a rate of 0.01."""
    rate = np.log10(config["optimizer"]["lr"])
    return 1 - ((rate + 2) ** 2 + (config["optimizer"]["name"] != "sgd")) / 10


def epoch(value: float, number: int = 1) -> dict:
    budget = {"hyperband_info": {"budget": number}}
    return {"epoch": number, "training_iteration": number, "val_accuracy": value, **budget}


def make(job: Job, count: int, configs=None, past=()) -> Searcher:
    known = known_configurations(job) if configs is None else configs
    return make_searcher(job, range(count), known, past)


def run(searcher: Searcher) -> list[tuple[Config, float]]:
    """Let a searcher propose trials one after the other and tell it how good they were."""
    tried: list[tuple[Config, float]] = []
    refused = 0
    while (suggested := searcher.suggest(f"trial-{len(tried)}-{refused}")) != Searcher.FINISHED:
        if suggested is None:
            refused += 1
            continue
        assert suggested["number"] == len(tried)
        name = f"trial-{len(tried)}-{refused}"
        tried.append((suggested["config"], bowl(suggested["config"])))
        searcher.on_trial_result(name, epoch(tried[-1][1]))
        searcher.on_trial_complete(name, epoch(tried[-1][1]))
    return tried


def is_installed(name: str) -> bool:
    return all(importlib.util.find_spec(library) for library in ALGORITHMS[name].libraries)


@pytest.fixture(params=[name for name in ALGORITHMS if name not in PLANNED and is_installed(name)])
def algorithm(request) -> str:
    return request.param


# --- every searcher ----------------------------------------------------------------------------


def test_every_trial_gets_a_configuration_of_the_space(algorithm):
    one = job(algorithm)
    tried = [config for config, _ in run(make(one, 20))]
    assert len(tried) == 20
    for config in tried:
        assert settings_problems(one, config) == []
        assert config.keys() == one.search.space.keys()
        # None of the values of an alternative that it does not have.
        assert config["optimizer"].keys() == (
            {"name", "lr", "momentum"} if config["optimizer"]["name"] == "sgd" else {"name", "lr"}
        )
    assert len({str(config) for config in tried}) > 10


def test_the_same_seed_proposes_the_same(algorithm):
    assert run(make(job(algorithm), 8)) == run(make(job(algorithm), 8))


KNOWN: list[Config] = [
    {"optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9}},
    {"train.ema": 0.5, "optimizer": {"name": "sgd", "lr": 10.0}},  # outside the space
    {"optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9}, "train.label_smoothing": 0.25},
]


def test_known_configurations_come_first(algorithm):
    tried = [config for config, _ in run(make(job(algorithm, start_with=KNOWN), 8))]
    assert tried[:3] == KNOWN
    assert len(tried) == 8


def test_a_resumed_run_goes_on_with_its_own_configurations(algorithm):
    begun: Config = {"optimizer": {"name": "sgd", "lr": 0.123, "momentum": 0.9}}
    past = [(KNOWN[0], "finished", [epoch(0.5)]), (KNOWN[1], "failed", []), (begun, "failed", [])]
    past.append((KNOWN[0], "stopped", [epoch(0.5)]))  # as a search may propose once more
    searcher = make_searcher(job(algorithm), [3, 4, 5], {3: begun}, past)
    first = searcher.suggest("a")
    assert first == {"number": 3, "config": begun}
    searcher.on_trial_complete("a", epoch(0.4))
    second = searcher.suggest("b")
    assert second["number"] == 4
    assert second["config"] != begun


def test_failures_leave_no_trial_without_a_configuration(algorithm):
    searcher = make(job(algorithm, arguments=SHORT.get(algorithm)), 12)
    for number in range(12):
        suggested = searcher.suggest(str(number))
        assert suggested["number"] == number
        searcher.on_trial_result(str(number), epoch(0.5 + number / 100))
        failed = number % 3 == 1
        searcher.on_trial_complete(str(number), None if failed else epoch(0.5), error=failed)


# With Tune's defaults no model would be asked so soon.
SHORT = {"bayesopt": {"random_search_steps": 4}, "hebo": {"max_concurrent": 2}}


def test_paused_trials_do_not_hold_others_up(algorithm):
    """All pause before any goes on, and the searcher knows what they were good for until then."""
    searcher = make(job(algorithm, arguments=SHORT.get(algorithm)), 12)
    for number in range(12):
        assert searcher.suggest(str(number))["number"] == number
        searcher.on_pause(str(number))  # a scheduler decides before the searcher hears the epoch
        searcher.on_trial_result(str(number), epoch(0.5 + number / 100))
    for number in range(12):
        searcher.on_unpause(str(number))
        searcher.on_trial_result(str(number), epoch(0.9, 2))
        searcher.on_trial_complete(str(number), epoch(0.9, 3))
    assert searcher.suggest("none") == Searcher.FINISHED


# What it takes to see it. ax and hebo fit a model for each.
LEARNING = {"ax": 24, "hebo": 24}


@pytest.mark.slow
def test_it_learns_from_what_did_well(algorithm):
    count = LEARNING.get(algorithm, 60)
    tried = run(make(job(algorithm, trials=count, arguments=SHORT.get(algorithm)), count))
    space = job(algorithm).search.space
    drawn = configurations(Job.model_validate({"search": {"space": space, "trials": 500}}))
    # Of the later half: bohb draws a third of its trials at random.
    later = np.median([score for _, score in tried[count // 2 :]])
    assert later > np.median([bowl(config) for config in drawn]) + 0.05


# --- what a searcher of Tune is told -----------------------------------------------------------


class Recorder(Searcher):
    """Suggests what it is given to, and keeps what it is told."""

    def __init__(self, suggestions=()):
        super().__init__()
        self.suggestions, self.told = list(suggestions), []

    def suggest(self, trial_id):
        return self.suggestions.pop(0) if self.suggestions else None

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told.append((trial_id, result and result["val_accuracy"], error))


def point(rate: float, optimizer=0) -> dict:
    chosen = {"optimizer": optimizer, f"optimizer.{optimizer}.lr": rate}
    return {**chosen, "train.batch_size": 0, "train.accumulate": 2}


@pytest.fixture
def record(monkeypatch):
    """A searcher around a recorder, which it is returned with."""

    def make_with(name="tpe", suggestions=(), past=(), trials=3, **search):
        recorder = Recorder(suggestions)
        asked = []
        monkeypatch.setattr(
            "raysft.search.searchers.make_algorithm",
            lambda name, ask: asked.append(ask) or recorder,
        )
        one = job(name, SPACE, **search)
        recorder.searcher = make_searcher(one, range(trials), known_configurations(one), past)
        recorder.asked = asked[0]
        return recorder

    return make_with


def test_the_best_epoch_counts_and_a_trial_is_told_of_once(record):
    inner = record(suggestions=[point(0.1)])
    suggested = inner.searcher.suggest("a")
    assert suggested["config"]["optimizer"] == {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    inner.searcher.on_trial_result("a", epoch(0.8, 1))
    inner.searcher.on_pause("a")
    inner.searcher.on_trial_result("a", epoch(0.9, 2))
    assert inner.told == [("a", 0.9, False)]
    inner.searcher.on_unpause("a")
    inner.searcher.on_trial_result("a", epoch(0.95, 3))
    inner.searcher.on_trial_complete("a", epoch(0.7, 4))
    assert inner.told == [("a", 0.9, False)]


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_better_is_what_the_metric_says(record, metric):
    inner = record(suggestions=[point(0.1)], metric=metric)
    inner.searcher.suggest("a")
    for number, value in enumerate((0.5, 0.9, 0.7, float("nan")), start=1):
        inner.searcher.on_trial_result("a", epoch(value, number) | {metric: value})
    inner.searcher.on_trial_complete("a")
    assert inner.told == [("a", 0.9 if metric == "val_accuracy" else 0.5, False)]


def test_a_trial_that_failed_or_has_no_epoch_is_a_failure(record):
    inner = record(suggestions=[point(0.1), point(0.2), point(0.3)])
    for name in "abc":
        inner.searcher.suggest(name)
    inner.searcher.on_trial_result("a", epoch(0.5))
    inner.searcher.on_trial_complete("a", epoch(0.5), error=True)
    inner.searcher.on_trial_complete("b")  # stopped before its first epoch
    inner.searcher.on_trial_complete("c", {"trial_status": "stopped"})
    assert inner.told == [("a", None, True), ("b", None, True), ("c", None, True)]


def test_a_searcher_that_waits_for_every_result_gets_the_worst_of_a_failure(record):
    inner = record("ax", [point(0.1), point(0.2), point(0.3)])
    for name in "abc":
        inner.searcher.suggest(name)
    inner.searcher.on_trial_complete("a", error=True)
    assert inner.told == []  # nothing is known yet that could be the worst
    inner.searcher.on_trial_complete("b", epoch(0.4))
    inner.searcher.on_trial_complete("c", epoch(0.6))
    assert inner.told == [("b", 0.4, False), ("a", 0.4, False), ("c", 0.6, False)]


def test_earlier_trials_are_suggested_and_told_again(record):
    old = {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    outside = {"optimizer": {"name": "sgd", "lr": 10.0, "momentum": 0.9}}
    past = [
        (old, "stopped", [epoch(0.5, 1), epoch(0.4, 2)]),
        (outside, "finished", [epoch(0.9)]),
        (old, "diverged", [epoch(0.6)]),
    ]
    inner = record(suggestions=[point(0.1), point(0.1), point(0.2)], past=past)
    assert inner.told == [("past-0", 0.5, False), ("past-1", None, True)]
    assert [p["optimizer.0.lr"] for p in inner.asked.points] == [0.1, 0.1]
    assert inner.asked.seed == 3  # not what was drawn before
    assert inner.searcher.suggest("a")["config"]["optimizer"]["lr"] == 0.2


def test_a_run_that_was_cut_off_in_its_first_trials_draws_others():
    first = make(job(), 4)
    begun = {number: first.suggest(str(number))["config"] for number in range(2)}
    resumed = make(job(), 4, configs=begun)
    again = [resumed.suggest(str(number))["config"] for number in range(4)]
    assert again[:2] == list(begun.values())
    assert not any(config in again[:2] for config in again[2:])


def test_it_waits_while_results_may_come_and_no_longer(record):
    inner = record(suggestions=[point(0.1)])
    inner.searcher.suggest("a")
    for _ in range(2 * MOST_REFUSALS):
        assert inner.searcher.suggest("b") is None
    inner.searcher.on_trial_complete("a", epoch(0.5))
    for _ in range(MOST_REFUSALS):
        assert inner.searcher.suggest("b") is None
    assert not inner.searcher.exhausted
    assert inner.searcher.suggest("b") == Searcher.FINISHED
    assert "tpe suggests nothing more, 2 trials are left" in inner.searcher.exhausted


def test_a_searcher_that_has_enough_ends_the_search(record):
    inner = record(suggestions=[point(0.1), Searcher.FINISHED])
    assert inner.searcher.suggest("a")["number"] == 0
    assert inner.searcher.suggest("b") == Searcher.FINISHED
    assert "tpe suggests nothing more, 2 trials are left" in inner.searcher.exhausted


# --- parameters --------------------------------------------------------------------------------


def test_known_values_have_a_point_only_inside_the_space():
    space = {
        "optimizer": [
            {"name": "sgd", "lr": {"loguniform": [1e-3, 1.0]}, "momentum": 0.9},
            {"name": "adam"},
        ],
        "train.layer_decay": {"uniform": [0.5, 1.0]},
        "train.batch_size": {"choice": [64, 128]},
    }
    parameters = Parameters(job(space=space))
    assert parameters.point({"optimizer": {"name": "sgd", "lr": 0.01}}) == {
        "optimizer": 0,
        "optimizer.0.lr": 0.01,
        "train.layer_decay": 1.0,
        "train.batch_size": 1,
    }
    for outside in (
        {"optimizer": {"name": "sgd", "lr": 2.0}},
        {"optimizer": {"name": "rmsprop"}},
        {"optimizer": {"name": "adam"}, "train.batch_size": 32},
    ):
        assert parameters.point(outside) is None


@pytest.mark.parametrize("exponents", [False, True])
def test_a_configuration_comes_back_from_each_of_its_points(exponents):
    config = {
        "optimizer": {"name": "adam", "lr": pytest.approx(3e-4)},
        "train.batch_size": 128,
        "train.accumulate": 2,
    }
    given = config | {"optimizer": {"name": "adam", "lr": 3e-4}}
    parameters = Parameters(job(), exponents)
    found = parameters.point(given)
    assert parameters.read(found) == config
    assert parameters.read(parameters.flat_point(found)) == config
    assert set(parameters.flat_point(found)) == set(parameters.flat())


# --- what a person reads -----------------------------------------------------------------------


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError) as caught:
        make(job("tpe"), 3)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("search.algorithm: tpe: needs the library optuna")
    assert "pip install 'raysft[optuna]'" in line


def test_a_missing_library_is_known_before_anything_starts(monkeypatch):
    monkeypatch.setattr("raysft.run.preflight.find_spec", lambda name: None)
    for name in set(ALGORITHMS) - PLANNED:
        with pytest.raises(UserError, match="is not installed; pip install") as caught:
            check_algorithm(job(name))
        assert str(caught.value).startswith(f"search.algorithm: {name}: ")
    check_algorithm(Job.model_validate({"search": {}}))
    check_algorithm(Job())


def test_what_a_library_says_of_an_argument_is_one_line():
    pytest.importorskip("optuna")
    with pytest.raises(UserError) as caught:
        make(job("tpe", arguments={"multivariate": False, "group": True}), 3)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("search.algorithm: tpe: ")
    assert "multivariate" in line
