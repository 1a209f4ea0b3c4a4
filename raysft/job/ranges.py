"""Ranges of a search space as they stand in a job file: {loguniform: [a, b]} and its like."""

from __future__ import annotations

import math
from typing import Any

CONTINUOUS = ("loguniform", "uniform", "int")
LISTED = ("choice", "grid")
FORMS = "{loguniform: [a, b]}, {uniform: [a, b]}, {int: [a, b]}, {choice: [...]} or {grid: [...]}"


def is_range(value: Any) -> bool:
    """Whether a value of the job file is meant as a range and not as a constant."""
    return isinstance(value, dict) and not value.keys().isdisjoint(CONTINUOUS + LISTED)


def check_range(value: dict[str, Any]) -> str | None:
    """What is wrong with the form of a range, or None."""
    if len(value) != 1:
        return f"a range has one key, one of {FORMS}"
    ((kind, bounds),) = value.items()
    if kind in LISTED:
        return (
            None
            if isinstance(bounds, list) and bounds
            else f"{kind} needs a list with at least one value"
        )
    numbers = int if kind == "int" else (int, float)
    pair = isinstance(bounds, list) and len(bounds) == 2
    if not pair or any(isinstance(b, bool) or not isinstance(b, numbers) for b in bounds):
        return (
            f"{kind} needs two {'whole numbers' if kind == 'int' else 'numbers'}, [lowest, highest]"
        )
    if bounds[0] >= bounds[1]:
        return f"{kind} needs its lower end first, got {bounds}"
    if kind == "loguniform" and bounds[0] <= 0:
        return f"loguniform needs ends greater than 0, got {bounds}"
    return None


def values_to_check(value: Any) -> list[Any]:
    """The values that stand for a well-formed range when it is validated: all that are listed, or
    the ends.

    Between the ends of a continuous one lies a value that is no whole number; a constant stands for
    itself.
    """
    if not is_range(value):
        return [value]
    ((kind, bounds),) = value.items()
    if kind in ("loguniform", "uniform"):
        return [*bounds, bounds[0] + (bounds[1] - bounds[0]) / math.pi]
    return list(bounds)
