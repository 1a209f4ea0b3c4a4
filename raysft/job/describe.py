"""The job file described from its models: a JSON Schema for editors, one line a field for
people.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from raysft.job.spec import Job


@dataclass(frozen=True)
class Field:
    """One key of the job file, dotted; its default as YAML would show it."""

    key: str
    default: str
    meaning: str


def json_schema() -> dict[str, Any]:
    """JSON Schema of the job file, for editors to complete and check it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Job.model_json_schema()


def fields(section: type[BaseModel] = Job, prefix: str = "") -> Iterator[Field]:
    """Every field of the job file in the order of its sections."""
    for name, field in section.model_fields.items():
        nested = section_of(field.annotation)
        if nested is not None:
            yield from fields(nested, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield Field(prefix + name, _shown(default), " ".join((field.description or "").split()))


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section a field holds, also where it may be left out."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def markdown() -> str:
    """The fields as the rows of the README's table."""
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    rows += [
        f"| `{f.key}` | {f'`{f.default}`' if f.default else ''} | {_escaped(f.meaning)} |"
        for f in fields()
    ]
    return "\n".join(rows)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(default: Any) -> str:
    """A default that fits in a cell; long ones and those that depend on other fields are told in
    the meaning.
    """
    shown = "" if default is PydanticUndefined else json.dumps(default)
    return shown.strip('"') if len(shown) <= 20 else ""
