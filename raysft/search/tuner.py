"""Ray Tune decides which trials run and how long; its trials are light stand-ins for those that the teams train."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray import tune

from raysft.job.spec import Scheduler, metric_mode
from raysft.train.queue import Task

# A stand-in reserves nothing that a worker could need, and stays on the head. Tune refuses an empty reservation.
_RESERVE = [{"CPU": 0, "node:__internal_head__": 0.001}]
_QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0",
          "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0"}


class StandIn(tune.Trainable):
    """Hands a trial to the teams and returns its epochs to Tune, one a step."""

    def setup(self, config: dict[str, Any], queue: Any = None, tasks: Sequence[Task] = ()) -> None:
        self.queue, self.tasks = queue, tasks
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.task = self.tasks[config["number"]]
        ray.get(self.queue.put.remote(self.task))

    def step(self) -> dict[str, Any]:
        event = ray.get(self.queue.next_event.remote(self.task.trial))
        if event.kind == "epoch":
            return event.payload | {"done": event.payload["last"]}
        # Failed, or stopped from outside. An exception would cost Tune this actor, and the next trial its start.
        return {"done": True, "val_accuracy": math.nan, "val_loss": math.nan}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the teams write the checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the teams read the checkpoints."""


class _StopAtOnce(tune.Callback):
    """Tells the team when the scheduler ends a trial, before the stand-in gets its next one."""

    def __init__(self, queue: Any, tasks: Sequence[Task]) -> None:
        self.queue, self.tasks = queue, tasks

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.queue.stop.remote(self.tasks[trial.config["number"]].trial)


def search(tasks: Sequence[Task], queue: Any, teams: int, epochs: int, metric: str, scheduler: Scheduler,
           storage: str) -> None:
    """Run all trials, `teams` at a time; returns when Tune has ended the last one."""
    os.environ.update(_QUIET)
    trainable = tune.with_parameters(StandIn, queue=queue, tasks=list(tasks))
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory(_RESERVE)),
        param_space={"number": tune.grid_search(list(range(len(tasks))))},
        tune_config=tune.TuneConfig(metric=metric, mode=metric_mode(metric), scheduler=_scheduler(scheduler, epochs),
                                    max_concurrent_trials=min(teams, len(tasks)), reuse_actors=True),
        run_config=tune.RunConfig(name="search", storage_path=storage, verbose=0,
                                  callbacks=[_StopAtOnce(queue, list(tasks))]))
    tuner.fit()


def _scheduler(spec: Scheduler, epochs: int) -> tune.schedulers.TrialScheduler:
    if spec.name == "none":
        return tune.schedulers.FIFOScheduler()
    return tune.schedulers.ASHAScheduler(time_attr="epoch", max_t=max(epochs, spec.grace_epochs),
                                         grace_period=spec.grace_epochs, reduction_factor=spec.reduction_factor)
