"""A job's search space as Ray Tune's searchers take it: numbers with a name each, some of which
only one of several alternatives has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pydantic import JsonValue
from ray import tune
from ray.tune.search.sample import Domain

from raysft.job import Job
from raysft.job.ranges import Listed, Range, parse_range
from raysft.job.space import job_key, trial_settings, with_usual_ranges
from raysft.job.values import Config
from raysft.search.space import Draw, as_section

Point = dict[str, int | float]
"""A configuration as its parameters, of lists the place of the value."""

# hyperopt's labels, which Tune makes of the path to a parameter.
_ROOT = "space"
_CHOSEN = "number"


class Parameters:
    """The parameters of a job's space.

    `exponents`: a loguniform range is given as the uniform range of its logarithm, for searchers
    that know no logarithms.
    """

    def __init__(self, job: Job, exponents: bool = False) -> None:
        assert job.search is not None
        self.job, self.exponents = job, exponents
        self.space = with_usual_ranges(job.search.space)
        self.ranges: dict[str, Range] = {}
        self.conditions: dict[str, tuple[str, int]] = {}
        """Of a parameter that an alternative has: the parameter that chooses it, and by what."""
        for key, value in self.space.items():
            if isinstance(value, list):
                self._add_alternatives(key, value)
            else:
                self._add(key, value)

    def _add_alternatives(self, key: str, options: list[JsonValue]) -> None:
        # A single alternative is no choice: a parameter of one value would only slow a search down.
        chosen = len(options) > 1
        if chosen:
            self.ranges[key] = Listed("choice", tuple(range(len(options))))
        for number, option in enumerate(options):
            for name, value in as_section(option).items():
                parameter = _inside(key, number, name)
                is_range = self._add(parameter, value)
                if chosen and is_range:
                    self.conditions[parameter] = (key, number)

    def _add(self, name: str, value: JsonValue) -> bool:
        given = parse_range(value)
        if given is not None:
            self.ranges[name] = given
        return given is not None

    # --- spaces ----------------------------------------------------------------------------------

    def flat(self) -> dict[str, Domain]:
        """Every parameter beside the others, for searchers that know no conditions."""
        return {name: self._domain(given) for name, given in self.ranges.items()}

    def nested(self) -> dict[str, dict[str, Domain]]:
        """Alternatives as a choice of dictionaries, which Tune makes hyperopt's conditions of."""
        space = {n: d for n, d in self.flat().items() if n not in self.conditions}
        for key, value in self.space.items():
            if key not in space or not isinstance(value, list):
                continue
            options: list[dict[str, int | Domain]] = []
            for number in range(len(value)):
                options.append({_CHOSEN: number, **self._of(key, number)})
            space[key] = tune.choice(options)
        return {_ROOT: space}

    def _of(self, key: str, number: int) -> dict[str, Domain]:
        """What an alternative has."""
        condition = (key, number)
        names = [name for name, given in self.conditions.items() if given == condition]
        return {name: self._domain(self.ranges[name]) for name in names}

    def _domain(self, given: Range) -> Domain:
        found: Domain
        if isinstance(given, Listed):
            places = list(range(len(given.values)))  # searchers take no lists and sections
            found = tune.choice(places)
        elif given.kind == "int":
            found = tune.randint(int(given.low), int(given.high) + 1)
        elif given.kind == "uniform":
            found = tune.uniform(given.low, given.high)
        elif self.exponents:
            found = tune.uniform(math.log(given.low), math.log(given.high))
        else:
            found = tune.loguniform(given.low, given.high)
        return found

    # --- from parameters to a configuration ------------------------------------------------------

    def configuration(self, choose: Draw) -> Config:
        """The configuration for which `choose(name, range)` says every value that it has."""
        config: Config = {}
        for key, value in self.space.items():
            if not isinstance(value, list):
                config[key] = self._value(key, value, choose)
                continue
            number = self._value(key, 0, choose)
            assert isinstance(number, int)
            section: Config = {}
            for name, inner in as_section(value[number]).items():
                section[name] = self._value(_inside(key, number, name), inner, choose)
            config[key] = section
        return config

    def _value(self, name: str, constant: JsonValue, choose: Draw) -> JsonValue:
        given = self.ranges.get(name)
        return constant if given is None else choose(name, given)

    def read(self, suggested: Mapping[str, object]) -> Config:
        """The configuration of what a searcher suggests, whichever of the spaces it has."""
        numbers = dict(_flatten(suggested))
        return self.configuration(lambda name, given: self.value(given, numbers[name]))

    def value(self, given: Range, number: float) -> JsonValue:
        """The value of a range that a number stands for."""
        if isinstance(given, Listed):
            return given.values[int(number)]
        if given.kind == "int":
            return min(max(round(number), int(given.low)), int(given.high))
        if given.kind == "loguniform" and self.exponents:
            number = math.exp(number)
        # exp(log(x)) may lie beside x, outside of what the job allows.
        return float(min(max(number, given.low), given.high))

    # --- from a configuration to parameters ------------------------------------------------------

    def point(self, config: Config) -> Point | None:
        """The parameters that a configuration has; None for one outside the space.

        A value that the configuration leaves out is that of the job.
        """
        settings = trial_settings(self.job, config).model_dump()
        found: dict[str, int | float | None] = {}
        for key, options in self.space.items():
            given = _at(settings, job_key(key))
            if isinstance(options, list):
                inside = self._point_inside(key, options, given)
                if inside is None:
                    return None
                found.update(inside)
            else:
                found[key] = self._number(self.ranges[key], given)
        numbers = {name: number for name, number in found.items() if number is not None}
        return numbers if len(numbers) == len(found) else None

    def _point_inside(self, key: str, options: list[JsonValue], given: JsonValue) -> Point | None:
        """The parameters of the first alternative that a section could have come out of."""
        section = as_section(given)
        for number, option in enumerate(options):
            found: Point = {key: number} if key in self.ranges else {}
            for name, value in as_section(option).items():
                inner = self.ranges.get(_inside(key, number, name))
                if inner is None:
                    fits = name in section and section[name] == value
                else:
                    place = self._number(inner, section.get(name))
                    fits = place is not None
                    found[_inside(key, number, name)] = place or 0
                if not fits:
                    break
            else:
                return found
        return None

    def _number(self, given: Range, value: JsonValue) -> int | float | None:
        """The number that stands for a value; None for a value outside."""
        if isinstance(given, Listed):
            return given.values.index(value) if value in given.values else None
        # true is an int to Python, not to a person
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if not given.low <= value <= given.high:
            return None
        as_exponent = given.kind == "loguniform" and self.exponents
        return math.log(value) if as_exponent else value

    def flat_point(self, point: Point) -> Point:
        """A point for a flat space: parameters that it has not are where they say the least."""
        return {name: point.get(name, self._middle(given)) for name, given in self.ranges.items()}

    def nested_point(self, point: Point) -> Point:
        """A point by hyperopt's labels."""
        labels = {}
        for name in point:
            above = self.conditions.get(name)
            labels[name] = f"{_ROOT}/{name}" if above is None else f"{_ROOT}/{above[0]}/{name}"
        return {labels[name]: number for name, number in point.items()}

    def _middle(self, given: Range) -> int | float:
        if isinstance(given, Listed):
            return 0
        if given.kind == "int":
            return (int(given.low) + int(given.high)) // 2
        if given.kind == "uniform":
            return (given.low + given.high) / 2
        exponent = (math.log(given.low) + math.log(given.high)) / 2
        return exponent if self.exponents else math.exp(exponent)


def _inside(key: str, number: int, name: str) -> str:
    """The name of a parameter of an alternative: each alternative has parameters of its own."""
    return f"{key}.{number}.{name}"


def _flatten(suggested: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in suggested.items():
        if isinstance(value, Mapping):
            if _CHOSEN in value:
                yield name, value[_CHOSEN]
            yield from _flatten(value)
        elif isinstance(value, (int, float)) or hasattr(value, "__float__"):
            yield name, float(value)


def _at(tree: Mapping[str, JsonValue], key: str) -> JsonValue:
    """The value of a dotted key."""
    node: JsonValue = dict(tree)
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
