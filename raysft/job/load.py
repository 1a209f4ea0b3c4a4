"""Job file to `Job`: YAML, `--set` overrides, and every problem as one line that says where, what and what to do."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raysft.errors import JobError, JobErrors
from raysft.job.problems import what_is_wrong
from raysft.job.space import search_problems
from raysft.job.spec import Job


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
    return validate_job(_mapping(text, where), where)


def validate_job(tree: Mapping[str, Any], where: str) -> Job:
    """The job of a parsed tree; raises JobErrors."""
    problems: list[JobError] = []
    job = None
    try:
        job = Job.model_validate(tree)
    except ValidationError as error:
        problems += [_problem(where, tree, e) for e in error.errors()]
    search = tree.get("search")
    if isinstance(search, Mapping):
        problems += [JobError(f"{where}: search.{key}", what) for key, what in search_problems(search, job or Job())]
    if problems:
        raise JobErrors(problems)
    assert job is not None  # no problem means that validation passed
    return job


def dump_job(job: Job) -> str:
    """The resolved job as YAML; `load_job` reads it back to an equal job."""
    return yaml.safe_dump(job.model_dump(), sort_keys=False, allow_unicode=True)


# --- YAML ------------------------------------------------------------------------------------------------------------

class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                problem = f"the key {key!r} is " + ("given twice" if isinstance(key, Hashable) else "not a name")
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
                              list("-+0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises JobError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobError(str(path), "no such job file", "give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(str(path), f"cannot be read ({error})") from None
    return _mapping(text, str(path))


def _mapping(text: str, where: str) -> dict[str, Any]:
    tree = _parse(text, where)
    if not isinstance(tree, dict):
        raise JobError(where, "is not a job: a mapping of keys is expected", "see jobs/quickstart.yaml")
    return tree


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobError(f"{where}{line}", f"is not valid YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise JobError(where, f"is not valid YAML ({' '.join(str(error).split())})") from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set a dotted key of `tree`, for example `train.optimizer.lr=1e-3`; raises JobError."""
    where = f"--set {override if override.isprintable() else repr(override)}"
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise JobError(where, "is not KEY=VALUE", "for example --set train.epochs=2")
    *parents, last = _keys_of(dotted)
    node = tree
    for key in parents:
        child = node.get(key)
        child = {} if child is None else child
        if not isinstance(child, dict):
            raise JobError(where, f"{key!r} is {child!r} and has no keys of its own")
        node[key] = child
        node = child
    node[last] = _parse(text, where)


def _keys_of(dotted: str) -> list[str]:
    """The keys on the way to a field; those of the search space hold dots themselves."""
    space = "search.space."
    return ["search", "space", dotted.removeprefix(space)] if dotted.startswith(space) else dotted.split(".")


# --- problems as lines -----------------------------------------------------------------------------------------------

def _problem(where: str, tree: Any, error: Any) -> JobError:
    loc = list(error["loc"])
    return JobError(": ".join(filter(None, [where, ".".join(map(str, loc))])), what_is_wrong(error, Job, loc))
