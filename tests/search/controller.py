"""What Tune does with a scheduler, without Ray: trials whose quality is known beforehand."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher, SearchGenerator

Quality = Callable[[int, int, dict], float]
"""Of (number, epoch, configuration) the accuracy."""


def epochs(*values, first=1):
    return [
        {"epoch": first + i, "val_accuracy": value, "val_loss": 1 - value}
        for i, value in enumerate(values)
    ]


def result_of(metrics):
    return {**metrics, "training_iteration": metrics["epoch"]}


def trial_of(number, config=None):
    return Trial("", stub=True, config={"number": number, "config": config or {}})


class Told(Searcher):
    """Takes what BOHB tells its searcher by way of the controller; `new`: what is left."""

    def __init__(self, new):
        super().__init__()
        self.new = new

    @property
    def has_more(self):
        return bool(self.new)

    def on_pause(self, trial_id):
        pass

    def on_unpause(self, trial_id):
        pass


class Proposals(SearchGenerator):
    """A search by a searcher, which every search of raysft is."""

    def __init__(self, new=()):
        self.searcher = Told(new)


@dataclass(frozen=True)
class Checkpoint:
    """Of a trial after an epoch."""

    number: int
    epoch: int


@dataclass
class Controller:
    """Runs trials, `teams` at a time, as Tune does; `fails`: after how many epochs a trial fails."""

    scheduler: TrialScheduler
    quality: Quality
    count: int
    length: int
    teams: int = 1
    fails: Mapping[int, int] = field(default_factory=dict)
    configs: Mapping[int, dict] = field(default_factory=dict)
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    paced: bool = True
    """Whether a trial is proposed only when a team is free for it."""
    at_once: bool = False
    """Whether all trials are proposed before the first begins."""
    resumed: Mapping[int, int] = field(default_factory=dict)
    """Epochs that trials had before: their last one is reported again."""

    def __post_init__(self):
        self.trials: list[Trial] = []
        self.new = list(range(self.count))
        self.trained = [max(0, self.resumed.get(number, 0) - 1) for number in self.new]
        self.epochs_trained = 0
        self.ended: dict[int, str] = {}
        self.search_alg = Proposals(self.new)
        self.clones: list[tuple[int, Checkpoint]] = []

    # --- what a scheduler asks ------------------------------------------------------------------

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return [trial for trial in self.trials if not trial.is_finished()]

    def stop_trial(self, trial):
        if trial.is_finished():
            return
        if trial.status == Trial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, trial.last_result)
        else:
            self.scheduler.on_trial_remove(self, trial)
        self._end(trial, "stopped", Trial.TERMINATED)

    def pause_trial(self, trial, should_checkpoint=True):
        trial.set_status(Trial.PAUSED)
        if should_checkpoint:
            checkpoint = self._schedule_trial_save(trial, trial.last_result)
            saved = SimpleNamespace(checkpoint=checkpoint, metrics=trial.last_result)
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = saved

    def _schedule_trial_save(self, trial, result=None):
        return Checkpoint(trial.config["number"], result["epoch"])

    # --- what Tune does -------------------------------------------------------------------------

    def run(self):
        while True:
            self._begin()
            running = [trial for trial in self.trials if trial.status == Trial.RUNNING]
            if not running:
                return self
            self._step(self.chance.choice(running))

    def _begin(self):
        """Start trials while there are teams without one."""
        while True:
            statuses = [trial.status for trial in self.trials]
            proposed = statuses.count(Trial.PENDING)
            if self.paced:
                proposed += statuses.count(Trial.RUNNING)
            while self.new and (self.at_once or proposed < self.teams):
                proposed += 1
                number = self.new.pop(0)
                trial = trial_of(number, self.configs.get(number))
                self.trials.append(trial)
                self.scheduler.on_trial_add(self, trial)
            busy = sum(trial.status == Trial.RUNNING for trial in self.trials)
            chosen = self.scheduler.choose_trial_to_run(self)
            assert chosen is self.scheduler.choose_trial_to_run(self), "must be idempotent"
            if chosen is None or busy == self.teams:
                return
            assert chosen.status in (Trial.PENDING, Trial.PAUSED)
            # Tune stages a trial first, and asks again before it runs.
            chosen.set_status(Trial.PENDING)
            assert self.scheduler.choose_trial_to_run(self) is chosen
            self._restore(chosen)
            chosen.set_status(Trial.RUNNING)

    def _restore(self, trial):
        """Start from the checkpoint of another trial, where it was given one."""
        stored = trial.latest_checkpoint_result
        if stored is not None and stored.checkpoint.number != trial.config["number"]:
            self.clones.append((trial.config["number"], stored.checkpoint))
            self.trained[trial.config["number"]] = stored.checkpoint.epoch

    def _step(self, trial):
        number = trial.config["number"]
        assert number not in self.ended
        if self.trained[number] == self.fails.get(number):
            self.scheduler.on_trial_error(self, trial)
            self._end(trial, "failed", Trial.ERROR)
            return
        self.trained[number] += 1
        self.epochs_trained += 1
        epoch = self.trained[number]
        value = self.quality(number, epoch, trial.config["config"])
        (metrics,) = epochs(value, first=epoch)
        result = result_of(metrics)
        if epoch == self.length:
            self.scheduler.on_trial_complete(self, trial, result | {"done": True})
            self._end(trial, "finished", Trial.TERMINATED)
            return
        decision = self.scheduler.on_trial_result(self, trial, result)
        trial.update_last_result(result)
        if decision == TrialScheduler.PAUSE:
            self.pause_trial(trial)
        elif decision == TrialScheduler.STOP:
            self.stop_trial(trial)

    def _end(self, trial, how, status):
        trial.set_status(status)
        self.ended[trial.config["number"]] = how
