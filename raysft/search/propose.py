"""Which configuration each trial gets: those of a list one after the other, or what Optuna
proposes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from raysft.errors import UserError
from raysft.job import Job
from raysft.job.metrics import metric_mode, sort_key
from raysft.job.ranges import Listed, Range, parse_range
from raysft.job.space import job_key, trial_settings, with_usual_ranges
from raysft.job.values import Config
from raysft.records.documents import EpochMetrics
from raysft.records.trial import metric_value
from raysft.search.earlier import Past
from raysft.search.space import as_section, fill

if TYPE_CHECKING:
    from optuna.trial import Trial


class InOrder:
    """Gives the trials of `numbers` the configurations that are known for them."""

    def __init__(self, numbers: Sequence[int], configs: Mapping[int, Config]) -> None:
        self.waiting = list(numbers)
        self.configs = configs

    def next_trial(self) -> tuple[int, Config] | None:
        """(number, configuration) of the trial that begins now; None when there are no more."""
        if not self.waiting:
            return None
        number = self.waiting.pop(0)
        return number, self.configuration(number)

    def configuration(self, number: int) -> Config:
        """The configuration of a trial that begins now."""
        return self.configs[number]

    def epoch(self, number: int, metrics: EpochMetrics) -> None:
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
        self.space: Config = with_usual_ranges(job.search.space)
        seed = job.seed + len(past)  # a resumed run must not draw the same once more
        # Trials run side by side: a penalty on what is being tried keeps them apart.
        # `group` models each alternative by the trials that had it, `multivariate` together.
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )
        directions = optuna.study.StudyDirection
        is_loss = metric_mode(self.goal) == "min"
        direction = directions.MINIMIZE if is_loss else directions.MAXIMIZE
        self.study = optuna.create_study(sampler=sampler, direction=direction)
        self.trials: dict[int, Trial] = {}
        self.epochs: dict[int, list[EpochMetrics]] = {}
        for config, status, history in past:
            trial = self._fixed(config)
            if trial is not None:
                self._learn(trial, status, history)

    def configuration(self, number: int) -> Config:
        """The known configuration of a trial, or what the study proposes for it."""
        known = self.configs.get(number)
        # Asked only now: a proposal knows of every trial that has ended so far.
        if known is None:
            proposed = self.study.ask()
            self.trials[number] = proposed
            return self._walk(proposed)
        fixed = self._fixed(known)
        if fixed is not None:
            self.trials[number] = fixed
        return known

    def epoch(self, number: int, metrics: EpochMetrics) -> None:
        """Keep an epoch until its trial has ended."""
        history = self.epochs.setdefault(number, [])
        history.append(metrics)

    def ended(self, number: int, failed: bool = False) -> None:
        """Tell the study how good a trial was."""
        trial = self.trials.pop(number, None)
        history = self.epochs.pop(number, [])
        if trial is not None:
            self._learn(trial, "failed" if failed else "finished", history)

    def _learn(self, trial: Trial, status: str, history: Sequence[EpochMetrics]) -> None:
        """Tell the study how good the best epoch of a trial was; a trial without one failed."""
        # Data of few classes has no top-5 accuracy, and an older run may have recorded less.
        epochs = [m for m in history if m.get(self.goal) is not None]
        succeeded = status not in ("failed", "diverged")
        if epochs and succeeded:
            best = min(epochs, key=lambda m: sort_key(m, self.goal))
            self.study.tell(trial, metric_value(best, self.goal))
        else:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _fixed(self, config: Config) -> Trial | None:
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

    def _walk(self, trial: Trial) -> Config:
        """The configuration of a trial of the study, its parameters chosen on the way."""
        case: Config = {}
        chosen: dict[str, int] = {}
        for key, value in self.space.items():
            if not isinstance(value, list):
                case[key] = value
                continue
            # A single alternative is no choice: a parameter of one value would only slow TPE down.
            number = 0
            if len(value) > 1:
                number = trial.suggest_categorical(key, list(range(len(value))))
            case[key] = value[number]
            chosen[key] = number
        return fill(case, lambda name, given: _suggest(trial, _parameter(name, chosen), given))

    def _parameters(self, config: Config) -> Config | None:
        """The parameters of the study that a configuration stands for; None where there are none.

        A value that the configuration leaves out is that of the job.
        """
        settings = trial_settings(self.job, config).model_dump()
        found: Config = {}
        for key, options in self.space.items():
            given = _at(settings, job_key(key))
            if not isinstance(options, list):
                found[key] = _as_parameter(parse_range(options), given)
                continue
            fitting = [i for i, option in enumerate(options) if _fits(as_section(option), given)]
            if not fitting:
                return None
            number = fitting[0]
            if len(options) > 1:
                found[key] = number
            section, option = as_section(given), as_section(options[number])
            for name, value in option.items():
                inner = parse_range(value)
                if inner is not None:
                    parameter = _parameter(f"{key}.{name}", {key: number})
                    found[parameter] = _as_parameter(inner, section[name])
        return None if None in found.values() else found


def _suggest(trial: Trial, name: str, given: Range) -> JsonValue:
    if isinstance(given, Listed):
        # By its number: Optuna takes no lists and no sections as choices.
        number: int = trial.suggest_categorical(name, list(range(len(given.values))))
        return given.values[number]
    if given.kind == "int":
        return trial.suggest_int(name, int(given.low), int(given.high))
    return trial.suggest_float(name, given.low, given.high, log=given.kind == "loguniform")


def _at(tree: Mapping[str, JsonValue], key: str) -> JsonValue:
    """The value of a dotted key."""
    node: JsonValue = dict(tree)
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _fits(option: Config, given: JsonValue) -> bool:
    """Whether a section could have come out of an alternative."""
    if not isinstance(given, dict):
        return False
    for name, value in option.items():
        if name not in given:
            return False
        inner = parse_range(value)
        if inner is None and value != given[name]:
            return False
        if inner is not None and _as_parameter(inner, given[name]) is None:
            return False
    return True


def _parameter(name: str, chosen: Mapping[str, int]) -> str:
    """The name of a parameter in the study: each alternative has parameters of its own."""
    for key, number in chosen.items():
        if name.startswith(f"{key}."):
            return f"{key}.{number}.{name.removeprefix(f'{key}.')}"
    return name


def _as_parameter(given: Range | None, value: JsonValue) -> JsonValue:
    """What a range's parameter is called for a value; None for a value outside."""
    if isinstance(given, Listed):
        return given.values.index(value) if value in given.values else None
    # true is an int to Python, not to a person
    if given is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if given.low <= value <= given.high else None


def make_proposals(
    job: Job, numbers: Sequence[int], configs: Mapping[int, Config], past: Sequence[Past]
) -> InOrder:
    """What proposes the configurations of a job's trials; raises UserError without its library."""
    if job.search is None or job.search.algorithm.is_planned:
        return InOrder(numbers, configs)
    try:
        return ByOptuna(numbers, configs, job, past)
    except ImportError:
        raise UserError(
            "search.algorithm: tpe", "needs the library optuna", "pip install 'raysft[optuna]'"
        ) from None
