"""The search space of a job: what may be searched, what is wrong with it, how many trials."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError

from raysft.job.describe import fields
from raysft.job.optimizers import NAMES, lr_range
from raysft.job.problems import did_you_mean, explain_errors, format_value
from raysft.job.ranges import FORMS, Listed, check_range, is_range, parse_range, values_to_check
from raysft.job.recipe import Augment, Optimizer, Schedule, Train
from raysft.job.section import Section
from raysft.job.spec import Job, Model
from raysft.job.values import Config, Space

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


class SpaceProblem(NamedTuple):
    """One thing that is wrong in a search: the dotted key below it, and what to say of it."""

    key: str
    text: str


class TrialSettings(Section):
    """What a trial's configuration may change."""

    model: Model
    train: Train


def trial_settings(job: Job, config: Mapping[str, JsonValue]) -> TrialSettings:
    """The network and recipe of a trial: the job's, with the configuration in their place.

    Raises pydantic's ValidationError for a configuration that is none.
    """
    return TrialSettings.model_validate(_settings_tree(job, config))


def _settings_tree(job: Job, config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    tree: dict[str, JsonValue] = {
        "model": job.model.model_dump(),
        "train": job.train.model_dump(),
    }
    for key, value in config.items():
        *parents, last = job_key(key).split(".")
        node: dict[str, JsonValue] = tree
        for parent in parents:
            inner = node.setdefault(parent, {})
            # A configuration may set a section to a number and one of its keys beside it: the
            # section then stays what it was set to, which validation refuses.
            if not isinstance(inner, dict):
                break
            node = inner
        else:
            # Copied: the key of a later entry may lie in this one.
            node[last] = copy.deepcopy(value)
    return tree


def with_usual_ranges(space: Space) -> Config:
    """A space in which an optimizer that is only named has its usual range of learning rates."""
    options = space.get("optimizer")
    if not isinstance(options, list):
        return dict(space)
    return {**space, "optimizer": [_with_rate(option) for option in options]}


def _with_rate(option: JsonValue) -> JsonValue:
    if not isinstance(option, str) or option not in NAMES:
        return option
    low, high = lr_range(option)
    return {"name": option, "lr": {"loguniform": [low, high]}}


def job_key(key: str) -> str:
    """The key in the job file that a key of a space stands for."""
    return "train.optimizer" if key == "optimizer" else key


# --- counting ----------------------------------------------------------------------------------


class GridSize(NamedTuple):
    """How many trials a space asks for by itself."""

    combinations: int
    """Of alternatives and the values of grids."""
    has_grid: bool
    has_random: bool
    """Whether any value is drawn."""


def count_trials(job: Job) -> int:
    """Trials of a job: 1 without a search, whole passes over the combinations of a grid."""
    if job.search is None:
        return 1
    size = grid_size(job.search.space)
    known = len(job.search.start_with)
    # Where nothing is drawn at random, more than one pass would train the same again.
    if not size.has_random:
        return size.combinations + known
    # Configurations to start with stand in for random ones; a grid loses none of its own to them.
    if not size.has_grid:
        return max(job.search.trials, known)
    passes = max(1, job.search.trials // size.combinations)
    return size.combinations * passes + known


def grid_size(space: Space) -> GridSize:
    """The size of a space that is well formed."""
    combinations = 1
    has_grid = has_random = False
    for value in with_usual_ranges(space).values():
        of_this_key = 0
        for option in value if isinstance(value, list) else [{"": value}]:
            of_this_option = 1
            for held in option.values() if isinstance(option, dict) else []:
                parsed = parse_range(held)
                if isinstance(parsed, Listed) and parsed.kind == "grid":
                    of_this_option *= len(parsed.values)
                    has_grid = True
                elif parsed is not None:
                    has_random = True
            of_this_key += of_this_option  # alternatives exclude each other: their trials add up
        combinations *= of_this_key
    return GridSize(combinations, has_grid, has_random)


# --- problems ----------------------------------------------------------------------------------


def searchable() -> list[str]:
    """Every key that a search space may hold."""
    known = [*fields(Train, "train."), *fields(Model, "model.")]
    keys = [field.key for field in known if field.key not in NOT_SEARCHABLE]
    return [*SECTIONS, *keys]


def search_problems(search: Mapping[str, JsonValue], job: Job) -> Iterator[SpaceProblem]:
    """What is wrong with the space of a search and the configurations that it starts with."""
    space = search.get("space")
    if isinstance(space, Mapping):
        for key, text in space_problems(space, job):
            yield SpaceProblem(f"space.{key}", text)
    known = search.get("start_with")
    for i, config in enumerate(known if isinstance(known, list) else []):
        if isinstance(config, Mapping):
            for key, text in _config_problems(config, job):
                yield SpaceProblem(f"start_with.{i}{key}", text)


def space_problems(space: Space, job: Job) -> Iterator[SpaceProblem]:
    """What is wrong with every key that names no field or has a range outside its bounds."""
    if not space:
        text = f"the space is empty; give a list of optimizers or train.* keys with {FORMS}"
        yield SpaceProblem("optimizer", text)
    for key, value in space.items():
        if not isinstance(key, str):
            continue  # which the model refuses
        if key in SECTIONS:
            yield from _alternatives_problems(key, with_usual_ranges({key: value})[key], job)
            continue
        wrong = _key_problem(key, space) or _form_problem(value)
        if wrong is not None:
            yield SpaceProblem(key, wrong)
            continue
        for text in _range_problems(key, value, job, _first_values(space)):
            yield SpaceProblem(key, text)


def _key_problem(key: str, space: Space) -> str | None:
    if key in NOT_SEARCHABLE:
        return f"cannot be searched: {NOT_SEARCHABLE[key]}"
    section = _section_above(key, space)
    if section is not None:
        return f"is part of `{section}`, which is searched as a whole; put the range into its list"
    return _unknown_key(key)


def _unknown_key(key: str) -> str | None:
    # Arguments of an optimizer are no fields of the job: its own check knows them.
    if key in searchable() or key.startswith("train.optimizer."):
        return None
    return f"is not a field that can be searched{did_you_mean(key, searchable())}"


def _form_problem(value: JsonValue) -> str | None:
    return check_range(value) if is_range(value) else f"got {format_value(value)}, give {FORMS}"


def _section_above(key: str, space: Space) -> str | None:
    """The section of `key` that the space has alternatives of."""
    for section in SECTIONS:
        if section in space and key.startswith(f"{job_key(section)}."):
            return section
    return None


def _range_problems(key: str, value: JsonValue, job: Job, others: Config) -> list[str]:
    """What is wrong with the values of a range, beside a first value of each of the `others`."""
    for probe in values_to_check(value):
        # A value may be wrong for the job's own optimizer and right for one that is searched, or
        # the other way round: only what is wrong both times is a problem of this range.
        alone = settings_problems(job, {key: probe})
        if alone and settings_problems(job, {**others, key: probe}):
            return alone
    return []


def settings_problems(job: Job, config: Mapping[str, JsonValue]) -> list[str]:
    """What is wrong with the network and recipe of a trial; empty where nothing is."""
    try:
        trial_settings(job, config)
    except ValidationError as error:
        problems = explain_errors(error, TrialSettings, _settings_tree(job, config))
        return [problem.text for problem in problems]
    return []


def _first_values(space: Space) -> Config:
    """A first value of every range that is well formed."""
    known = searchable()
    first: Config = {}
    for key, value in space.items():
        if key in known and is_range(value) and check_range(value) is None:
            first[key] = values_to_check(value)[0]
    return first


def _alternatives_problems(key: str, options: JsonValue, job: Job) -> Iterator[SpaceProblem]:
    is_optimizer = key == "optimizer"
    example = "{name: sgd, lr: 0.01}" if is_optimizer else "{name: ...}"
    if not isinstance(options, list) or not options:
        some = "optimizers" if is_optimizer else "alternatives"
        text = f"got {format_value(options)}, give a list of {some} such as [{example}]"
        yield SpaceProblem(key, text)
        return
    kind = "optimizer" if is_optimizer else f"alternative of {key}"
    for i, option in enumerate(options):
        place = f"{key}.{i}"
        if not isinstance(option, dict):
            text = f"got {format_value(option)}, give an {kind} such as {example}"
            yield SpaceProblem(place, text)
        elif is_optimizer and not isinstance(option.get("name"), str):
            yield SpaceProblem(f"{place}.name", "an optimizer of the list needs its name")
        else:
            yield from _alternative_problems(key, place, option, job)


def _alternative_problems(key: str, place: str, option: Config, job: Job) -> Iterator[SpaceProblem]:
    found = list(_option_problems(place, option, SECTIONS[key]))
    yield from found
    if found:
        return
    # Right by itself, an alternative may contradict the rest of the job: warm-up and epochs, say.
    whole: Config = {name: values_to_check(value)[0] for name, value in option.items()}
    for text in settings_problems(job, {key: whole}):
        yield SpaceProblem(place, text)


def _option_problems(
    place: str, option: Config, section: type[BaseModel]
) -> Iterator[SpaceProblem]:
    """Problems of the constants together, then of each value that a range may take beside them."""
    constants: Config = {}
    probes: dict[str, list[JsonValue]] = {}
    for name, value in option.items():
        wrong = check_range(value)
        if wrong is not None:
            yield SpaceProblem(f"{place}.{name}", wrong)
        elif is_range(value):
            probes[name] = values_to_check(value)
        else:
            constants[name] = value
    usual = constants | {name: values[0] for name, values in probes.items()}
    found = _section_problems(place, usual, section)
    # Each range is varied alone: all combinations of several would be too many to try.
    for name, values in probes.items():
        for probe in values[1:]:
            found = found or _section_problems(place, {**usual, name: probe}, section)
    yield from found


def _section_problems(place: str, values: Config, section: type[BaseModel]) -> list[SpaceProblem]:
    try:
        section.model_validate(values)
    except ValidationError as error:
        return [
            SpaceProblem(".".join([place, *keys]), text)
            for keys, text in explain_errors(error, section, values)
        ]
    return []


def _config_problems(config: Mapping[str, JsonValue], job: Job) -> Iterator[SpaceProblem]:
    """What is wrong with a configuration to start with; keys begin with a dot."""
    # One wrong value would show in the check of every key: the first is said, and that once.
    found: list[str] = []
    for key, value in config.items():
        wrong = _config_key_problem(str(key))
        if wrong is not None:
            yield SpaceProblem(f".{key}", wrong)
        elif not found:
            found = settings_problems(job, {key: value})
            for text in found:
                yield SpaceProblem(f".{key}", text)
    if not found and all(isinstance(key, str) for key in config):
        for text in settings_problems(job, config):
            yield SpaceProblem("", text)


def _config_key_problem(key: str) -> str | None:
    # What NOT_SEARCHABLE says of `train.optimizer` is of a list, which is not what stands here.
    if key in NOT_SEARCHABLE and key != "train.optimizer":
        return f"cannot be searched: {NOT_SEARCHABLE[key]}"
    return _unknown_key(key)
