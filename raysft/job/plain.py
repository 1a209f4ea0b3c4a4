"""Values written without quotes: their text is kept until it is known what kind of value their
field takes.

YAML 1.1 reads `no` as false, `12:30` as 750, `007` as 7 and 2024-01-01 as a date, wherever they
stand. Here the field
decides: one that is text takes what is written, one that is a number takes what is a number to a
person.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
BOOLS = {
    form: word in ("true", "yes", "on", "y")
    for word in ("true", "false", "yes", "no", "on", "off", "y", "n")
    for form in (word, word.capitalize(), word.upper())
}

EXACT = 2**53  # up to here every whole number is a float of its own

_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_WITH_BASE = re.compile(r"[-+]?0(x[0-9a-fA-F_]+|o[0-7_]+|b[01_]+)")
_FLOAT = re.compile(
    r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
)
_NO_NUMBER = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


@dataclass(frozen=True)
class Plain:
    """A scalar of a job file without quotes, as written."""

    text: str


def number(text: str) -> int | float | None:
    """The number that a text is, None where it is none or could be two: 017 is 17 to some readers,
    15 to others.
    """
    if _DECIMAL.fullmatch(text):
        return _int(text, 10)
    if _WITH_BASE.fullmatch(text) and text.rstrip("_")[-1] not in "xob":
        return _int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if special := _NO_NUMBER.fullmatch(text):
        return float(f"{special[1] or ''}{special[2] or special[3]}")
    return None


def _int(text: str, base: int) -> int | None:
    try:
        return int(text.replace("_", ""), base)
    except ValueError:  # more digits than Python reads
        return None


def natural(text: str) -> Any:
    """What a plain scalar is where no field says which kind is meant."""
    if text in NULLS:
        return None
    if text in BOOLS and text not in ("y", "Y", "n", "N"):
        return BOOLS[text]
    found = number(text)
    return text if found is None else found


def options_of(annotation: Any) -> list[Any]:
    """The types that a field's annotation allows, without bounds and other metadata."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return options_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [option for part in get_args(annotation) for option in options_of(part)]
    return [annotation]


def words_of(option: Any) -> list[str]:
    """The words that a field with one of a few words takes."""
    return [str(word) for word in get_args(option)] if get_origin(option) is Literal else []


def as_field(plain: Plain, options: Sequence[Any]) -> Any:
    """The value of a plain scalar in a field that takes `options`; what does not fit is left for
    validation to tell.
    """
    text, value = plain.text, natural(plain.text)
    if value is None and NoneType in options:
        return None
    if any(text in words_of(option) for option in options):
        return text
    if bool in options and text in BOOLS:
        return BOOLS[text]
    if int in options or float in options:
        return _whole(value) if float not in options else value
    return text if str in options and value is not None else value


def _whole(value: Any) -> Any:
    """A whole number that is written as a float, 1.0 or 1e3, as the whole number."""
    whole = isinstance(value, float) and abs(value) <= EXACT and value.is_integer()
    return int(value) if whole else value
