"""Job file to `Job`: YAML, `--set` overrides, and every problem as one line that says where, what
and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from pydantic import ValidationError

from raysft.errors import JobError, JobErrors
from raysft.job.plain import NULLS, Plain, natural, options_of
from raysft.job.problems import problems_of
from raysft.job.read import mapping, parse, read_yaml
from raysft.job.space import search_problems
from raysft.job.spec import Job
from raysft.job.typed import annotation_at, typed


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The validated job of a job file with `KEY=VALUE` overrides applied.

    Raises JobErrors with every problem found, each naming file, key, value and what is allowed.
    """
    tree = read_yaml(Path(path))
    for override in overrides:
        apply_override(tree, override)
    return validate_job(tree, str(path))


def load_text(text: str, where: str) -> Job:
    """The validated job of a stored job.yaml; raises JobError."""
    return validate_job(mapping(text, where), where)


def validate_job(tree: Mapping[str, Any], where: str) -> Job:
    """The job of a parsed tree, whose plain scalars are read as their fields take them; raises
    JobErrors.
    """
    problems: list[JobError] = []
    job = None
    read = typed(tree)
    try:
        job = Job.model_validate(read)
    except ValidationError as error:
        problems += [
            JobError(": ".join(filter(None, [where, ".".join(map(_key, loc))])), what)
            for loc, what in problems_of(error, Job, tree)
        ]
    search = read.get("search")
    if isinstance(search, Mapping):
        problems += [
            JobError(f"{where}: search.{key}", what)
            for key, what in search_problems(search, job or Job())
        ]
    if problems:
        raise JobErrors(problems)
    assert job is not None  # no problem means that validation passed
    return job


# --- writing -----------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """YAML that every reader reads alike: text that could be something else is quoted."""


_BREAKS = frozenset("\x85\u2028\u2029")  # of lines, beside those that everybody knows


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    ambiguous = not isinstance(natural(text), str) or text in ("y", "Y", "n", "N")
    style = "'" if ambiguous else None
    if _BREAKS & set(text):
        style = (
            '"'  # which escapes them; PyYAML writes others such that a reader folds them to a blank
        )
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump_job(job: Job) -> str:
    """The resolved job as YAML; `load_job` reads it back to an equal job."""
    return yaml.dump(job.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# --- overrides ---------------------------------------------------------------------------------


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set a dotted key of `tree`, for example `train.optimizer.lr=1e-3`; raises JobError."""
    where = f"--set {override if override.isprintable() else repr(override)}"
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise JobError(where, "is not KEY=VALUE", "for example --set train.epochs=2")
    *parents, last = keys = _keys_of(dotted)
    node = tree
    for key in parents:
        child = node.get(key)
        child = natural(child.text) if isinstance(child, Plain) else child
        child = {} if child is None else child
        if not isinstance(child, dict):
            raise JobError(where, f"{key!r} is {child!r} and has no keys of its own")
        node[key] = child
        node = child
    node[last] = _given(text, annotation_at(keys), where)


def _key(key: str) -> str:
    """A key as part of one line, whatever it is."""
    return key if key.isprintable() else repr(key)


def _given(text: str, annotation: Any, where: str) -> Any:
    """The value of an override: where its field is text and nothing else, what is written, unless
    in quotes.
    """
    if not set(options_of(annotation)) <= {str, NoneType} or text.strip() in NULLS:
        return parse(text, where)
    if text.strip()[:1] not in ("'", '"'):
        return Plain(text.strip())
    try:
        value = parse(text, where)
    except JobError:
        return Plain(text.strip())
    return value if isinstance(value, str) else Plain(text.strip())


def _keys_of(dotted: str) -> list[str]:
    """The keys on the way to a field; those of the search space hold dots themselves."""
    space = "search.space."
    return (
        ["search", "space", dotted.removeprefix(space)]
        if dotted.startswith(space)
        else dotted.split(".")
    )
