"""The optimizers of torch.optim and their arguments, known without importing torch.

Importing torch takes seconds, and `raysft plan` answers without it. A test compares this table with
torch's own signatures.
"""

from __future__ import annotations

import difflib
import math
from typing import Literal, NamedTuple

ArgumentKind = Literal["number", "bool", "pair"]


class OptimizerInfo(NamedTuple):
    """What is known of an optimizer."""

    default_lr: float
    """The learning rate of a job that gives none."""
    arguments: dict[str, ArgumentKind]


# LBFGS evaluates a batch many times, SparseAdam takes sparse gradients alone, Muon matrices alone.
LEFT_OUT = frozenset({"lbfgs", "sparseadam", "muon"})
# `maximize` would raise the loss; `capturable` matters inside CUDA graphs only, `differentiable`
# for gradients of the optimizer itself. The first three are given by other keys, or by the network.
ARGUMENTS_LEFT_OUT = frozenset(
    {"params", "lr", "weight_decay", "maximize", "capturable", "differentiable"}
)

_ADAM: dict[str, ArgumentKind] = {
    "betas": "pair",
    "eps": "number",
    "amsgrad": "bool",
    "foreach": "bool",
    "fused": "bool",
}

# A new optimizer of torch is one entry here and its name in `raysft.job.recipe.OptimizerName`.
OPTIMIZERS: dict[str, OptimizerInfo] = {
    "sgd": OptimizerInfo(
        0.01,
        {
            "momentum": "number",
            "dampening": "number",
            "nesterov": "bool",
            "foreach": "bool",
            "fused": "bool",
        },
    ),
    "adam": OptimizerInfo(1e-3, {**_ADAM, "decoupled_weight_decay": "bool"}),
    "adamw": OptimizerInfo(1e-3, _ADAM),
    "rmsprop": OptimizerInfo(
        1e-3,
        {
            "alpha": "number",
            "eps": "number",
            "momentum": "number",
            "centered": "bool",
            "foreach": "bool",
        },
    ),
    "adafactor": OptimizerInfo(
        0.01, {"beta2_decay": "number", "eps": "pair", "d": "number", "foreach": "bool"}
    ),
    "adadelta": OptimizerInfo(1.0, {"rho": "number", "eps": "number", "foreach": "bool"}),
    "adagrad": OptimizerInfo(
        0.01,
        {
            "lr_decay": "number",
            "initial_accumulator_value": "number",
            "eps": "number",
            "foreach": "bool",
            "fused": "bool",
        },
    ),
    "adamax": OptimizerInfo(2e-3, {"betas": "pair", "eps": "number", "foreach": "bool"}),
    "asgd": OptimizerInfo(
        0.01, {"lambd": "number", "alpha": "number", "t0": "number", "foreach": "bool"}
    ),
    "nadam": OptimizerInfo(
        2e-3,
        {
            "betas": "pair",
            "eps": "number",
            "momentum_decay": "number",
            "decoupled_weight_decay": "bool",
            "foreach": "bool",
        },
    ),
    "radam": OptimizerInfo(
        1e-3,
        {"betas": "pair", "eps": "number", "decoupled_weight_decay": "bool", "foreach": "bool"},
    ),
    "rprop": OptimizerInfo(0.01, {"etas": "pair", "step_sizes": "pair", "foreach": "bool"}),
}
NAMES = tuple(OPTIMIZERS)
WITHOUT_DECAY = frozenset({"rprop"})  # it takes the sign of a gradient, which decay would only blur

# What a search tries where the job gives no learning rate: two decades or so around the usual one.
LR_RANGES: dict[str, list[float]] = {
    "sgd": [1e-3, 1e-1],
    "adam": [1e-5, 3e-3],
    "adamw": [1e-5, 3e-3],
    "rmsprop": [1e-5, 3e-3],
}


# What torch refuses when the optimizer is made.
FRACTIONS = frozenset({"momentum", "rho", "betas", "alpha"})  # at least 0 and less than 1
BOUNDS = {
    ("adafactor", "d"): (1.0, math.inf),
    ("adafactor", "beta2_decay"): (-math.inf, 0.0),
    ("nadam", "momentum_decay"): (0.0, math.inf),
    ("adagrad", "lr_decay"): (0.0, math.inf),
    ("adagrad", "initial_accumulator_value"): (0.0, math.inf),
}


def lr_range(name: str) -> list[float]:
    """[lowest, highest] learning rate that a search tries by default."""
    if name in LR_RANGES:
        return LR_RANGES[name]
    usual = OPTIMIZERS[name].default_lr
    # Further down than up: too high a rate diverges, too low a one only learns slowly.
    return [usual / 30, usual * 3]


def wrong_argument(name: str, argument: str, value: object) -> str | None:
    """What is wrong with an argument of an optimizer, or None."""
    known = OPTIMIZERS[name].arguments
    if argument not in known:
        return _unknown_argument(name, argument)
    kind = known[argument]
    if kind == "bool":
        right = isinstance(value, bool)
        return None if right else f"{argument} must be true or false, got {value!r}"
    numbers = _numbers(value, kind)
    if numbers is None:
        needed = "a list of two numbers" if kind == "pair" else "a number"
        return f"{argument} must be {needed}, got {value!r}"
    return _out_of_bounds(name, argument, value, numbers)


def _unknown_argument(name: str, argument: str) -> str:
    known = ["lr", "weight_decay", *OPTIMIZERS[name].arguments]
    close = difflib.get_close_matches(argument, known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{name} has no {argument}{meant}; it has {', '.join(known)}"


def _numbers(value: object, kind: ArgumentKind) -> list[float] | None:
    """The numbers that an argument is given; None where it is given anything else."""
    given = value if kind == "pair" else [value]
    if not isinstance(given, list):
        return None
    numbers = [v for v in given if isinstance(v, (int, float)) and not isinstance(v, bool)]
    needed = 2 if kind == "pair" else 1
    return numbers if len(numbers) == len(given) == needed else None


def _out_of_bounds(name: str, argument: str, value: object, numbers: list[float]) -> str | None:
    """What torch would refuse of numbers, or train nonsense with."""
    if argument in FRACTIONS and not all(0 <= v < 1 for v in numbers):
        return f"{argument} must be at least 0 and less than 1, got {value!r}"
    low, high = BOUNDS.get((name, argument), (-math.inf, math.inf))
    if any(v < low for v in numbers):
        return f"{argument} must be at least {low:g}, got {value!r}"
    if not all(v <= high for v in numbers):  # which no .nan is
        return f"{argument} must be at most {high:g}, got {value!r}"
    # rprop shrinks a step by the first and grows it by the second.
    if argument == "etas" and not 0 < numbers[0] < 1 < numbers[1]:
        return f"etas must be one number below 1 and one above, got {value!r}"
    if argument == "eps" and not all(v >= 0 for v in numbers):
        return f"{argument} must not be negative, got {value!r}"
    return None
