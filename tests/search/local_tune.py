"""Tune's part of a search without Tune and without Ray: stand-ins in threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.job.values import Config
from raysft.search.pace import Paced
from raysft.search.searchers import Planned
from raysft.search.standin import StandIn
from raysft.search.teams import Teams
from raysft.train.queue.assignment import Assignment
from tests.train.local_teams import LocalTeams


@dataclass(frozen=True)
class Saved:
    """Where a checkpoint of Tune lies."""

    path: str


@dataclass(eq=False)
class Tried:
    """Of a trial of Tune what schedulers and callbacks look at."""

    config: dict
    trial_id: str
    status: str = Trial.PENDING
    checkpoint: Saved | None = None
    stand_in: StandIn | None = None


class Proposals(Planned):
    """Also says how the trials ended."""

    def __init__(self, configs: Sequence[Config]) -> None:
        super().__init__("val_loss", range(len(configs)), dict(enumerate(configs)))
        self.ended: dict[str, bool] = {}

    def on_trial_complete(self, trial_id, result=None, error=False) -> None:
        self.ended[trial_id] = error


@dataclass
class LocalTune:
    """Runs the trials of `teams`, as many at a time as there are teams."""

    teams: LocalTeams
    folder: Path
    scheduler: TrialScheduler = field(default_factory=FIFOScheduler)
    configs: Mapping[str, Config] = field(default_factory=dict)
    make: Callable[[int, Config], Assignment] | None = None
    trials_copy: bool = False
    after: Callable[[LocalTune, Tried, dict], None] = lambda tune, trial, result: None
    """Called with every result, before the scheduler hears of it."""

    def __post_init__(self) -> None:
        self.names = list(self.teams.losses)
        configs = [self.configs.get(name, {}) for name in self.names]
        make, most = self.make or self.make_assignment, len(self.teams.threads)
        self.callback = Teams(self.teams.queue, self.names, make, most)
        self.searcher = Proposals(configs)
        self.paced = Paced(self.searcher, self.callback)
        self.trials: list[Tried] = []
        self.steps: dict[futures.Future, Tried] = {}
        self.search_alg = self  # a scheduler asks it whether there are more to come
        self.is_over = False

    def make_assignment(self, number: int, config: Config) -> Assignment:
        name = self.names[number]
        return Assignment("train", name, f"folder of {name}", Model(), Train(), 0, config)

    def run(self) -> None:
        """Until all trials have ended."""
        with futures.ThreadPoolExecutor(len(self.teams.threads) + 8) as self.threads:
            while not self.is_over:
                self.callback.on_step_begin(0, self.trials)
                self._suggest()
                self._start()
                if not self.steps:
                    break
                done, _ = futures.wait(self.steps, 10, futures.FIRST_COMPLETED)
                assert done, [(trial.config, trial.status) for trial in self.trials]
                self._hear(done.pop())
                self.callback.on_step_end(0, self.trials)

    def _suggest(self) -> None:
        while not self.is_over:
            given = self.paced.suggest(str(len(self.trials)))
            if not isinstance(given, dict):
                break
            trial = Tried(given, str(len(self.trials)))
            self.trials.append(trial)
            self.scheduler.on_trial_add(self, trial)

    def _start(self) -> None:
        while len(self.steps) < len(self.teams.threads):
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None:
                return
            self.start(trial)

    def start(self, trial: Tried) -> None:
        """Give a trial a stand-in, as also after the death of one."""
        # Without the part of a Trainable that needs an actor.
        trial.stand_in = StandIn.__new__(StandIn)
        trial.stand_in.setup(trial.config, self.teams.queue, self.names, self.trials_copy)
        self.callback.on_trial_start(0, self.trials, trial)
        trial.status = Trial.RUNNING
        if trial.checkpoint is not None:
            trial.stand_in.load_checkpoint(str(trial.checkpoint.path))
        self._step(trial)

    def _step(self, trial: Tried) -> None:
        self.steps[self.threads.submit(trial.stand_in.step)] = trial

    def _hear(self, future: futures.Future) -> None:
        trial = self.steps.pop(future)
        result = future.result()
        self.after(self, trial, result)
        if trial.status != Trial.RUNNING or trial in self.steps.values():
            return
        if result["done"]:
            self.end(trial, result)
            return
        decision = self.scheduler.on_trial_result(self, trial, result)
        if decision == TrialScheduler.STOP:
            self.end(trial, result)
        elif decision == TrialScheduler.PAUSE:
            self.pause_trial(trial)
        elif decision == TrialScheduler.CONTINUE:
            self._step(trial)

    def end(self, trial: Tried, result: dict) -> None:
        self.scheduler.on_trial_complete(self, trial, result)
        self.paced.on_trial_complete(trial.trial_id, result)
        trial.status = Trial.TERMINATED
        self.callback.on_trial_complete(0, self.trials, trial)

    def save(self, trial: Tried) -> Saved:
        folder = self.folder / f"checkpoint-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        trial.stand_in.save_checkpoint(str(folder))
        return Saved(str(folder))

    # what a scheduler asks of Tune
    def pause_trial(self, trial: Tried, should_checkpoint: bool = True) -> None:
        if should_checkpoint:
            trial.checkpoint = self.save(trial)
        trial.status = Trial.PAUSED

    def stop_trial(self, trial: Tried) -> None:
        self.scheduler.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED
        self.callback.on_trial_complete(0, self.trials, trial)

    def get_trials(self) -> list[Tried]:
        return self.trials

    get_live_trials = get_trials
