"""What pydantic found wrong, in words: what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from raysft.job.describe import section_of


def what_is_wrong(error: Any, root: type[BaseModel], loc: list[Any]) -> str:
    """One of the errors of a ValidationError of `root`, without the place `loc` where it is."""
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"is not a key{did_you_mean(str(loc[-1]), _keys_at(root, loc[:-1]))}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    allowed = re.sub(r"^Input should be ", "must be ", error["msg"])
    allowed = allowed.replace("a valid dictionary or instance of", "a mapping, the section").replace("a valid ", "a ")
    allowed = allowed.replace("a integer", "an integer")
    return f"got {given!r}, {allowed[0].lower()}{allowed[1:]}"


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """The closest of the `known` names as a hint, or all of them."""
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _keys_at(root: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Names of the fields of the section that `loc` leads to."""
    model = root
    for key in loc:
        field = model.model_fields.get(str(key))
        nested = section_of(field.annotation) if field else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)
