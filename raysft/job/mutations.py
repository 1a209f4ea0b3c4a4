"""What population-based training may change while a trial trains, of all that a space holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from raysft.job.optimizers import OPTIMIZERS
from raysft.job.ranges import Interval, Listed, Range, parse_range
from raysft.job.rungs import perturbation_interval
from raysft.job.space import SpaceProblem, count_trials, with_usual_ranges
from raysft.job.spec import Job, Search
from raysft.job.values import Config

LEAST_TRIALS = 2
_EXAMPLE = "give a range to the learning rate, for example optimizer: [sgd]"

# What every step reads anew. All else is part of a network, of an optimizer's state or of how an
# epoch is cut into batches, which a checkpoint of another trial brings with it.
_SECTIONS = ("train.schedule", "train.augment")
_KEYS = ("train.clip_norm", "train.label_smoothing", "train.class_weights")
_OPTIMIZER = ("optimizer", "train.optimizer")
# Accumulated from the start on.
_STARTS_A_STATE = "initial_accumulator_value"


def may_change(key: str) -> bool:
    """Whether the value of a dotted key of a space may change in the middle of a trial."""
    section, _, name = key.rpartition(".")
    if section in _OPTIMIZER:
        return name in _optimizer_values()
    return key in _KEYS or section in _SECTIONS


def _optimizer_values() -> set[str]:
    """The arguments of optimizers that each step takes: numbers, and pairs of them."""
    names = {"lr", "weight_decay"}
    for optimizer in OPTIMIZERS.values():
        names |= {name for name, kind in optimizer.arguments.items() if kind != "bool"}
    return names - {_STARTS_A_STATE}


def ranges_in(space: Mapping[str, JsonValue]) -> Iterator[tuple[str, Range]]:
    """Every well-formed range of a space by its dotted key, those inside of alternatives too."""
    for key, value in space.items():
        if not isinstance(value, list):
            given = parse_range(value)
            if given is not None:
                yield key, given
            continue
        for option in value:
            if isinstance(option, dict):
                yield from _ranges_of(key, option)


def _ranges_of(section: str, option: Config) -> Iterator[tuple[str, Range]]:
    for name, value in option.items():
        given = parse_range(value)
        if given is not None:
            yield f"{section}.{name}", given


def population_problems(job: Job) -> Iterator[SpaceProblem]:
    """What is wrong with a job whose scheduler changes trials, and whose space is well formed."""
    search = job.search
    if search is None or not search.scheduler.changes_trials:
        return
    name, space = search.scheduler.name, with_usual_ranges(search.space)
    found = list(ranges_in(space))
    if not found:
        yield SpaceProblem("space", f"{name} has nothing to change; {_EXAMPLE}")
        return
    for key, given in found:
        wrong = _range_problem(key, given, name)
        if wrong is not None:
            yield SpaceProblem(f"space.{key}", wrong)
    if name == "pb2":
        yield from _alternatives_problems(space)
    yield from _size_problems(job, search)


def _range_problem(key: str, given: Range, scheduler: str) -> str | None:
    if not may_change(key):
        return (
            f"cannot change while a trial trains, which {scheduler} wants; give it one value, or "
            "search it with another scheduler"
        )
    # Without decay an optimizer has its parameters in other groups, and so has its checkpoint.
    if key.endswith("weight_decay") and isinstance(given, Listed) and 0 in given.values:
        return "0 cannot change while a trial trains: it has no decay; give a small number instead"
    if scheduler == "pb2" and not isinstance(given, Interval):
        return "pb2 chooses numbers between two ends; give {uniform: [a, b]}, or take pbt"
    return None


def _alternatives_problems(space: Config) -> Iterator[SpaceProblem]:
    """pb2 models the values that all trials have."""
    for key, value in space.items():
        if isinstance(value, list) and len(value) > 1 and list(ranges_in({key: value})):
            text = f"pb2 needs the same ranges in all trials, not {len(value)} alternatives"
            yield SpaceProblem(f"space.{key}", f"{text}; give one, or take pbt")


def _size_problems(job: Job, search: Search) -> Iterator[SpaceProblem]:
    """A population of one, or one that is never compared, would learn nothing."""
    if search.confirm:
        text = "trains one configuration again, and those of a population change; leave it at 0"
        yield SpaceProblem("confirm", text)
    if count_trials(job) < LEAST_TRIALS:
        text = f"{search.scheduler.name} compares trials; give at least {LEAST_TRIALS}"
        yield SpaceProblem("trials", text)
    interval = perturbation_interval(search.scheduler, job.train.epochs)
    if interval >= job.train.epochs:
        text = (
            f"is {interval}, and trials end after {job.train.epochs} epochs: they would never be "
            "compared; lower it or raise train.epochs"
        )
        yield SpaceProblem("scheduler.perturbation_interval", text)
