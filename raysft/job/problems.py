"""What pydantic found wrong, in words: what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from raysft.job.describe import section_of
from raysft.job.plain import LEADING_ZERO, Plain, natural, number, options_of, words_of

LONGEST = 80  # letters of a value that are shown

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
_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def problems_of(
    error: ValidationError, root: type[BaseModel], tree: Any
) -> Iterator[tuple[list[str], str]]:
    """(keys of the field, what is wrong) for each error of a validation of `tree` as a `root`, one
    a field.

    Where a field may be several things, pydantic has an error for each, at places that are in no
    file: they are one here.
    """
    fields: dict[tuple[str, ...], list[tuple[list[Any], Any]]] = {}
    for found in error.errors(include_url=False):
        place, tag = _place(found["loc"], tree)
        fields.setdefault(tuple(map(str, place[:tag])), []).append((place, found))
    for field, errors in fields.items():
        place, found = max(errors, key=lambda each: len(each[0]))
        inner = len(place) > len(field)
        several = len(errors) > 1 and not inner
        given = shown(_written(tree, place, found["input"]))
        if several and (allowed := _allowed(root, field)):
            yield list(field), f"got {given}, must be {allowed}"
        else:
            yield [str(key) for key in place], what_is_wrong(found, root, place, given)


def _place(loc: Sequence[Any], tree: Any) -> tuple[list[Any], int | None]:
    """The keys of `loc` that `tree` has, and how many come before the first that it has not."""
    place: list[Any] = []
    tag = None
    for key in loc:
        if (isinstance(tree, dict) and key in tree) or (
            isinstance(tree, list) and isinstance(key, int)
        ):
            tree = tree[key]
            place.append(key)
        elif tag is None:
            tag = len(place)
    return place, tag


def _written(tree: Any, place: Sequence[Any], given: Any) -> Any:
    """The value as it stands in the file, where it stands there."""
    for key in place:
        tree = tree[key]
    return tree if isinstance(tree, Plain) else given


def shown(value: Any) -> str:
    """A value of a job file as a message shows it."""
    value = (
        natural(value.text)
        if isinstance(value, Plain) and isinstance(natural(value.text), str)
        else value
    )
    if isinstance(value, Plain):
        text = value.text or "nothing"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def what_is_wrong(error: Any, root: type[BaseModel], loc: list[Any], given: str) -> str:
    """One of the errors of a ValidationError of `root`, without the place `loc` where it is."""
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"is not a key{did_you_mean(str(loc[-1]), _keys_at(root, loc[:-1]))}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    allowed = re.sub(r"^\w+ should ", "must ", error["msg"]).replace(" after validation", "")
    if kind in _KINDS:
        allowed = (
            f"must be {_KINDS[kind]}{' or null' if type(None) in _options_at(root, loc) else ''}"
        )
    return f"got {given}, {allowed[0].lower()}{allowed[1:]}{_how_to_write(kind, error['input'])}"


def _how_to_write(kind: str, given: Any) -> str:
    """How to write what was probably meant."""
    if kind == "string_type" and given is None:
        return "; leave the key out for its default, or put the text in quotes"
    if kind not in ("int_type", "float_type") or not isinstance(given, str):
        return ""
    if LEADING_ZERO.fullmatch(given):
        digits = given.replace("_", "").lstrip("+-0") or "0"
        return f"; write {digits}" + (
            f", or 0o{digits} for an octal number" if set(digits) <= set("01234567") else ""
        )
    if number(given) is not None:
        return f"; write {given} without quotes"
    point = given.replace(",", ".")
    return (
        f"; write {point} with a point"
        if given.count(",") == 1 and number(point) is not None
        else ""
    )


def _allowed(root: type[BaseModel], field: Sequence[str]) -> str:
    """In words, what a field takes that may be several things; empty where there is no such
    field.
    """
    return " or ".join(_words(option) for option in _options_at(root, field))


def _options_at(root: type[BaseModel], field: Sequence[Any]) -> list[Any]:
    """The types that a field may have; none where there is no such field."""
    if not field:
        return []
    section = _section_at(root, field[:-1])
    known = section.model_fields.get(str(field[-1])) if section else None
    return options_of(known.annotation) if known else []


def _words(option: Any) -> str:
    if words := words_of(option):
        return ", ".join(words)
    if get_origin(option) is list:
        (item,) = get_args(option)
        return f"a list of {' or '.join(_words(part) for part in options_of(item))}"
    return "null" if option is type(None) else _NAMES.get(option, "a section with keys of its own")


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """The closest of the `known` names as a hint, or all of them."""
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _keys_at(root: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Names of the fields of the section that `loc` leads to."""
    section = _section_at(root, loc)
    return list(section.model_fields) if section else []


def _section_at(root: type[BaseModel], loc: Sequence[Any]) -> type[BaseModel] | None:
    model = root
    for key in loc:
        field = model.model_fields.get(str(key))
        nested = section_of(field.annotation) if field else None
        if nested is None:
            return None
        model = nested
    return model
