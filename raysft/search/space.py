"""A search space to the configurations of its trials: drawn in advance, a function of (seed,
space), or one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import ValidationError

from raysft.errors import JobError
from raysft.job import Job
from raysft.job.ranges import is_range
from raysft.job.space import count_trials, settings_problems, trial_settings, with_usual_ranges

Config = dict[str, Any]
Draw = Callable[[str, dict[str, Any]], Any]


def configurations(job: Job) -> list[Config]:
    """One configuration a trial: {"optimizer": {...}, "train.batch_size": 64, ...}; [{}] without a
    search.

    Those that the job wants to start with come first. Alternatives take turns, so that each gets
    its share of trials; a grid tries each of its combinations, as often as the trials allow.
    """
    if job.search is None:
        return [{}]
    known = [dict(config) for config in job.search.start_with]
    count = count_trials(job) - len(known)
    cases = _cases(with_usual_ranges(job.search.space))
    rng = np.random.RandomState(job.seed)
    turns: list[int] = []
    while len(turns) < count:
        turns += rng.permutation(len(cases)).tolist()
    return known + [
        fill(cases[turn], lambda name, given: _draw(given, rng)) for turn in turns[:count]
    ]


def known_configurations(job: Job) -> dict[int, Config]:
    """Configurations by the numbers of their trials, as far as they are known before any trial has
    run.
    """
    if job.search is not None and job.search.algorithm != "random":
        return dict(enumerate(dict(config) for config in job.search.start_with))
    return dict(enumerate(configurations(job)))


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


def fill(case: Config, draw: Draw) -> Config:
    """`case` with every range replaced by what `draw(name, range)` says; names are unique within a
    case.
    """
    drawn: Config = {}
    for key, value in case.items():
        if isinstance(value, dict) and not is_range(value):
            drawn[key] = {k: draw(f"{key}.{k}", v) if is_range(v) else v for k, v in value.items()}
        else:
            drawn[key] = draw(key, value) if is_range(value) else value
    return drawn


def _cases(space: dict[str, Any]) -> list[Config]:
    """Every combination of alternatives and grids; what is left in a case are constants and random
    ranges.
    """
    sections = {
        k: [e for option in v for e in _expand(option)]
        for k, v in space.items()
        if isinstance(v, list)
    }
    others = {k: v for k, v in space.items() if not isinstance(v, list)}
    chosen = itertools.product(*sections.values(), _expand(others))
    return [dict(zip(sections, options, strict=False)) | rest for *options, rest in chosen]


def _expand(values: dict[str, Any]) -> list[dict[str, Any]]:
    """One dictionary a combination of the {grid: [...]} among `values`."""
    grids = {k: v["grid"] for k, v in values.items() if is_range(v) and "grid" in v}
    return [
        values | dict(zip(grids, chosen, strict=True))
        for chosen in itertools.product(*grids.values())
    ]


def _draw(value: dict[str, Any], rng: np.random.RandomState) -> Any:
    ((kind, bounds),) = value.items()
    if kind == "choice":
        return bounds[rng.randint(len(bounds))]
    if kind == "int":
        return int(rng.randint(bounds[0], bounds[1] + 1))  # both ends are included
    if kind == "uniform":
        return float(rng.uniform(*bounds))
    return float(np.clip(np.exp(rng.uniform(*np.log(bounds))), *bounds))
