"""Values written without quotes: text, until it is known what kind of value their field takes.

YAML 1.1 reads `no` as false, `12:30` as 750, `007` as 7 and 2024-01-01 as a date, wherever they
stand. Here the field decides: one that is text takes what is written, one that is a number takes
what is a number to a person.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import JsonValue

Scalar = str | bool | int | float | None

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = ("true", "yes", "on", "y")
_FALSE = ("false", "no", "off", "n")
# YAML 1.1 knows three spellings of each word, but not `tRUE`.
BOOLS = {
    form: word in _TRUE
    for word in (*_TRUE, *_FALSE)
    for form in (word, word.capitalize(), word.upper())
}
# PyYAML reads these as text, other readers as true and false.
LETTERS = frozenset({"y", "Y", "n", "N"})

EXACT = 2**53  # up to here every whole number is a float of its own

# A number that begins with 0 is left out: 017 is 17 in YAML 1.2 and 15 in YAML 1.1.
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_WITH_BASE = re.compile(r"[-+]?0(x[0-9a-fA-F_]+|o[0-7_]+|b[01_]+)")
# Wider than PyYAML's, which takes 1e-3 for text because it has no point.
_FLOAT = re.compile(
    r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
)
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


@dataclass(frozen=True)
class PlainScalar:
    """A scalar of a job file without quotes, as written; "plain" is YAML's word for it."""

    text: str


def parse_number(text: str) -> int | float | None:
    """The number that a text is; None where it is none, or could be two, as 017 could."""
    if _DECIMAL.fullmatch(text):
        return _parse_int(text, 10)
    # `0x_` matches the pattern, but has no digit behind its base.
    if _WITH_BASE.fullmatch(text) and text.rstrip("_")[-1] not in "xob":
        return _parse_int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    special = _NOT_FINITE.fullmatch(text)
    if special is None:
        return None
    sign = special[1] or ""
    return float(sign + (special[2] or special[3]))


def _parse_int(text: str, base: int) -> int | None:
    try:
        return int(text.replace("_", ""), base)
    except ValueError:  # more digits than Python reads
        return None


def guess_value(text: str) -> Scalar:
    """What a plain scalar is where no field says which kind is meant."""
    if text in NULLS:
        return None
    # A single letter is a name more often than an answer.
    if text in BOOLS and text not in LETTERS:
        return BOOLS[text]
    number = parse_number(text)
    return text if number is None else number


def union_members(annotation: object) -> list[object]:
    """The types that a field's annotation allows, without bounds and other metadata."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return union_members(get_args(annotation)[0])
    # `Union[a, b]` and `a | b` are objects of two kinds before Python 3.14.
    if origin not in (Union, UnionType):
        return [annotation]
    members: list[object] = []
    for part in get_args(annotation):
        members += union_members(part)
    return members


def literal_words(member: object) -> list[str]:
    """The words of a field that takes one of a few; none for any other field."""
    if get_origin(member) is not Literal:
        return []
    return [str(word) for word in get_args(member)]


def read_as(plain: PlainScalar, members: Sequence[object]) -> JsonValue:
    """The value of a plain scalar in a field whose type is one of `members`.

    What fits none of them comes back as it reads alone, and validation says what is wrong with it.
    """
    text = plain.text
    value = guess_value(text)
    if value is None and NoneType in members:
        return None
    # Words come before switches: `none` and `off` may be values of a field.
    if any(text in literal_words(member) for member in members):
        return text
    if bool in members and text in BOOLS:
        return BOOLS[text]
    if float in members:
        return value
    if int in members:
        return _as_int(value)
    if str in members and value is not None:
        return text
    return value


def _as_int(value: Scalar) -> Scalar:
    """A whole number that is written as a float, 1.0 or 1e3, as the whole number."""
    if not isinstance(value, float) or not value.is_integer():
        return value
    return int(value) if abs(value) <= EXACT else value
