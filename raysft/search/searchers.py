"""What proposes the configurations of a job's trials, as searchers of Ray Tune.

What a searcher of Tune needs is around it here: configurations that are known already, trials of an
earlier part of the run, the best epoch of a trial in place of its last, trials that pause for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from ray.tune.search import Searcher

from raysft.job import Job
from raysft.job.metrics import metric_mode
from raysft.job.values import Config
from raysft.search.algorithms import DEAF_TO_FAILURES, WITHOUT_LOGARITHMS, Asked, make_algorithm
from raysft.search.earlier import Past
from raysft.search.parameters import Parameters, Point
from raysft.search.results import Result, Suggestion

# Tune asks again and again. A searcher that waits for no trial any more will wait for ever.
MOST_REFUSALS = 20


def make_searcher(
    job: Job, numbers: Sequence[int], configs: Mapping[int, Config], past: Sequence[Past]
) -> Planned:
    """What proposes the trials of `numbers`; those in `configs` have their configuration already.

    `past`: the trials that ended in an earlier part of this run. Raises UserError without the
    library of the job's algorithm.
    """
    assert job.search is not None
    if job.search.algorithm.is_planned:
        return Planned(job.search.metric, numbers, configs)
    return Proposing(job, numbers, configs, past)


class Planned(Searcher):
    """Gives the trials the configurations that are known for them, in their order."""

    def __init__(self, goal: str, numbers: Sequence[int], configs: Mapping[int, Config]) -> None:
        super().__init__(metric=goal, mode=metric_mode(goal))
        self.waiting = list(numbers)
        self.configs = configs
        self.exhausted = ""
        """Why it proposes nothing more while trials are left, for a person."""

    @property
    def has_more(self) -> bool:
        """Whether it will propose another trial, now or later."""
        return bool(self.waiting) and not self.exhausted

    def suggest(self, trial_id: str) -> Suggestion | str:  # type: ignore[override]
        """The next configuration; Searcher.FINISHED when there are no more."""
        if not self.waiting:
            return Searcher.FINISHED
        number = self.waiting.pop(0)
        return {"number": number, "config": self.configs[number]}

    def on_trial_complete(
        self, trial_id: str, result: Result | None = None, error: bool = False
    ) -> None:
        """Nothing to learn from here."""

    def on_pause(self, trial_id: str) -> None:
        """Nothing to learn from here. Schedulers call this and the next beside Tune's interface, as
        HyperBandForBOHB does.
        """

    def on_unpause(self, trial_id: str) -> None:
        """Nothing to learn from here."""


class Proposing(Planned):
    """Asks a searcher of Tune for the configurations that are not known yet."""

    def __init__(
        self,
        job: Job,
        numbers: Sequence[int],
        configs: Mapping[int, Config],
        past: Sequence[Past],
    ) -> None:
        assert job.search is not None
        super().__init__(job.search.metric, numbers, configs)
        self.name, self.goal = job.search.algorithm.name, job.search.metric
        # A searcher takes known points before any others, so the trials that have them go first.
        self.waiting.sort(key=lambda number: number not in configs)
        self.parameters = Parameters(job, exponents=self.name in WITHOUT_LOGARITHMS)
        self.outside: set[int] = set()
        """Trials whose configuration is not in the space: a searcher cannot hear of them."""
        self.best: dict[str, Result] = {}
        """Of the trials that the inner searcher waits for, the best epoch so far."""
        self.pausing: set[str] = set()
        self.failures: list[str] = []
        self.worst: Result | None = None
        self.refusals = 0
        points: list[Point] = []
        learned: list[Past] = []
        for trial in past:
            point = self.parameters.point(trial[0])
            if point is not None:
                points.append(point)
                learned.append(trial)
        points += self._known_points()
        # A resumed run must not draw the same once more.
        first = len(job.search.start_with)
        begun = [number for number in self.waiting if number in configs and number >= first]
        seed = job.seed + len(past) + len(begun)
        asked = Asked(job, self.parameters, seed, points)
        self.inner = make_algorithm(self.name, asked)
        for number, (_, status, history) in enumerate(learned):
            self._replay(f"past-{number}", status, history)

    def _known_points(self) -> list[Point]:
        """The points of the trials that are to run with a known configuration."""
        points: list[Point] = []
        for number in self.waiting:
            if number not in self.configs:
                continue
            point = self.parameters.point(self.configs[number])
            if point is None:
                self.outside.add(number)
            else:
                points.append(point)
        return points

    def suggest(self, trial_id: str) -> Suggestion | str | None:  # type: ignore[override]
        """The next configuration; None when there is none now."""
        if not self.has_more:
            return Searcher.FINISHED
        number = self.waiting[0]
        if number in self.outside:
            return super().suggest(trial_id)
        suggested: Config | str | None = self.inner.suggest(trial_id)
        if isinstance(suggested, dict):
            self.refusals = 0
            self.waiting.pop(0)
            self.best[trial_id] = {}
            config = self.configs.get(number)
            return {"number": number, "config": config or self.parameters.read(suggested)}
        if number in self.configs:  # known to the searcher already: bayesopt skips such points
            return super().suggest(trial_id)
        return self._without(suggested)

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        """A trial has trained an epoch."""
        value = _number(result, self.goal)
        # Data of few classes has no top-5 accuracy, and a loss may be no number.
        if trial_id not in self.best or value is None:
            return
        if self._is_better(result, self.best[trial_id]):
            self.best[trial_id] = result
        if self.worst is None or self._is_better(self.worst, result):
            self.worst = result
        if self.name == "bohb":
            if "hyperband_info" in result:
                self.inner.on_trial_result(trial_id, result)
        elif trial_id in self.pausing:
            self._tell(trial_id, failed=False)

    def on_trial_complete(
        self, trial_id: str, result: Result | None = None, error: bool = False
    ) -> None:
        """A trial has ended."""
        if result:
            self.on_trial_result(trial_id, result)
        self._tell(trial_id, error)

    def on_pause(self, trial_id: str) -> None:
        """A trial waits from now on; it may never go on, so what it was good for is learned now."""
        if self.name == "bohb":
            self.inner.on_pause(trial_id)  # type: ignore[attr-defined]
        else:
            # A scheduler decides on an epoch before the searcher hears of it.
            self.pausing.add(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """A trial goes on."""
        if self.name == "bohb":
            self.inner.on_unpause(trial_id)  # type: ignore[attr-defined]

    # --- inside ---------------------------------------------------------------------------------

    def _is_better(self, result: Result, other: Result) -> bool:
        value, known = _number(result, self.goal), _number(other, self.goal)
        if value is None or known is None:
            return known is None
        return value < known if metric_mode(self.goal) == "min" else value > known

    def _tell(self, trial_id: str, failed: bool) -> None:
        """Tell the inner searcher how good the best epoch of a trial was; one without any failed.

        A trial is told of once.
        """
        best = self.best.pop(trial_id, None)
        if best is None:
            return
        if best and not failed:
            self.inner.on_trial_complete(trial_id, best)
        elif self.name in DEAF_TO_FAILURES:
            self.failures.append(trial_id)
        else:
            self.inner.on_trial_complete(trial_id, None, error=True)
        # Some count on a result for everything that they suggest: of a trial that failed the worst.
        while self.worst is not None and self.failures:
            self.inner.on_trial_complete(self.failures.pop(), self.worst)

    def _replay(self, trial_id: str, status: str, history: Sequence[Mapping[str, object]]) -> None:
        """Let the inner searcher suggest a point of before, and hear what became of it."""
        if not isinstance(self.inner.suggest(trial_id), dict):  # bayesopt takes a point once
            return
        self.best[trial_id] = {}
        for epoch in history:
            budget: Result = {"hyperband_info": {"budget": cast(int, epoch["epoch"])}}
            result = cast(Result, dict(epoch))
            self.on_trial_result(trial_id, result | budget if self.name == "bohb" else result)
        self._tell(trial_id, failed=status in ("failed", "diverged"))

    def _without(self, answer: str | None) -> str | None:
        """What to do where there is no suggestion: wait while results can bring one."""
        self.refusals = 0 if self.best else self.refusals + 1
        if answer is None and self.refusals <= MOST_REFUSALS:
            return None
        # The run goes on with the trials that it has; those that are left are stopped.
        self.exhausted = (
            f"search.algorithm: {self.name} suggests nothing more, {len(self.waiting)} trials are "
            "left: widen search.space or lower search.trials"
        )
        return Searcher.FINISHED


def _number(metrics: Mapping[str, object], name: str) -> float | None:
    """A metric that is a finite number, or None."""
    value = metrics.get(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value
