"""A search space to the configurations of its trials, a function of (seed, space) alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from raysft.job.plan import count_trials
from raysft.job.ranges import is_range
from raysft.job.spec import Job, Train

Config = dict[str, Any]


def configurations(job: Job) -> list[Config]:
    """One configuration a trial: {"optimizer": {...}, "train.batch_size": 64, ...}; [{}] without a search.

    Optimizers take turns, so that each gets its share of trials; a grid tries each of its combinations, as often as
    the trials allow.
    """
    if job.search is None:
        return [{}]
    cases = _cases(job.search.space)
    rng = np.random.RandomState(job.seed)
    turns: list[int] = []
    while len(turns) < count_trials(job):
        turns += rng.permutation(len(cases)).tolist()
    return [_sample(cases[turn], rng) for turn in turns[:count_trials(job)]]


def recipe_of(job: Job, config: Config) -> Train:
    """The recipe of a trial: the job's, with the configuration in its place."""
    tree = job.train.model_dump()
    for key, value in config.items():
        if key == "optimizer":
            tree["optimizer"] = value
            continue
        *parents, last = key.split(".")[1:]
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    return Train.model_validate(tree)


def _cases(space: dict[str, Any]) -> list[Config]:
    """Every combination of optimizers and grids; what is left in a case are constants and random ranges."""
    others = {k: v for k, v in space.items() if k != "optimizer"}
    options = [o for option in space.get("optimizer", [None]) for o in (_expand(option) if option else [None])]
    return [({"optimizer": option} if option else {}) | rest for option in options for rest in _expand(others)]


def _expand(values: dict[str, Any]) -> list[dict[str, Any]]:
    """One dictionary a combination of the {grid: [...]} among `values`."""
    grids = {k: v["grid"] for k, v in values.items() if is_range(v) and "grid" in v}
    return [values | dict(zip(grids, chosen, strict=True)) for chosen in itertools.product(*grids.values())]


def _sample(case: Config, rng: np.random.RandomState) -> Config:
    drawn: Config = {}
    for key, value in case.items():
        if key == "optimizer":
            drawn[key] = {k: _draw(v, rng) if is_range(v) else v for k, v in value.items()}
        else:
            drawn[key] = _draw(value, rng) if is_range(value) else value
    return drawn


def _draw(value: dict[str, Any], rng: np.random.RandomState) -> Any:
    from ray import tune

    (kind, bounds), = value.items()
    if kind == "choice":
        return tune.choice(bounds).sample(random_state=rng)
    if kind == "int":
        return int(tune.randint(bounds[0], bounds[1] + 1).sample(random_state=rng))  # both ends are included
    sampler = tune.loguniform if kind == "loguniform" else tune.uniform
    return float(sampler(*bounds).sample(random_state=rng))
