"""Ranges of a search space as they are written in a job file: {loguniform: [a, b]} and its like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from pydantic import JsonValue

IntervalKind = Literal["loguniform", "uniform", "int"]
ListedKind = Literal["choice", "grid"]
INTERVALS: tuple[IntervalKind, ...] = get_args(IntervalKind)
LISTED: tuple[ListedKind, ...] = get_args(ListedKind)
FORMS = "{loguniform: [a, b]}, {uniform: [a, b]}, {int: [a, b]}, {choice: [...]} or {grid: [...]}"


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; of `int` the whole ones."""

    kind: IntervalKind
    low: int | float
    high: int | float


@dataclass(frozen=True)
class Listed:
    """Values of a list: `choice` draws one of them, `grid` tries each."""

    kind: ListedKind
    values: tuple[JsonValue, ...]


Range: TypeAlias = Interval | Listed


def is_range(value: object) -> bool:
    """Whether a value of the job file is meant as a range and not as a constant."""
    return isinstance(value, Mapping) and any(kind in value for kind in (*INTERVALS, *LISTED))


def parse_range(value: JsonValue) -> Range | None:
    """The range that a value is, None for a constant; raises ValueError for one in a wrong form."""
    if not isinstance(value, dict) or not is_range(value):
        return None
    if len(value) != 1:
        raise ValueError(f"a range has one key, one of {FORMS}")
    for listed in LISTED:
        if listed in value:
            return _parse_listed(listed, value[listed])
    for interval in INTERVALS:
        if interval in value:
            return _parse_interval(interval, value[interval])
    return None


def _parse_listed(kind: ListedKind, values: JsonValue) -> Listed:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{kind} needs a list with at least one value")
    return Listed(kind, tuple(values))


def _parse_interval(kind: IntervalKind, ends: JsonValue) -> Interval:
    numbers = _two_numbers(ends, whole=kind == "int")
    if numbers is None:
        needed = "whole numbers" if kind == "int" else "numbers"
        raise ValueError(f"{kind} needs two {needed}, [lowest, highest]")
    low, high = numbers
    if low >= high:
        raise ValueError(f"{kind} needs its lower end first, got {ends}")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"loguniform needs ends greater than 0, got {ends}")
    return Interval(kind, low, high)


def _two_numbers(ends: JsonValue, whole: bool) -> tuple[int | float, int | float] | None:
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    numbers: list[int | float] = []
    for end in ends:
        # true is an int to Python, not to a person
        if isinstance(end, bool) or not isinstance(end, (int, float)):
            return None
        if whole and isinstance(end, float):
            return None
        numbers.append(end)
    return numbers[0], numbers[1]


def check_range(value: JsonValue) -> str | None:
    """What is wrong with the form of a range, or None."""
    try:
        parse_range(value)
    except ValueError as error:
        return str(error)
    return None


def values_to_check(value: JsonValue) -> list[JsonValue]:
    """The values to validate in place of a well-formed range; a constant stands for itself.

    All that are listed, or the two ends and, of a continuous range, a number between them.
    """
    parsed = parse_range(value)
    if parsed is None:
        return [value]
    if isinstance(parsed, Listed):
        return list(parsed.values)
    if parsed.kind == "int":
        return [parsed.low, parsed.high]
    # Two whole ends would pass for a field of whole numbers, which the range then would not give:
    # a third of the way or so lies a value that is not whole, whatever the ends.
    between = parsed.low + (parsed.high - parsed.low) / math.pi
    return [parsed.low, parsed.high, between]
