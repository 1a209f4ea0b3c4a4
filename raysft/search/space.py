"""A search space to the configurations of its trials: drawn in advance, a function of (seed,
space), or one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from pydantic import JsonValue, ValidationError

from raysft.errors import JobError
from raysft.job import Job
from raysft.job.ranges import Listed, Range, is_range, parse_range
from raysft.job.space import count_trials, settings_problems, trial_settings, with_usual_ranges
from raysft.job.values import Config, Space

Draw = Callable[[str, Range], JsonValue]
"""What becomes of a range, by the dotted key where it stands."""


def configurations(job: Job) -> list[Config]:
    """One configuration a trial: {"optimizer": {...}, "train.batch_size": 64, ...}; [{}] without a
    search.

    Those that the job wants to start with come first. Alternatives take turns, so that each gets
    its share of trials; a grid tries each of its combinations, as often as the trials allow.
    """
    if job.search is None:
        return [{}]
    known: list[Config] = [dict(config) for config in job.search.start_with]
    count = count_trials(job) - len(known)
    cases = _cases(with_usual_ranges(job.search.space))
    rng = np.random.RandomState(job.seed)
    # Shuffled again in each round: with as many trials as fit in half a round, no alternative is
    # always left out.
    turns: list[int] = []
    while len(turns) < count:
        turns += rng.permutation(len(cases)).tolist()
    drawn = [fill(cases[turn], lambda name, given: draw(given, rng)) for turn in turns[:count]]
    return known + drawn


def known_configurations(job: Job) -> dict[int, Config]:
    """Configurations by the numbers of their trials, as far as they are known before any trial has
    run.
    """
    if job.search is None or job.search.algorithm.is_planned:
        return dict(enumerate(configurations(job)))
    # What a searcher proposes depends on how the trials before did.
    known: dict[int, Config] = {}
    for number, config in enumerate(job.search.start_with):
        known[number] = dict(config)
    return known


def check_configurations(job: Job) -> None:
    """Raise JobError for a configuration whose values are right one by one, and wrong together."""
    for number, config in known_configurations(job).items():
        try:
            recipe = trial_settings(job, config)
        except ValidationError:
            wrong = "; ".join(settings_problems(job, config))
            raise JobError(
                "search.space",
                f"trial {number} would be {config}: {wrong}",
                "leave such combinations out, for example with alternatives of a whole section",
            ) from None
        if recipe.train.batch_size // job.resources.most_workers < recipe.train.accumulate:
            raise JobError(
                "search.space",
                f"trial {number} would be {config}: train.accumulate is more than a "
                f"worker's share of a batch of {recipe.train.batch_size}",
                "lower it",
            )


def fill(case: Config, choose: Draw) -> Config:
    """`case` with every range replaced by what `choose(name, range)` says; each name comes once."""
    filled: Config = {}
    for key, value in case.items():
        if isinstance(value, dict) and not is_range(value):
            section: Config = {}
            for name, inner in value.items():
                section[name] = _fill_value(f"{key}.{name}", inner, choose)
            filled[key] = section
        else:
            filled[key] = _fill_value(key, value, choose)
    return filled


def _fill_value(name: str, value: JsonValue, choose: Draw) -> JsonValue:
    given = parse_range(value)
    if given is None:
        return value
    return choose(name, given)


def as_section(option: JsonValue) -> Config:
    """An alternative of a space, which is a section of the job file."""
    assert isinstance(option, dict), option  # `search_problems` has refused all others
    return option


def _cases(space: Space) -> list[Config]:
    """Every combination of alternatives and grids; what is left are constants and random ranges."""
    sections: dict[str, list[Config]] = {}
    others: Config = {}
    for key, value in space.items():
        if not isinstance(value, list):
            others[key] = value
            continue
        sections[key] = []
        for option in value:
            sections[key] += _expand(as_section(option))
    cases = []
    # The order of cases decides which trial gets which: it is part of what a seed means.
    for *options, rest in itertools.product(*sections.values(), _expand(others)):
        case: Config = dict(zip(sections, options, strict=False))
        cases.append(case | rest)
    return cases


def _expand(values: Config) -> list[Config]:
    """One dictionary a combination of the {grid: [...]} among `values`."""
    grids: dict[str, tuple[JsonValue, ...]] = {}
    for key, value in values.items():
        given = parse_range(value)
        if isinstance(given, Listed) and given.kind == "grid":
            grids[key] = given.values
    expanded = []
    for chosen in itertools.product(*grids.values()):
        expanded.append(values | dict(zip(grids, chosen, strict=True)))
    return expanded


def draw(given: Range, rng: np.random.RandomState) -> JsonValue:
    """A value of a range.

    Not Tune's domains: their loguniform computes to base 10, and so would change the last digits of
    what a seed has meant since there are jobs.
    """
    if isinstance(given, Listed):
        number = rng.randint(len(given.values))
        return given.values[number]
    low, high = given.low, given.high
    if given.kind == "int":
        return int(rng.randint(int(low), int(high) + 1))  # both ends are included
    if given.kind == "uniform":
        return float(rng.uniform(low, high))
    exponent = rng.uniform(*np.log((low, high)))
    # exp(log(x)) may lie beside x, outside of what the job allows.
    return float(np.clip(np.exp(exponent), low, high))
