"""The table of algorithms says what the classes behind the names take."""

import inspect

import pytest

from raysft.job.algorithms import ALGORITHMS, PLANNED

# What raysft gives, or what no YAML can hold.
OURS = {
    "self", "space", "metric", "mode", "points_to_evaluate", "evaluated_rewards",
    "seed", "random_state_seed", "random_state", "analysis", "ax_client",
    "verbose", "kwargs", "ax_kwargs",
}  # fmt: skip
# Would leave teams idle: a run has no more trials at a time than teams.
LIMITS = {"bohb": {"max_concurrent"}}


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - PLANNED - {"tpe"}))
def test_arguments_are_those_of_tunes_class(name):
    from ray.tune.search import SEARCH_ALG_IMPORT

    taken = set(inspect.signature(SEARCH_ALG_IMPORT[name]().__init__).parameters)
    assert set(ALGORITHMS[name].arguments) == taken - OURS - LIMITS.get(name, set())


def test_arguments_of_tpe_are_those_of_optunas_sampler():
    optuna = pytest.importorskip("optuna")
    taken = set(inspect.signature(optuna.samplers.TPESampler.__init__).parameters)
    assert set(ALGORITHMS["tpe"].arguments) <= taken
