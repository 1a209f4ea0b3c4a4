"""Which configuration each trial gets: those of a list one after the other, or what Optuna
proposes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysft.errors import UserError
from raysft.job import Job
from raysft.job.metrics import metric_mode, sort_key
from raysft.job.ranges import is_range
from raysft.job.space import job_key, trial_settings, with_usual_ranges
from raysft.search.space import Config, fill

# How far a trial that was run before came: its configuration, status, and the metrics of its
# epochs.
Past = tuple[Config, str, Sequence[Mapping[str, Any]]]


class InOrder:
    """Gives the trials of `numbers` the configurations that are known for them."""

    def __init__(self, numbers: Sequence[int], configs: Mapping[int, Config]) -> None:
        self.waiting, self.configs = list(numbers), configs

    def next_trial(self) -> tuple[int, Config] | None:
        """(number, configuration) of the trial that begins now; None when there are no more."""
        if not self.waiting:
            return None
        number = self.waiting.pop(0)
        return number, self.configuration(number)

    def configuration(self, number: int) -> Config:
        """The configuration of a trial that begins now."""
        return self.configs[number]

    def epoch(self, number: int, metrics: Mapping[str, Any]) -> None:
        """A trial has trained an epoch. Nothing to learn from here."""

    def ended(self, number: int, failed: bool = False) -> None:
        """A trial has ended. Nothing to learn from here."""


class ByOptuna(InOrder):
    """Tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna; alternatives are
    conditional spaces of it.

    Trials in `configs` have theirs already; `past` are the trials of an earlier part of this run.
    """

    def __init__(
        self, numbers: Sequence[int], configs: Mapping[int, Config], job: Job, past: Sequence[Past]
    ) -> None:
        super().__init__(numbers, configs)
        import optuna

        assert job.search is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.goal, self.job = optuna, job.search.metric, job
        self.space: Mapping[str, Any] = with_usual_ranges(job.search.space)
        seed = job.seed + len(past)  # a run taken up again must not draw the same once more
        # Trials run side by side: a penalty on what is being tried keeps them apart.
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )
        self.study = optuna.create_study(
            sampler=sampler, direction="minimize" if metric_mode(self.goal) == "min" else "maximize"
        )
        self.trials: dict[int, Any] = {}
        self.epochs: dict[int, list[Mapping[str, Any]]] = {}
        for config, status, history in past:
            if (trial := self._fixed(config)) is not None:
                self._learn(trial, status, history)

    def configuration(self, number: int) -> Config:
        known = self.configs.get(number)
        trial = self._fixed(known) if known is not None else self.study.ask()
        if trial is not None:
            self.trials[number] = trial
        return known if known is not None else self._walk(trial)

    def epoch(self, number: int, metrics: Mapping[str, Any]) -> None:
        self.epochs.setdefault(number, []).append(metrics)

    def ended(self, number: int, failed: bool = False) -> None:
        trial, history = self.trials.pop(number, None), self.epochs.pop(number, [])
        if trial is not None:
            self._learn(trial, "failed" if failed else "finished", history)

    def _learn(self, trial: Any, status: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Tell the study how good the best epoch of a trial was; a trial without one failed."""
        epochs = [m for m in history if m.get(self.goal) is not None]
        if epochs and status not in ("failed", "diverged"):
            self.study.tell(trial, min(epochs, key=lambda m: sort_key(m, self.goal))[self.goal])
        else:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _fixed(self, config: Config) -> Any:
        """A trial of the study with the parameters of a known configuration; None for one outside
        the space.
        """
        parameters = self._parameters(config)
        if parameters is None:
            return None
        self.study.enqueue_trial(parameters)
        trial = self.study.ask()
        self._walk(trial)
        return trial

    def _walk(self, trial: Any) -> Config:
        """The configuration of a trial of the study, its parameters chosen on the way through the
        space.
        """
        case: Config = {}
        for key, value in self.space.items():
            if isinstance(value, list):
                number = (
                    trial.suggest_categorical(key, list(range(len(value)))) if len(value) > 1 else 0
                )
                case[key] = value[number]
            else:
                case[key] = value
        chosen = {
            key: trial.params.get(key, 0) for key in case if isinstance(self.space[key], list)
        }
        return fill(case, lambda name, given: self._suggest(trial, _parameter(name, chosen), given))

    def _suggest(self, trial: Any, name: str, given: dict[str, Any]) -> Any:
        ((kind, bounds),) = given.items()
        if kind == "choice":
            return bounds[trial.suggest_categorical(name, list(range(len(bounds))))]
        if kind == "int":
            return trial.suggest_int(name, *bounds)
        return trial.suggest_float(name, *bounds, log=kind == "loguniform")

    def _parameters(self, config: Config) -> dict[str, Any] | None:
        """The parameters of the study that a configuration stands for, where it leaves a value out
        with the job's.
        """
        recipe = trial_settings(self.job, config).model_dump()
        found: dict[str, Any] = {}
        for key, options in self.space.items():
            given = _at(recipe, job_key(key))
            if not isinstance(options, list):
                found[key] = _as_parameter(options, given)
                continue
            fitting = [i for i, option in enumerate(options) if _fits(option, given)]
            if not fitting:
                return None
            number = fitting[0]
            if len(options) > 1:
                found[key] = number
            for name, value in options[number].items():
                if is_range(value):
                    found[_parameter(f"{key}.{name}", {key: number})] = _as_parameter(
                        value, given[name]
                    )
        return None if None in found.values() else found


def _at(tree: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _fits(option: Config, given: Any) -> bool:
    """Whether a section could have come out of an alternative."""
    return isinstance(given, Mapping) and all(
        name in given
        and (
            _as_parameter(value, given[name]) is not None
            if is_range(value)
            else value == given[name]
        )
        for name, value in option.items()
    )


def _parameter(name: str, chosen: Mapping[str, int]) -> str:
    """The name of a parameter in the study: each alternative has parameters of its own."""
    for key, number in chosen.items():
        if name.startswith(f"{key}."):
            return f"{key}.{number}.{name.removeprefix(f'{key}.')}"
    return name


def _as_parameter(given: dict[str, Any], value: Any) -> Any:
    """What a range's parameter is called for a value; None for a value outside."""
    ((kind, bounds),) = given.items()
    if kind == "choice":
        return bounds.index(value) if value in bounds else None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number and bounds[0] <= value <= bounds[1] else None


def searcher(
    job: Job, numbers: Sequence[int], configs: Mapping[int, Config], past: Sequence[Past]
) -> InOrder:
    """What proposes the configurations of a job's trials; raises UserError where its library is not
    installed.
    """
    if job.search is None or job.search.algorithm == "random":
        return InOrder(numbers, configs)
    try:
        return ByOptuna(numbers, configs, job, past)
    except ImportError:
        raise UserError(
            "search.algorithm: tpe", "needs the library optuna", "pip install 'raysft[optuna]'"
        ) from None
