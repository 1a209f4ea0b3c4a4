"""The optimizers of torch.optim: their arguments, known without importing torch; a test compares
them with torch's.

Left out are LBFGS (it evaluates a batch many times), SparseAdam (sparse gradients alone) and Muon
(matrices alone); of the arguments `maximize`, which would raise the loss, and those that only
matter inside CUDA graphs or for gradients of the optimizer itself.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal

Kind = Literal["number", "bool", "pair"]

LEFT_OUT = frozenset({"lbfgs", "sparseadam", "muon"})
ARGUMENTS_LEFT_OUT = frozenset(
    {"params", "lr", "weight_decay", "maximize", "capturable", "differentiable"}
)

_ADAM: dict[str, Kind] = {
    "betas": "pair",
    "eps": "number",
    "amsgrad": "bool",
    "foreach": "bool",
    "fused": "bool",
}

# name: (default learning rate of a job, {argument: kind})
OPTIMIZERS: dict[str, tuple[float, dict[str, Kind]]] = {
    "sgd": (
        0.01,
        {
            "momentum": "number",
            "dampening": "number",
            "nesterov": "bool",
            "foreach": "bool",
            "fused": "bool",
        },
    ),
    "adam": (1e-3, {**_ADAM, "decoupled_weight_decay": "bool"}),
    "adamw": (1e-3, _ADAM),
    "rmsprop": (
        1e-3,
        {
            "alpha": "number",
            "eps": "number",
            "momentum": "number",
            "centered": "bool",
            "foreach": "bool",
        },
    ),
    "adafactor": (0.01, {"beta2_decay": "number", "eps": "pair", "d": "number", "foreach": "bool"}),
    "adadelta": (1.0, {"rho": "number", "eps": "number", "foreach": "bool"}),
    "adagrad": (
        0.01,
        {
            "lr_decay": "number",
            "initial_accumulator_value": "number",
            "eps": "number",
            "foreach": "bool",
            "fused": "bool",
        },
    ),
    "adamax": (2e-3, {"betas": "pair", "eps": "number", "foreach": "bool"}),
    "asgd": (0.01, {"lambd": "number", "alpha": "number", "t0": "number", "foreach": "bool"}),
    "nadam": (
        2e-3,
        {
            "betas": "pair",
            "eps": "number",
            "momentum_decay": "number",
            "decoupled_weight_decay": "bool",
            "foreach": "bool",
        },
    ),
    "radam": (
        1e-3,
        {"betas": "pair", "eps": "number", "decoupled_weight_decay": "bool", "foreach": "bool"},
    ),
    "rprop": (0.01, {"etas": "pair", "step_sizes": "pair", "foreach": "bool"}),
}
NAMES = tuple(OPTIMIZERS)
WITHOUT_DECAY = frozenset({"rprop"})

# What a search tries where the job gives no learning rate: a decade and a half around the usual
# one.
LR_RANGES: dict[str, list[float]] = {
    "sgd": [1e-3, 1e-1],
    "adam": [1e-5, 3e-3],
    "adamw": [1e-5, 3e-3],
    "rmsprop": [1e-5, 3e-3],
}


# What torch refuses when the optimizer is made, besides momentum, betas and the like.
BOUNDS = {
    ("adafactor", "d"): (1.0, math.inf),
    ("adafactor", "beta2_decay"): (-math.inf, 0.0),
    ("nadam", "momentum_decay"): (0.0, math.inf),
    ("adagrad", "lr_decay"): (0.0, math.inf),
    ("adagrad", "initial_accumulator_value"): (0.0, math.inf),
}


def lr_range(name: str) -> list[float]:
    """[lowest, highest] learning rate that a search tries by default."""
    usual = OPTIMIZERS[name][0]
    return LR_RANGES.get(name, [usual / 30, usual * 3])


def wrong_argument(name: str, argument: str, value: Any) -> str | None:
    """What is wrong with an argument of an optimizer, or None."""
    known = OPTIMIZERS[name][1]
    if argument not in known:
        close = difflib.get_close_matches(argument, ["lr", "weight_decay", *known], n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        return (
            f"{name} has no {argument}{meant}; it has {', '.join(['lr', 'weight_decay', *known])}"
        )
    kind = known[argument]
    if kind == "bool":
        return (
            None if isinstance(value, bool) else f"{argument} must be true or false, got {value!r}"
        )
    numbers = value if kind == "pair" and isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in numbers):
        return (
            f"{argument} must be {'a list of two numbers' if kind == 'pair' else 'a number'}, "
            f"got {value!r}"
        )
    if kind == "pair" and len(numbers) != 2:
        return f"{argument} must be a list of two numbers, got {value!r}"
    if argument in ("momentum", "rho", "betas", "alpha") and not all(0 <= v < 1 for v in numbers):
        return f"{argument} must be at least 0 and less than 1, got {value!r}"
    low, high = BOUNDS.get((name, argument), (-math.inf, math.inf))
    if not all(low <= v <= high for v in numbers):
        return (
            f"{argument} must be {'at least' if value < low else 'at most'} "
            f"{low if value < low else high:g}, "
            f"got {value!r}"
        )
    if argument == "etas" and not 0 < numbers[0] < 1 < numbers[1]:
        return f"etas must be one number below 1 and one above, got {value!r}"
    if argument == "eps" and not all(v >= 0 for v in numbers):
        return f"{argument} must not be negative, got {value!r}"
    return None
