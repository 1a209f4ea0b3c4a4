"""The search space of a job: what may be searched, what is wrong with a space, how many
combinations it has.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from raysft.job.describe import fields
from raysft.job.optimizers import NAMES, lr_range
from raysft.job.problems import did_you_mean, problems_of, shown
from raysft.job.ranges import FORMS, check_range, is_range, values_to_check
from raysft.job.recipe import Augment, Optimizer, Schedule, Train
from raysft.job.section import Section
from raysft.job.spec import Job, Model

# Sections that a space may hold a list of: each alternative takes the place of the whole section.
SECTIONS: dict[str, type[Section]] = {
    "optimizer": Optimizer,
    "train.schedule": Schedule,
    "train.augment": Augment,
    "model": Model,
}

# Searching these would move what trials are compared by, or is written elsewhere.
NOT_SEARCHABLE = {
    "train.epochs": "all trials are compared at the same number of epochs",
    "train.optimizer": "use the key `optimizer`, a list of optimizers",
    "train.optimizer.name": "use the key `optimizer`, a list of optimizers",
}

Space = Mapping[str, Any]
Problem = tuple[str, str]


class TrialSettings(Section):
    """What a trial's configuration may change."""

    model: Model
    train: Train


def trial_settings(job: Job, config: Mapping[str, Any]) -> TrialSettings:
    """The network and recipe of a trial: the job's, with the configuration in their place.

    Raises pydantic's ValidationError for a configuration that is none.
    """
    return TrialSettings.model_validate(_tree(job, config))


def _tree(job: Job, config: Mapping[str, Any]) -> dict[str, Any]:
    return _placed({"model": job.model.model_dump(), "train": job.train.model_dump()}, config)


def with_usual_ranges(space: Space) -> dict[str, Any]:
    """A space in which an optimizer that is only named has its usual range of learning rates."""
    options = space.get("optimizer")
    if not isinstance(options, list):
        return dict(space)
    return {**space, "optimizer": [_with_rate(option) for option in options]}


def _with_rate(option: Any) -> Any:
    known = isinstance(option, str) and option in NAMES
    return {"name": option, "lr": {"loguniform": lr_range(option)}} if known else option


def job_key(key: str) -> str:
    """Where a key of a space lies in the job file."""
    return "train.optimizer" if key == "optimizer" else key


