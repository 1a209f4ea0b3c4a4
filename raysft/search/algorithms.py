"""Ray Tune's searchers by the names of `search.algorithm`, each over the space of a job.

tpe, hyperopt, bohb and ax know of conditions: which parameters there are depends on which
alternative was chosen. To the others a parameter that this one has not is one without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from numpy import random
from pydantic import JsonValue
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher

from raysft.errors import UserError
from raysft.job import Job
from raysft.job.algorithms import ALGORITHMS
from raysft.job.metrics import metric_mode
from raysft.job.ranges import Listed, Range
from raysft.job.values import Config
from raysft.search.parameters import Parameters, Point
from raysft.search.space import as_section

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial as Suggesting

Given = Mapping[str, object]
"""Arguments of a class by their names."""

# It takes uniform ranges alone.
WITHOUT_LOGARITHMS = frozenset({"bayesopt"})
# They go on waiting for the result of a trial that has none.
DEAF_TO_FAILURES = frozenset({"bayesopt", "ax"})


@dataclass(frozen=True)
class Asked:
    """What a searcher is made of."""

    job: Job
    parameters: Parameters
    seed: int
    points: list[Point]
    """To suggest first."""

    @property
    def goal(self) -> dict[str, str]:
        """The metric and its direction, as Tune's classes take them."""
        assert self.job.search is not None
        return {"metric": self.job.search.metric, "mode": metric_mode(self.job.search.metric)}

    @property
    def flat_points(self) -> list[Point] | None:
        """The points for a space without conditions."""
        return [self.parameters.flat_point(point) for point in self.points] or None

    @property
    def trials(self) -> int:
        """As many as will be suggested at most."""
        assert self.job.search is not None
        return self.job.search.trials + len(self.points)


def make_algorithm(name: str, asked: Asked) -> Searcher:
    """Tune's searcher of a name; raises UserError without its library."""
    assert asked.job.search is not None
    try:
        return MAKERS[name](asked, asked.job.search.algorithm.arguments)
    # Tune's classes assert that their library is there.
    except (ImportError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"search.algorithm: {name}",
            f"needs the library {ALGORITHMS[name].libraries[0]} ({reason})",
            f"pip install {ALGORITHMS[name].install}",
        ) from None
    except (TypeError, ValueError) as error:  # what an argument holds, the library alone knows
        raise UserError(f"search.algorithm: {name}", " ".join(str(error).split())) from None


def _tpe(asked: Asked, arguments: Config) -> Searcher:
    """Tree-structured Parzen estimator (Bergstra et al. 2011); alternatives are conditional."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Trials run side by side: a penalty on what is being tried keeps them apart.
    # `group` models each alternative by the trials that had it, `multivariate` together.
    usual: Config = {"multivariate": True, "group": True, "constant_liar": True}
    make: Callable[..., BaseSampler] = optuna.samplers.TPESampler
    sampler = make(seed=asked.seed, **(usual | arguments))

    def space(trial: Suggesting) -> None:
        asked.parameters.configuration(lambda name, given: _suggest(trial, name, given))

    points = asked.points or None
    return _class("optuna")(space, sampler=sampler, points_to_evaluate=points, **asked.goal)


def _suggest(trial: Suggesting, name: str, given: Range) -> JsonValue:
    if isinstance(given, Listed):
        # By its place: Optuna takes no lists and no sections as choices.
        place = trial.suggest_categorical(name, list(range(len(given.values))))
        return given.values[place]
    if given.kind == "int":
        return trial.suggest_int(name, int(given.low), int(given.high))
    return trial.suggest_float(name, given.low, given.high, log=given.kind == "loguniform")


def _hyperopt(asked: Asked, arguments: Config) -> Searcher:
    points = [asked.parameters.nested_point(point) for point in asked.points] or None
    seed = {"random_state_seed": asked.seed}
    searcher = _class("hyperopt")(points_to_evaluate=points, **seed, **arguments)
    searcher.set_search_properties(config=asked.parameters.nested(), **asked.goal)
    return searcher


def _bohb(asked: Asked, arguments: Config) -> Searcher:
    from ConfigSpace import EqualsCondition
    from ray.tune.search.bohb import TuneBOHB

    space = TuneBOHB.convert_search_space(asked.parameters.flat())
    for name, (key, number) in asked.parameters.conditions.items():
        space.add(EqualsCondition(space[name], space[key], number))
    points = asked.points or None
    given: Given = {"points_to_evaluate": points, "seed": asked.seed, **asked.goal, **arguments}
    random.seed(asked.seed)  # which hpbandster draws from, beside the space's own generator
    return _class("bohb")(space=space, **given)


def _ax(asked: Asked, arguments: Config) -> Searcher:
    from ray.tune.search.ax import AxSearch

    space = AxSearch.convert_search_space(asked.parameters.flat())
    for parameter in space:
        dependents: dict[int, list[str]] = {}
        for name, (key, number) in asked.parameters.conditions.items():
            if key == parameter["name"]:
                dependents.setdefault(number, []).append(name)
        if dependents:
            parameter["dependents"] = dependents
    client = {"random_seed": asked.seed, "verbose_logging": False}
    given: Given = {"points_to_evaluate": asked.points or None, **client, **asked.goal, **arguments}
    return _class("ax")(space=space, **given)


def _nevergrad(asked: Asked, arguments: Config) -> Searcher:
    import nevergrad
    from ray.tune.search.nevergrad import NevergradSearch

    name = arguments.get("optimizer", "NGOpt")
    optimizers = nevergrad.optimizers.registry
    if name not in optimizers:
        close = get_close_matches(str(name), optimizers, n=1)  # of some hundred
        raise ValueError(f"nevergrad has no optimizer {name}; did you mean {', '.join(close)}?")
    budget = {"budget": asked.trials, **as_section(arguments.get("optimizer_kwargs", {}))}
    space: Any = NevergradSearch.convert_search_space(asked.parameters.flat())
    space.random_state = random.RandomState(asked.seed)
    points = asked.flat_points
    return NevergradSearch(optimizers[name], budget, space, points_to_evaluate=points, **asked.goal)


def _hebo(asked: Asked, arguments: Config) -> Searcher:
    return _searching("hebo", asked, {"random_state_seed": asked.seed, **arguments})


def _bayesopt(asked: Asked, arguments: Config) -> Searcher:
    return _searching("bayesopt", asked, {"random_state": asked.seed, **arguments})


def _searching(name: str, asked: Asked, given: Given) -> Searcher:
    """One of Tune's searchers over a space without conditions, which it converts to its own."""
    searcher = _class(name)(points_to_evaluate=asked.flat_points, **given)
    searcher.set_search_properties(config=asked.parameters.flat(), **asked.goal)
    return searcher


def _class(name: str) -> Callable[..., Searcher]:
    """Tune's class by Tune's name for it."""
    load: Callable[[], Callable[..., Searcher]] = SEARCH_ALG_IMPORT[name]
    return load()


MAKERS: dict[str, Callable[[Asked, Config], Searcher]] = {
    "tpe": _tpe,
    "hyperopt": _hyperopt,
    "bohb": _bohb,
    "ax": _ax,
    "nevergrad": _nevergrad,
    "hebo": _hebo,
    "bayesopt": _bayesopt,
}
