"""Types of what stands in a job file: as YAML gives it, and as a `Job` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import JsonValue, SkipValidation, WithJsonSchema

from raysft.job.plain import PlainScalar

Written: TypeAlias = (
    "PlainScalar | str | bool | int | float | list[Written] | dict[str, Written] | None"
)
"""A value of a YAML file, before it is known which kind of value its field takes."""

# pydantic leaves a search space alone: `raysft.job.space` knows which field a key means, and says
# in the words of that field what is wrong.
SpaceValue: TypeAlias = Annotated[JsonValue, SkipValidation(), WithJsonSchema({})]

Space: TypeAlias = Mapping[str, JsonValue]
"""Dotted keys with a range, a constant or a list of alternatives each."""

Config: TypeAlias = dict[str, JsonValue]
"""What a trial changes in its job: {"optimizer": {...}, "train.batch_size": 64}."""