def _placed(tree: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the value of every dotted key of `config` in its place."""
    tree = copy.deepcopy(tree)
    for key, value in config.items():
        *parents, last = job_key(key).split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


# --- counting ----------------------------------------------------------------------------------


def count_trials(job: Job) -> int:
    """Trials of a job: 1 without a search, whole passes over the combinations of a grid, at least
    one.

    Where nothing is drawn at random, more than one pass would train the same again. Configurations
    to start with are of the number where they stand in for random ones, and come on top of a grid.
    """
    if job.search is None:
        return 1
    combinations, has_grid, has_random = grid_size(job.search.space)
    known = len(job.search.start_with)
    if not has_random:
        return combinations + known
    whole = combinations * max(1, job.search.trials // combinations)
    return whole + known if has_grid else max(job.search.trials, known)


def grid_size(space: Space) -> tuple[int, bool, bool]:
    """(combinations of alternatives and grids, whether there is a grid, whether anything is drawn
    at random).
    """
    space = with_usual_ranges(space)
    combinations, ranges = 1, []
    for value in space.values():
        options = value if isinstance(value, list) else [{"": value}]
        held = [[v for v in option.values() if is_range(v)] for option in options]
        combinations *= sum(math.prod(len(r["grid"]) for r in rs if "grid" in r) for rs in held)
        ranges += [r for rs in held for r in rs]
    return combinations, any("grid" in r for r in ranges), any("grid" not in r for r in ranges)


# --- problems ----------------------------------------------------------------------------------


def searchable() -> list[str]:
    """Every key that a search space may hold."""
    known = [
        f.key
        for section, prefix in ((Train, "train."), (Model, "model."))
        for f in fields(section, prefix)
    ]
    return [*SECTIONS, *(key for key in known if key not in NOT_SEARCHABLE)]


def search_problems(search: Mapping[str, Any], job: Job) -> Iterator[Problem]:
    """(key below `search`, what is wrong) for its space and for the configurations it is to start
    with.
    """
    if isinstance(search.get("space"), Mapping):
        yield from ((f"space.{key}", what) for key, what in space_problems(search["space"], job))
    known = search.get("start_with")
    for i, config in enumerate(known if isinstance(known, list) else []):
        if isinstance(config, Mapping):
            yield from (
                (f"start_with.{i}{key}", what) for key, what in _config_problems(config, job)
            )


def space_problems(space: Space, job: Job) -> Iterator[Problem]:
    """(key, what is wrong) for every range that names no field or leaves the field's bounds."""
    if not space:
        yield (
            "optimizer",
            f"the space is empty; give a list of optimizers or train.* keys with {FORMS}",
        )
    for key, value in space.items():
        if not isinstance(key, str):
            continue  # told by the model
        if key in SECTIONS:
            yield from _alternatives_problems(key, with_usual_ranges({key: value})[key], job)
        elif key in NOT_SEARCHABLE:
            yield key, f"cannot be searched: {NOT_SEARCHABLE[key]}"
        elif (above := _above(key, space)) is not None:
            yield (
                key,
                f"stands beside the key `{above}`, which has its own; put the range into its list",
            )
        elif key not in searchable() and not key.startswith("train.optimizer."):
            yield key, f"is not a field that can be searched{did_you_mean(key, searchable())}"
        elif (
            wrong := check_range(value) if is_range(value) else f"got {shown(value)}, give {FORMS}"
        ) is not None:
            yield key, wrong
        else:
            yield from (
                (key, what) for what in _range_problems(key, value, job, _first_values(space))
            )


def _above(key: str, space: Space) -> str | None:
    """The section of `key` that the space has alternatives of."""
    for section in SECTIONS:
        if section in space and key.startswith(f"{job_key(section)}."):
            return section
    return None


def _range_problems(key: str, value: Any, job: Job, others: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the values of a range, beside a first value of each of the `others`."""
    for probe in values_to_check(value):
        alone, beside = (
            recipe_problems(job, {key: probe}),
            recipe_problems(job, {**others, key: probe}),
        )
        if alone and beside:
            yield from alone
            return


def recipe_problems(job: Job, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the network and recipe of a trial; empty where nothing is."""
    try:
        trial_settings(job, config)
    except ValidationError as error:
        return [what for _, what in problems_of(error, TrialSettings, _tree(job, config))]
    return []


def _first_values(space: Space) -> dict[str, Any]:
    """A first value of every range that is well formed."""
    return {
        key: values_to_check(value)[0]
        for key, value in space.items()
        if key in searchable() and is_range(value) and check_range(value) is None
    }


def _alternatives_problems(key: str, options: Any, job: Job) -> Iterator[Problem]:
    kind = "optimizer" if key == "optimizer" else f"alternative of {key}"
    example = "{name: sgd, lr: 0.01}" if key == "optimizer" else "{name: ...}"
    if not isinstance(options, list) or not options:
        some = "optimizers" if key == "optimizer" else "alternatives"
        yield key, f"got {shown(options)}, give a list of {some} such as [{example}]"
        return
    for i, option in enumerate(options):
        if not isinstance(option, dict):
            yield f"{key}.{i}", f"got {shown(option)}, give an {kind} such as {example}"
        elif key == "optimizer" and not isinstance(option.get("name"), str):
            yield f"{key}.{i}.name", "an optimizer of the list needs its name"
        else:
            found = list(_alternative_problems(f"{key}.{i}", option, SECTIONS[key]))
            whole = {} if found else {key: {k: values_to_check(v)[0] for k, v in option.items()}}
            yield from found or ((f"{key}.{i}", what) for what in recipe_problems(job, whole))


def _alternative_problems(
    key: str, option: dict[str, Any], section: type[BaseModel]
) -> Iterator[Problem]:
    """Problems of the constants together, then of each value that a range may take beside them."""
    constants = {k: v for k, v in option.items() if not is_range(v)}
    ranges = {k: v for k, v in option.items() if is_range(v)}
    malformed = {k: wrong for k, v in ranges.items() if (wrong := check_range(v)) is not None}
    yield from ((f"{key}.{k}", wrong) for k, wrong in malformed.items())
    probes = {k: values_to_check(v) for k, v in ranges.items() if k not in malformed}
    usual = {k: values[0] for k, values in probes.items()}
    found = list(_section_problems(key, constants | usual, section))
    for field, values in probes.items():
        for probe in values[1:]:
            if found:
                break
            found = list(_section_problems(key, constants | usual | {field: probe}, section))
    yield from found


def _section_problems(
    key: str, values: dict[str, Any], section: type[BaseModel]
) -> Iterator[Problem]:
    try:
        section.model_validate(values)
    except ValidationError as error:
        yield from (
            (".".join([key, *loc]), what) for loc, what in problems_of(error, section, values)
        )


def _config_problems(config: Mapping[str, Any], job: Job) -> Iterator[Problem]:
    found: list[str] = []
    for key in config:
        if key in NOT_SEARCHABLE and key != "train.optimizer":
            yield f".{key}", f"cannot be searched: {NOT_SEARCHABLE[key]}"
        elif key not in searchable() and not str(key).startswith("train.optimizer."):
            yield (
                f".{key}",
                f"is not a field that can be searched{did_you_mean(str(key), searchable())}",
            )
        elif not found:
            found = recipe_problems(job, {key: config[key]})
            yield from ((f".{key}", what) for what in found)
    if not found and all(isinstance(key, str) for key in config):
        yield from (("", what) for what in recipe_problems(job, config))
