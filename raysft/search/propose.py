"""Which configuration each trial gets: those of a list one after the other, or what Optuna proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from raysft.errors import UserError
from raysft.job import Job
from raysft.job.ranges import is_range
from raysft.job.space import completed
from raysft.job.spec import metric_mode, order
from raysft.search.space import Config, fill

# How far a trial that was run before came: its configuration, status, and the metrics of its epochs.
Past = tuple[Config, str, Sequence[Mapping[str, Any]]]


class InOrder(Searcher):
    """Gives the trials of `numbers` the configurations of a list."""

    def __init__(self, numbers: Sequence[int], configs: Sequence[Config]) -> None:
        super().__init__()
        self.waiting, self.configs = list(numbers), configs

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """{"number": of the trial, "config": its configuration}, or that there are no more."""
        if not self.waiting:
            return Searcher.FINISHED
        number = self.waiting.pop(0)
        return {"number": number, "config": self.configuration(trial_id, number)}

    def configuration(self, trial_id: str, number: int) -> Config:
        """The configuration of a trial that begins now."""
        return self.configs[number]

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing to learn from."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a run that is taken up again begins with its finished trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


class ByOptuna(InOrder):
    """Tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna; alternatives are conditional spaces of it.

    The first configurations are those of `configs`; `past` are the trials of an earlier part of this run.
    """

    def __init__(self, numbers: Sequence[int], configs: Sequence[Config], job: Job, past: Sequence[Past]) -> None:
        super().__init__(numbers, configs)
        import optuna

        assert job.search is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.goal = optuna, job.search.metric
        self.space = completed(job.search.space)
        seed = job.seed + len(past)  # a run taken up again must not draw the same once more
        # Trials run side by side: a penalty on what is being tried keeps them apart.
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        self.study = optuna.create_study(sampler=sampler,
                                         direction="minimize" if metric_mode(self.goal) == "min" else "maximize")
        self.trials: dict[str, Any] = {}
        self.epochs: dict[str, list[dict[str, Any]]] = {}
        for config, status, history in past:
            self._learn(self._fixed(config), status, history)

    def configuration(self, trial_id: str, number: int) -> Config:
        known = self.configs[number] if number < len(self.configs) else None
        trial = self._fixed(known) if known is not None else self.study.ask()
        self.trials[trial_id] = trial
        drawn = self._walk(trial)
        return known if known is not None else drawn

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        self.epochs.setdefault(trial_id, []).append(result)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        trial = self.trials.pop(trial_id, None)
        history = [*self.epochs.pop(trial_id, []), *([result] if result else [])]
        if trial is not None:
            self._learn(trial, "failed" if error else "finished", history)

    def _learn(self, trial: Any, status: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Tell the study how good the best epoch of a trial was; a trial without one failed."""
        epochs = [m for m in history if m.get(self.goal) == m.get(self.goal) and m.get(self.goal) is not None]
        if not trial.params:
            self._walk(trial)
        if epochs and status != "failed":
            self.study.tell(trial, min(epochs, key=lambda m: order(m, self.goal))[self.goal])
        else:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _fixed(self, config: Config) -> Any:
        """A trial of the study whose parameters are those of a known configuration, as far as the space has them."""
        self.study.enqueue_trial(self._parameters(config))
        return self.study.ask()

    def _walk(self, trial: Any) -> Config:
        """The configuration of a trial of the study, its parameters chosen on the way through the space."""
        case: Config = {}
        for key, value in self.space.items():
            if isinstance(value, list):
                number = trial.suggest_categorical(key, list(range(len(value)))) if len(value) > 1 else 0
                case[key] = value[number]
            else:
                case[key] = value
        chosen = {key: trial.params.get(key, 0) for key in case if isinstance(self.space[key], list)}
        return fill(case, lambda name, given: self._suggest(trial, _parameter(name, chosen), given))

    def _suggest(self, trial: Any, name: str, given: dict[str, Any]) -> Any:
        (kind, bounds), = given.items()
        if kind in ("choice", "grid"):
            return bounds[trial.suggest_categorical(name, list(range(len(bounds))))]
        if kind == "int":
            return trial.suggest_int(name, *bounds)
        return trial.suggest_float(name, *bounds, log=kind == "loguniform")

    def _parameters(self, config: Config) -> dict[str, Any]:
        """The parameters of the study that a configuration stands for."""
        found: dict[str, Any] = {}
        for key, options in self.space.items():
            given = config.get(key)
            if not isinstance(options, list):
                found |= _as_parameter(key, options, given)
                continue
            for i, option in enumerate(options):
                constants = {k: v for k, v in option.items() if not is_range(v)}
                if isinstance(given, dict) and all(given.get(k) == v for k, v in constants.items()):
                    if len(options) > 1:
                        found[key] = i
                    for k, v in option.items():
                        found |= _as_parameter(_parameter(f"{key}.{k}", {key: i}), v, given.get(k))
                    break
        return found


def _parameter(name: str, chosen: Mapping[str, int]) -> str:
    """The name of a parameter in the study: each alternative has parameters of its own."""
    for key, number in chosen.items():
        if name.startswith(f"{key}."):
            return f"{key}.{number}.{name.removeprefix(f'{key}.')}"
    return name


def _as_parameter(name: str, given: Any, value: Any) -> dict[str, Any]:
    if not is_range(given) or value is None:
        return {}
    (kind, bounds), = given.items()
    if kind not in ("choice", "grid"):
        return {name: value}
    return {name: bounds.index(value)} if value in bounds else {}


def searcher(job: Job, numbers: Sequence[int], configs: Sequence[Config], past: Sequence[Past]) -> InOrder:
    """What proposes the configurations of a job's trials; raises UserError where its library is not installed."""
    if job.search is None or job.search.algorithm == "random":
        return InOrder(numbers, configs)
    try:
        return ByOptuna(numbers, configs, job, past)
    except ImportError:
        raise UserError("search.algorithm: tpe", "needs the library optuna", "pip install 'raysft[optuna]'") from None
