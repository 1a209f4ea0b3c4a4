"""Job file to `Job`: YAML, `--set` overrides, and every problem as one line for a person.

Each line says where something is wrong, what it is and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType

import yaml
from pydantic import ValidationError

from raysft.errors import JobError, JobErrors
from raysft.job.mutations import population_problems
from raysft.job.plain import LETTERS, NULLS, PlainScalar, guess_value, union_members
from raysft.job.problems import explain_errors
from raysft.job.read import join_keys, parse_mapping, parse_yaml, printable, read_yaml
from raysft.job.space import search_problems
from raysft.job.spec import Job
from raysft.job.typed import annotation_at, read_scalars
from raysft.job.values import Written

_SPACE = "search.space."


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
    return validate_job(parse_mapping(text, where), where)


def validate_job(tree: Mapping[str, Written], where: str) -> Job:
    """The job of a parsed tree; raises JobErrors.

    Plain scalars are read as the fields take them that they are given to.
    """
    problems: list[JobError] = []
    job: Job | None = None
    read = read_scalars(dict(tree))
    try:
        job = Job.model_validate(read)
    except ValidationError as error:
        for keys, text in explain_errors(error, Job, tree):
            problems.append(JobError(join_keys(where, keys), text))
    search = read.get("search") if isinstance(read, dict) else None
    if isinstance(search, dict):
        # A wrong key elsewhere must not hide those of the search: its values are then tried with
        # the defaults of the other sections.
        for key, text in search_problems(search, job or Job()):
            problems.append(JobError(f"{where}: search.{key}", text))
    if job is not None and not problems:  # a range in a wrong form says nothing about its key
        for key, text in population_problems(job):
            problems.append(JobError(f"{where}: search.{key}", text))
    if problems:
        raise JobErrors(problems)
    assert job is not None  # no problem means that validation passed
    return job


# --- writing -----------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """YAML that every reader reads alike: text that could be something else is quoted."""


_LINE_BREAKS = frozenset("\x85\u2028\u2029")  # beside those that everybody knows


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    ambiguous = not isinstance(guess_value(text), str) or text in LETTERS
    style = "'" if ambiguous else None
    if _LINE_BREAKS & set(text):
        # Double quotes escape them; PyYAML writes others such that a reader folds them to a blank.
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_job(job: Job) -> str:
    """The resolved job as YAML; `load_job` reads it back to an equal job."""
    values = job.model_dump()
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# --- overrides ---------------------------------------------------------------------------------


def apply_override(tree: dict[str, Written], override: str) -> None:
    """Set a dotted key of `tree`, for example `train.optimizer.lr=1e-3`; raises JobError."""
    where = f"--set {printable(override)}"
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise JobError(where, "is not KEY=VALUE", "for example --set train.epochs=2")
    keys = _split_key(dotted)
    section = tree
    for key in keys[:-1]:
        section = _enter_section(section, key, where)
    section[keys[-1]] = _parse_value(text, annotation_at(keys), where)


def _enter_section(tree: dict[str, Written], key: str, where: str) -> dict[str, Written]:
    """The section below a key, made where it is missing or null."""
    inner = tree.get(key)
    if isinstance(inner, PlainScalar):
        inner = guess_value(inner.text)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise JobError(where, f"{key!r} is {inner!r} and has no keys of its own")
    tree[key] = inner
    return inner


def _parse_value(text: str, annotation: object, where: str) -> Written:
    """The value of an override; of a field that only takes text what is written."""
    text_alone = set(union_members(annotation)) <= {str, NoneType}
    stripped = text.strip()
    if not text_alone or stripped in NULLS:
        return parse_yaml(text, where)
    # A path such as `C:\data` or `a: b` is no YAML, and a shell has taken the quotes off already.
    if stripped[:1] not in ("'", '"'):
        return PlainScalar(stripped)
    try:
        value = parse_yaml(text, where)
    except JobError:
        return PlainScalar(stripped)  # begins with a quotation mark, but is not in quotes
    return value if isinstance(value, str) else PlainScalar(stripped)


def _split_key(dotted: str) -> list[str]:
    """The keys on the way to a field; those of the search space hold dots themselves."""
    if dotted.startswith(_SPACE):
        return ["search", "space", dotted.removeprefix(_SPACE)]
    return dotted.split(".")
