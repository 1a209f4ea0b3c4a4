"""A job file's tree with every plain scalar as the kind of value that its field takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from raysft.job.optimizers import OPTIMIZERS
from raysft.job.plain import Plain, as_field, options_of
from raysft.job.ranges import LISTED, is_range
from raysft.job.recipe import Optimizer
from raysft.job.space import SECTIONS, TrialSettings, job_key
from raysft.job.spec import Job, Search

_ARGUMENTS = {argument for _, arguments in OPTIMIZERS.values() for argument in arguments}
_ARGUMENT = (
    bool | float | list[float | None] | None
)  # which of these, the optimizer's own check tells


def typed(node: Any, annotation: Any = Job) -> Any:
    """A copy of `node` without any `Plain`, read as the value of a field with `annotation`."""
    options = options_of(annotation)
    if isinstance(node, Plain):
        return as_field(node, options)
    if isinstance(node, list):
        item = next((get_args(option)[0] for option in options if get_origin(option) is list), Any)
        return [typed(each, item) for each in node]
    if isinstance(node, dict):
        section = next(
            (o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None
        )
        return {key: _field(section, key, value) for key, value in node.items()}
    return node


def annotation_at(keys: list[str]) -> Any:
    """The annotation of the field of a job that dotted keys lead to; Any where there is none."""
    annotation: Any = Job
    for key in keys:
        section = next(
            (o for o in options_of(annotation) if isinstance(o, type) and issubclass(o, BaseModel)),
            None,
        )
        annotation = _annotation(section, key)
    return annotation


def _annotation(section: type[BaseModel] | None, key: str) -> Any:
    field = section.model_fields.get(key) if section is not None else None
    if field is not None:
        return field.annotation
    return _ARGUMENT if section is Optimizer and key in _ARGUMENTS else Any


def _field(section: type[BaseModel] | None, key: str, value: Any) -> Any:
    if section is Search and key == "space" and isinstance(value, dict):
        return {name: _searched(name, ranges) for name, ranges in value.items()}
    if section is Search and key == "start_with" and isinstance(value, list):
        return [_configuration(config) for config in value]
    return typed(value, _annotation(section, key))


# --- the search --------------------------------------------------------------------------------


def _recipe_annotation(key: str) -> Any:
    """The annotation of a dotted key of a search space."""
    annotation: Any = TrialSettings
    for part in job_key(key).split("."):
        annotation = _annotation(annotation if isinstance(annotation, type) else None, part)
    return annotation


def _searched(key: str, value: Any) -> Any:
    """The value of a key of a search space: a range, or a list of alternatives that may hold
    ranges.
    """
    if key in SECTIONS and isinstance(value, list):
        return [_alternative(SECTIONS[key], option) for option in value]
    return _range(value, _recipe_annotation(key))


def _alternative(section: type[BaseModel], option: Any) -> Any:
    if isinstance(option, Plain):
        return as_field(option, [str])
    if not isinstance(option, dict):
        return typed(option, section)
    return {key: _range(value, _annotation(section, key)) for key, value in option.items()}


def _range(value: Any, annotation: Any) -> Any:
    """A range with its ends or its values as the field takes them; a constant likewise."""
    if not is_range(value):
        return typed(value, annotation)
    kinds: Mapping[str, Any] = {"int": list[int], "uniform": list[float], "loguniform": list[float]}
    return {
        kind: typed(held, list[annotation] if kind in LISTED else kinds.get(kind, Any))
        for kind, held in value.items()
    }


def _configuration(config: Any) -> Any:
    if not isinstance(config, dict):
        return typed(config, Any)
    return {key: typed(value, _recipe_annotation(key)) for key, value in config.items()}
