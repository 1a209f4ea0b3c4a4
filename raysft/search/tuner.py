"""Ray Tune decides which trials run and how long; its trials are light stand-ins for those that the teams train."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raysft.errors import UserError
from raysft.job.spec import METRICS, Scheduler, metric_mode
from raysft.search.propose import InOrder
from raysft.train.queue import Task

# A stand-in reserves nothing that a worker could need, and stays on the head. Tune refuses an empty reservation.
_RESERVE = [{"CPU": 0, "node:__internal_head__": 0.001}]
_QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0",
          "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0"}


MakeTask = Callable[[int, dict[str, Any]], Task]


class StandIn(tune.Trainable):
    """Hands a trial to the teams and returns its epochs to Tune, one a step."""

    def setup(self, config: dict[str, Any], queue: Any = None, make_task: MakeTask | None = None,
              names: Sequence[str] = ()) -> None:
        self.queue, self.make_task, self.names = queue, make_task, names
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        assert self.make_task is not None
        self.trial = self.names[config["number"]]
        try:
            task = self.make_task(config["number"], config["config"])
        except (ValueError, UserError) as error:  # each value may be right, and all of them together not
            ray.get(self.queue.reject.remote(self.trial, config["config"], " ".join(str(error).split())))
            return
        ray.get(self.queue.put.remote(task))

    def step(self) -> dict[str, Any]:
        event = ray.get(self.queue.next_event.remote(self.trial))
        if event.kind == "epoch":
            return event.payload | {"done": event.payload["last"]}
        # Failed, or stopped from outside. An exception would cost Tune this actor, and the next trial its start.
        return {"done": True, **dict.fromkeys(METRICS, math.nan)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the teams write the checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the teams read the checkpoints."""


@dataclass(frozen=True)
class Known:
    """What trials of an earlier part of this run came to: epochs by the number of the trial."""

    ended: Mapping[int, Sequence[dict[str, Any]]] = field(default_factory=dict)
    going_on: Mapping[int, Sequence[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _PastTrial:
    trial_id: str


class _NoTune:
    """What a scheduler may ask of Tune while it takes in the past: there are no trials."""

    def get_live_trials(self) -> list[Any]:
        return []


_NO_TUNE: Any = _NoTune()


class _WithPast(FIFOScheduler):
    """A scheduler that judges by the epochs of earlier parts of the run too."""

    known = Known()

    def remember(self, known: Known) -> None:
        """Take in the trials that have ended, and those that go on as soon as Tune adds them."""
        for number, history in known.ended.items():
            trial: Any = _PastTrial(f"past-{number}")
            self.on_trial_add(None, trial)
            for epoch in history:
                self.on_trial_result(_NO_TUNE, trial, epoch)
        self.known = known

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        if isinstance(trial, _PastTrial):
            return
        # The team tells the last epoch again, and it is judged then: it may have died before that was heard.
        for epoch in self.known.going_on.get(trial.config["number"], ())[:-1]:
            self.on_trial_result(_NO_TUNE, trial, epoch)


class _Asha(_WithPast, ASHAScheduler):
    pass


class _Median(_WithPast, MedianStoppingRule):
    pass


class _StopAtOnce(tune.Callback):
    """Tells the team when the scheduler ends a trial, before the stand-in gets its next one."""

    def __init__(self, queue: Any, names: Sequence[str]) -> None:
        self.queue, self.names = queue, names

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.queue.stop.remote(self.names[trial.config["number"]])


def search(proposals: InOrder, make_task: MakeTask, names: Sequence[str], queue: Any, teams: int, epochs: int,
           metric: str, scheduler: Scheduler, storage: str, known: Known) -> None:
    """Run all trials that are proposed, `teams` at a time; returns when Tune has ended the last one.

    names: of all trials of the run, by their numbers; known: where the run stood when it was taken up again.
    """
    os.environ.update(_QUIET)
    trials = len(proposals.waiting)
    trainable = tune.with_parameters(StandIn, queue=queue, make_task=make_task, names=list(names))
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory(_RESERVE)),
        tune_config=tune.TuneConfig(scheduler=_scheduler(scheduler, epochs, metric, known),
                                    search_alg=proposals, num_samples=trials,
                                    max_concurrent_trials=min(teams, trials), reuse_actors=True),
        run_config=tune.RunConfig(name="search", storage_path=storage, verbose=0,
                                  callbacks=[_StopAtOnce(queue, names)]))
    tuner.fit()


def _scheduler(spec: Scheduler, epochs: int, metric: str, known: Known) -> TrialScheduler:
    if spec.name == "none":
        return FIFOScheduler()
    goal: dict[str, Any] = {"time_attr": "epoch", "metric": metric, "mode": metric_mode(metric),
                            "grace_period": spec.grace_epochs}
    scheduler = _Median(**goal) if spec.name == "median" else _Asha(
        max_t=max(epochs, spec.grace_epochs), reduction_factor=spec.reduction_factor, **goal)
    scheduler.remember(known)
    return scheduler
