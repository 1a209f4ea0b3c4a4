"""The job file described from its models: a JSON Schema for editors, a table for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, JsonValue
from pydantic_core import PydanticUndefined

from raysft.job.plain import union_members
from raysft.job.spec import Job

LONGEST_DEFAULT = 20  # letters that a cell of the table has room for


@dataclass(frozen=True)
class Field:
    """One key of the job file, dotted; its default as YAML would show it."""

    key: str
    default: str
    meaning: str


def json_schema() -> dict[str, JsonValue]:
    """JSON Schema of the job file, for editors to complete and check it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Job.model_json_schema()


def fields(section: type[BaseModel] = Job, prefix: str = "") -> Iterator[Field]:
    """Every field of the job file in the order of its sections."""
    for name, field in section.model_fields.items():
        nested = section_in(field.annotation)
        if nested is not None:
            yield from fields(nested, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        # Docstrings are wrapped where the code is, a cell of the table is one line.
        meaning = " ".join((field.description or "").split())
        yield Field(prefix + name, _format_default(default), meaning)


def section_in(annotation: object) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be left out."""
    for member in union_members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def markdown() -> str:
    """The fields as a table, which stands in jobs/README.md."""
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for field in fields():
        default = f"`{field.default}`" if field.default else ""
        meaning = field.meaning.replace("|", "\\|")  # a bar would end the cell
        rows.append(f"| `{field.key}` | {default} | {meaning} |")
    return "\n".join(rows)


def _format_default(default: object) -> str:
    """A default that fits in a cell, or nothing.

    Long ones, and those that depend on other fields, are part of a field's meaning.
    """
    if default is PydanticUndefined:
        return ""
    text = json.dumps(default)
    return text.strip('"') if len(text) <= LONGEST_DEFAULT else ""
