"""Job file to `Job`: YAML, `--set` overrides, and every problem as one line that says where, what and what to do."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from raysft.errors import JobError, JobErrors
from raysft.job.describe import fields, section_of
from raysft.job.ranges import FORMS, check_range, is_range, values_to_check
from raysft.job.spec import Job, Optimizer, Train

# Searching these would move what trials are compared by, or is written elsewhere.
NOT_SEARCHABLE = {"train.epochs": "all trials are compared at the same number of epochs",
                  "train.optimizer": "use the key `optimizer`, a list of optimizers",
                  "train.optimizer.name": "use the key `optimizer`, a list of optimizers"}


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
    if isinstance(search, Mapping) and isinstance(search.get("space"), Mapping):
        base = (job.train if job else Train()).model_dump()
        found = space_problems(search["space"], base)
        problems += [JobError(f"{where}: search.space.{key}", what) for key, what in found]
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
    where = f"--set {override}"
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


# --- the search space ------------------------------------------------------------------------------------------------

def space_problems(space: Mapping[str, Any], base_train: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) for every range that names no field or leaves the field's bounds."""
    if not space:
        yield "optimizer", f"the space is empty; give a list of optimizers or train.* keys with {FORMS}"
    for key, value in space.items():
        if not isinstance(key, str):
            continue  # told by the model
        if key == "optimizer":
            yield from _optimizer_problems(value)
        elif key in NOT_SEARCHABLE:
            yield key, f"cannot be searched: {NOT_SEARCHABLE[key]}"
        elif key.startswith("train.optimizer.") and "optimizer" in space:
            yield key, "stands beside the key `optimizer`, which has its own; put the range into its list"
        elif not key.startswith("train."):
            yield key, f"is not a field that can be searched{_did_you_mean(key, searchable())}"
        elif (wrong := check_range(value) if is_range(value) else f"got {value!r}, give {FORMS}") is not None:
            yield key, wrong
        else:
            yield from ((key, what) for what in _field_problems(key, value, base_train))


def searchable() -> list[str]:
    """Every key that a search space may hold."""
    return ["optimizer", *(f.key for f in fields(Train, "train.") if f.key not in NOT_SEARCHABLE)]


def _optimizer_problems(options: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(options, list) or not options:
        yield "optimizer", f"got {options!r}, give a list of optimizers such as [{{name: sgd, lr: 0.01}}]"
        return
    for i, option in enumerate(options):
        key = f"optimizer.{i}"
        if not isinstance(option, dict):
            yield key, f"got {option!r}, give an optimizer such as {{name: sgd, lr: 0.01}}"
            continue
        if not isinstance(option.get("name"), str):
            yield f"{key}.name", "an optimizer of the list needs its name"
            continue
        constants = {k: v for k, v in option.items() if not is_range(v)}
        yield from _option_problems(key, constants, shown=option)
        for field, value in option.items():
            if not is_range(value):
                continue
            if (wrong := check_range(value)) is not None:
                yield f"{key}.{field}", wrong
                continue
            for probe in values_to_check(value):
                found = [p for p in _option_problems(key, {"name": option["name"], field: probe}, shown=option)
                         if p not in _option_problems(key, {"name": option["name"]}, shown=option)]
                yield from found
                if found:
                    break


def _option_problems(key: str, option: dict[str, Any], shown: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        Optimizer.model_validate(option)
    except ValidationError as error:
        return [(".".join([key, *map(str, e["loc"])]), _what(e, Optimizer, list(e["loc"]))) for e in error.errors()]
    return []


def _field_problems(key: str, value: Any, base_train: Mapping[str, Any]) -> Iterator[str]:
    _, *path = key.split(".")
    if key not in [f.key for f in fields(Train, "train.")]:
        yield f"is not a field that can be searched{_did_you_mean(key, searchable())}"
        return
    for probe in values_to_check(value):
        tree: dict[str, Any] = copy.deepcopy(dict(base_train))
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = probe
        try:
            Train.model_validate(tree)
        except ValidationError as error:
            yield from (_what(e, Train, list(e["loc"])) for e in error.errors())
            return


# --- problems as lines -----------------------------------------------------------------------------------------------

def _problem(where: str, tree: Any, error: Any) -> JobError:
    loc = list(error["loc"])
    return JobError(": ".join(filter(None, [where, ".".join(map(str, loc))])), _what(error, Job, loc))


def _what(error: Any, root: type[BaseModel], loc: list[Any]) -> str:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"is not a key{_did_you_mean(str(loc[-1]), _keys_at(root, loc[:-1]))}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    allowed = re.sub(r"^Input should be ", "must be ", error["msg"])
    allowed = allowed.replace("a valid dictionary or instance of", "a mapping, the section").replace("a valid ", "a ")
    allowed = allowed.replace("a integer", "an integer")
    return f"got {given!r}, {allowed[0].lower()}{allowed[1:]}"


def _did_you_mean(given: str, known: Sequence[str]) -> str:
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
