"""New values, within the ranges of the space, for a trial that goes on from another's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from raysft.job.ranges import Interval, Listed, Range, parse_range
from raysft.job.space import with_usual_ranges
from raysft.job.values import Config, Space
from raysft.search.space import draw


@dataclass(frozen=True)
class Explorer:
    """Changes every range of a space, as Tune's PopulationBasedTraining changes its mutations.

    A number is multiplied by one of two `factors`, a value of a list moves to its neighbour; with
    probability `resample` either is drawn anew. Unlike there, a number never leaves its range.
    """

    space: Space
    factors: Sequence[float]
    resample: float
    rng: np.random.RandomState

    def explore(self, config: Config) -> Config:
        """A changed copy of a configuration."""
        changed = copy.deepcopy(config)
        for section, name, given in ranges_of(self.space, changed):
            section[name] = self._change(given, section.get(name))
        return changed

    def _change(self, given: Range, now: JsonValue) -> JsonValue:
        if now is None or self.rng.uniform() < self.resample:
            return draw(given, self.rng)
        if isinstance(given, Listed):
            return self._neighbour(given.values, now)
        assert isinstance(now, (int, float)), now
        return bounded(given, now * self.factors[self.rng.randint(2)])

    def _neighbour(self, values: Sequence[JsonValue], now: JsonValue) -> JsonValue:
        if now not in values:
            return values[self.rng.randint(len(values))]
        shifted = values.index(now) + (-1 if self.rng.randint(2) else 1)
        return values[min(max(shifted, 0), len(values) - 1)]


def keep_bounds(space: Space, config: Config) -> Config:
    """A copy of a configuration with every number inside its range."""
    kept = copy.deepcopy(config)
    for section, name, given in ranges_of(space, kept):
        now = section.get(name)
        if isinstance(given, Interval) and isinstance(now, (int, float)):
            section[name] = bounded(given, now)
    return kept


def ranges_of(space: Space, config: Config) -> Iterator[tuple[Config, str, Range]]:
    """Every range of a space that holds for a configuration: where its value stands, its key there,
    and the range.
    """
    for key, value in with_usual_ranges(space).items():
        if not isinstance(value, list):
            given = parse_range(value)
            if given is not None:
                yield config, key, given
            continue
        section = config.get(key)
        if isinstance(section, dict):
            for name, given in _alternative_of(value, section).items():
                yield section, name, given


def _alternative_of(options: Sequence[JsonValue], section: Config) -> dict[str, Range]:
    """The ranges of the alternative that a section came from; none where it came from elsewhere, as
    a configuration to start with may.
    """
    for option in options:
        assert isinstance(option, dict), option  # the check of the space has refused all others
        ranges: dict[str, Range] = {}
        constants: Config = {}
        for name, value in option.items():
            given = parse_range(value)
            if given is None:
                constants[name] = value
            else:
                ranges[name] = given
        if all(section.get(name) == value for name, value in constants.items()):
            return ranges
    return {}


def bounded(given: Interval, value: float) -> int | float:
    """The number of a range that is nearest to a value."""
    inside = min(max(value, given.low), given.high)
    return round(inside) if given.kind == "int" else float(inside)
