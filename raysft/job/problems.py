"""What pydantic found wrong, in words: what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raysft.job.describe import section_in
from raysft.job.plain import (
    LEADING_ZERO,
    PlainScalar,
    guess_value,
    literal_words,
    parse_number,
    union_members,
)

LONGEST = 80  # letters of a value that are shown

Path: TypeAlias = tuple[int | str, ...]
"""Keys, and numbers of list items, from the top of a job to a value."""

# pydantic's own texts speak of Python's types: "Input should be a valid dictionary".
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "a section with keys of its own",
    "dict_type": "a section with keys of its own",
    "finite_number": "a finite number",
}
_TYPE_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_MISSING = object()  # None is a value of a job file
_OCTAL_DIGITS = frozenset("01234567")


class Problem(NamedTuple):
    """One thing that is wrong: the keys of the field, and what to say of it."""

    keys: tuple[str, ...]
    text: str


class _Error(NamedTuple):
    """One of pydantic's errors, with the part of its location that the job file has."""

    path: Path
    details: ErrorDetails


def explain_errors(
    error: ValidationError, root: type[BaseModel], tree: object
) -> Iterator[Problem]:
    """The errors of a validation of `tree` as a `root`, one for each field.

    Where a field may be several things, pydantic has an error for each of them, at locations that
    are in no file: they are one problem here.
    """
    for field, errors in _by_field(error, tree).items():
        # The error that lies deepest belongs to the kind of value that was meant.
        deepest = max(errors, key=lambda each: len(each.path))
        given = format_value(_as_written(tree, deepest))
        inside = len(deepest.path) > len(field)
        allowed = "" if inside or len(errors) == 1 else _format_allowed(root, field)
        if allowed:
            yield Problem(field, f"got {given}, must be {allowed}")
        else:
            keys = tuple(str(key) for key in deepest.path)
            yield Problem(keys, explain_error(deepest.details, root, deepest.path, given))


def _by_field(error: ValidationError, tree: object) -> dict[tuple[str, ...], list[_Error]]:
    fields: dict[tuple[str, ...], list[_Error]] = {}
    for details in error.errors(include_url=False):
        path, length = _locate(details["loc"], tree)
        field = tuple(str(key) for key in path[:length])
        fields.setdefault(field, []).append(_Error(path, details))
    return fields


def _locate(loc: Path, tree: object) -> tuple[Path, int]:
    """The keys of `loc` that `tree` has, and how many come before the first that it has not.

    pydantic puts the name of a type, such as `list[str]`, between the keys of a union's error.
    """
    path: list[int | str] = []
    length: int | None = None
    for key in loc:
        inner = _child(tree, key)
        if inner is not _MISSING:
            tree = inner
            path.append(key)
        elif length is None:
            length = len(path)
    return tuple(path), len(path) if length is None else length


def _as_written(tree: object, error: _Error) -> object:
    """The wrong value as the file has it, if it is a scalar there; else as pydantic got it."""
    for key in error.path:
        tree = _child(tree, key)
    return tree if isinstance(tree, PlainScalar) else error.details["input"]


def _child(tree: object, key: int | str) -> object:
    if isinstance(tree, dict):
        return tree.get(key, _MISSING)
    if isinstance(tree, list) and isinstance(key, int):
        return tree[key]
    return _MISSING


def format_value(value: object) -> str:
    """A value of a job file as a message shows it."""
    text = _format_whole(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _format_whole(value: object) -> str:
    if isinstance(value, PlainScalar):
        # Text gets quotes in a message, numbers and switches stay as they were written.
        if isinstance(guess_value(value.text), str):
            return repr(value.text)
        return value.text or "nothing"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def explain_error(details: ErrorDetails, root: type[BaseModel], path: Path, given: str) -> str:
    """One of the errors of a validation as a `root`, without the `path` to where it is."""
    kind = details["type"]
    if kind == "extra_forbidden":
        return f"is not a key{did_you_mean(str(path[-1]), _keys_at(root, path[:-1]))}"
    if kind == "value_error":
        return str(details["ctx"]["error"])  # raised by a validator of ours, in our words
    if kind in _KINDS:
        or_null = " or null" if type(None) in _members_at(root, path) else ""
        allowed = f"must be {_KINDS[kind]}{or_null}"
    else:
        allowed = re.sub(r"^\w+ should ", "must ", details["msg"])
        allowed = allowed.replace(" after validation", "")
    allowed = allowed[0].lower() + allowed[1:]
    return f"got {given}, {allowed}{_how_to_write(kind, details['input'])}"


def _how_to_write(kind: str, given: object) -> str:
    """How to write what was probably meant."""
    if kind == "string_type" and given is None:
        return "; leave the key out for its default, or put the text in quotes"
    if kind not in ("int_type", "float_type") or not isinstance(given, str):
        return ""
    if LEADING_ZERO.fullmatch(given):
        digits = given.replace("_", "").lstrip("+-0") or "0"
        octal = f", or 0o{digits} for an octal number" if set(digits) <= _OCTAL_DIGITS else ""
        return f"; write {digits}{octal}"
    if parse_number(given) is not None:
        return f"; write {given} without quotes"
    # Half of the world writes decimals with a comma.
    with_point = given.replace(",", ".")
    if given.count(",") == 1 and parse_number(with_point) is not None:
        return f"; write {with_point} with a point"
    return ""


def _format_allowed(root: type[BaseModel], field: Sequence[str]) -> str:
    """In words, what a field takes that may be several things; empty where there is no field."""
    return " or ".join(_format_type(member) for member in _members_at(root, field))


def _members_at(root: type[BaseModel], field: Sequence[int | str]) -> list[object]:
    """The types that a field may have; none where there is no such field."""
    if not field:
        return []
    section = _section_at(root, field[:-1])
    known = section.model_fields.get(str(field[-1])) if section else None
    return union_members(known.annotation) if known else []


def _format_type(member: object) -> str:
    words = literal_words(member)
    if words:
        return ", ".join(words)
    if get_origin(member) is list:
        (item,) = get_args(member)
        items = " or ".join(_format_type(part) for part in union_members(item))
        return f"a list of {items}"
    return _TYPE_NAMES.get(member, "a section with keys of its own")


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """The closest of the `known` names as a hint, or all of them."""
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _keys_at(root: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section that `path` leads to."""
    section = _section_at(root, path)
    return list(section.model_fields) if section else []


def _section_at(root: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    section = root
    for key in path:
        field = section.model_fields.get(str(key))
        nested = section_in(field.annotation) if field else None
        if nested is None:
            return None
        section = nested
    return section
