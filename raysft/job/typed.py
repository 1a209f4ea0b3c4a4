"""A job file's tree with every plain scalar read as the kind of value that its field takes."""

from __future__ import annotations

from typing import TypeAlias, get_args, get_origin

from pydantic import BaseModel, JsonValue

from raysft.job.describe import section_in
from raysft.job.optimizers import OPTIMIZERS
from raysft.job.plain import PlainScalar, read_as, union_members
from raysft.job.ranges import LISTED, is_range
from raysft.job.recipe import Optimizer
from raysft.job.space import SECTIONS, TrialSettings, job_key
from raysft.job.spec import Job, Search
from raysft.job.values import Written

Annotation: TypeAlias = object
"""A field's type as pydantic keeps it; there is no common class of such objects."""

UNKNOWN: Annotation = object
"""Stands for the type of a key that is not a field: its scalars are read as they look."""

_ARGUMENTS = {argument for _, arguments in OPTIMIZERS.values() for argument in arguments}
# Which of these an argument takes depends on the optimizer, whose own check says so.
_ARGUMENT: Annotation = bool | float | list[float | None] | None

_INTERVAL_ENDS: dict[str, Annotation] = {
    "int": list[int],
    "uniform": list[float],
    "loguniform": list[float],
}


def read_scalars(tree: Written, annotation: Annotation = Job) -> JsonValue:
    """A copy of `tree`, each `PlainScalar` read as the value of its field."""
    if isinstance(tree, PlainScalar):
        return read_as(tree, union_members(annotation))
    if isinstance(tree, list):
        item = _item_annotation(annotation)
        return [read_scalars(each, item) for each in tree]
    if isinstance(tree, dict):
        section = section_in(annotation)
        return {key: _read_field(section, key, value) for key, value in tree.items()}
    return tree


def annotation_at(keys: list[str]) -> Annotation:
    """The annotation of the field of a job that keys lead to; UNKNOWN where there is none."""
    return _annotation_below(Job, keys)


def _annotation_below(annotation: Annotation, keys: list[str]) -> Annotation:
    for key in keys:
        annotation = _field_annotation(section_in(annotation), key)
    return annotation


def _item_annotation(annotation: Annotation) -> Annotation:
    for member in union_members(annotation):
        if get_origin(member) is list:
            return get_args(member)[0]
    return UNKNOWN


def _field_annotation(section: type[BaseModel] | None, key: str) -> Annotation:
    field = section.model_fields.get(key) if section is not None else None
    if field is not None:
        return field.annotation
    return _ARGUMENT if section is Optimizer and key in _ARGUMENTS else UNKNOWN


def _read_field(section: type[BaseModel] | None, key: str, value: Written) -> JsonValue:
    # The two fields whose keys are names of other fields.
    if section is Search and key == "space" and isinstance(value, dict):
        return {name: _read_searched(name, ranges) for name, ranges in value.items()}
    if section is Search and key == "start_with" and isinstance(value, list):
        return [_read_config(config) for config in value]
    return read_scalars(value, _field_annotation(section, key))


# --- the search --------------------------------------------------------------------------------


def _searched_annotation(key: str) -> Annotation:
    """The annotation of a dotted key of a search space."""
    return _annotation_below(TrialSettings, job_key(key).split("."))


def _read_searched(key: str, value: Written) -> JsonValue:
    """The value of a key of a search space: a range, or a list of alternatives."""
    if key in SECTIONS and isinstance(value, list):
        return [_read_alternative(SECTIONS[key], option) for option in value]
    return _read_range(value, _searched_annotation(key))


def _read_alternative(section: type[BaseModel], option: Written) -> JsonValue:
    if isinstance(option, PlainScalar):
        return read_as(option, [str])  # the name of an optimizer, without keys of its own
    if not isinstance(option, dict):
        return read_scalars(option, section)
    return {
        key: _read_range(value, _field_annotation(section, key)) for key, value in option.items()
    }


def _read_range(value: Written, annotation: Annotation) -> JsonValue:
    """A range with its ends or its values as the field takes them; a constant likewise."""
    if not isinstance(value, dict) or not is_range(value):
        return read_scalars(value, annotation)
    read: dict[str, JsonValue] = {}
    for kind, held in value.items():
        if kind in LISTED and isinstance(held, list):
            read[kind] = [read_scalars(each, annotation) for each in held]
        else:
            read[kind] = read_scalars(held, _INTERVAL_ENDS.get(kind, UNKNOWN))
    return read


def _read_config(config: Written) -> JsonValue:
    if not isinstance(config, dict):
        return read_scalars(config, UNKNOWN)
    return {key: read_scalars(value, _searched_annotation(key)) for key, value in config.items()}
