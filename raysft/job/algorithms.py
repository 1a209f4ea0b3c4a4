"""The searchers of Ray Tune that a job can name, and their arguments, known without importing Tune.

Importing ray.tune takes seconds, and `raysft plan` answers without it. A test compares this table
with the signatures of the classes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias, get_args

from pydantic import JsonValue

AlgorithmName = Literal[
    "random",
    "grid",
    "tpe",
    "hyperopt",
    "bohb",
    "ax",
    "nevergrad",
    "hebo",
    "bayesopt",
]

ArgumentKind: TypeAlias = Literal["number", "whole", "switch", "text", "list", "section"]

_KINDS: dict[ArgumentKind, tuple[tuple[type, ...], str]] = {
    "number": ((int, float), "a number"),
    "whole": ((int,), "a whole number"),
    "switch": ((bool,), "true or false"),
    "text": ((str,), "text"),
    "list": ((list,), "a list"),
    "section": ((dict,), "a section with keys of its own"),
}


class AlgorithmInfo(NamedTuple):
    """What is known of an algorithm."""

    arguments: dict[str, ArgumentKind]
    """Of the class that proposes, but for what raysft gives it: space, metric, seed, points."""
    libraries: tuple[str, ...] = ()
    """The modules it needs."""
    install: str = ""
    """What pip installs them by; empty where nothing is needed."""


# A new searcher of Tune is one entry here, its name above, and a line in `raysft.search.searchers`.
ALGORITHMS: dict[str, AlgorithmInfo] = {
    "random": AlgorithmInfo({}),
    "grid": AlgorithmInfo({}),
    # Of optuna.samplers.TPESampler, the sampler that OptunaSearch is given.
    "tpe": AlgorithmInfo(
        {
            "n_startup_trials": "whole",
            "n_ei_candidates": "whole",
            "multivariate": "switch",
            "group": "switch",
            "constant_liar": "switch",
        },
        ("optuna",),
        "'raysft[optuna]'",
    ),
    "hyperopt": AlgorithmInfo(
        {"n_initial_points": "whole", "gamma": "number"}, ("hyperopt",), "'raysft[hyperopt]'"
    ),
    "bohb": AlgorithmInfo(
        {"bohb_config": "section"}, ("hpbandster", "ConfigSpace"), "'raysft[bohb]'"
    ),
    "ax": AlgorithmInfo(
        {"parameter_constraints": "list", "outcome_constraints": "list"},
        ("ax",),
        "'raysft[ax]'",
    ),
    "nevergrad": AlgorithmInfo(
        {"optimizer": "text", "optimizer_kwargs": "section"}, ("nevergrad",), "'raysft[nevergrad]'"
    ),
    # Its newest version wants a numpy older than raysft's, so there is no extra.
    "hebo": AlgorithmInfo({"max_concurrent": "whole"}, ("hebo",), "--no-deps HEBO"),
    "bayesopt": AlgorithmInfo(
        {
            "utility_kwargs": "section",
            "random_search_steps": "whole",
            "patience": "whole",
            "skip_duplicate": "switch",
            "repeat_float_precision": "whole",
        },
        ("bayes_opt",),
        "'raysft[bayesopt]'",
    ),
}
assert tuple(ALGORITHMS) == get_args(AlgorithmName)

PLANNED = frozenset({"random", "grid"})
"""Those that propose nothing by what came out: all configurations are known before any trial."""


def wrong_argument(algorithm: str, argument: str, value: JsonValue) -> str | None:
    """What is wrong with an argument of an algorithm, or None."""
    known = ALGORITHMS[algorithm].arguments
    if not known:
        return f"{algorithm} takes no arguments, got {argument}"
    if argument not in known:
        close = difflib.get_close_matches(argument, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
        return f"{algorithm} has no argument {argument}; {hint}"
    types, words = _KINDS[known[argument]]
    # true is an int to Python, not to a person
    mistaken = isinstance(value, bool) and bool not in types
    if mistaken or not isinstance(value, types) or not _is_finite(value):
        return f"{argument} of {algorithm} is {value!r}, must be {words}"
    return None


def _is_finite(value: JsonValue) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    inner: Iterable[JsonValue] = ()
    if isinstance(value, list):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    return all(_is_finite(each) for each in inner)
