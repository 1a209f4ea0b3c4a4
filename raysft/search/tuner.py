"""Ray Tune's schedulers and search algorithms decide which trials run and how long, without the processes of Tune.

Tune would start an actor for each trial that runs, which had nothing to do here but to hand a configuration to a team,
and cost two seconds of CPU. So they are asked from a thread of the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raysft.errors import UserError
from raysft.job.spec import Scheduler, metric_mode
from raysft.search.propose import InOrder
from raysft.train.queue import Event, Task

MakeTask = Callable[[int, dict[str, Any]], Task]


@dataclass(frozen=True)
class Known:
    """What trials of an earlier part of this run came to: epochs by the number of the trial."""

    ended: Mapping[int, Sequence[dict[str, Any]]] = field(default_factory=dict)
    going_on: Mapping[int, Sequence[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trial:
    """Of a trial what the schedulers of Tune ask for."""

    trial_id: str
    number: int


class _NoTune:
    """What a scheduler may ask of Tune's controller: there are no trials that wait for their turn."""

    def get_live_trials(self) -> list[Any]:
        return []


_NO_TUNE: Any = _NoTune()


class _WithPast(FIFOScheduler):
    """A scheduler that judges by the epochs of earlier parts of the run too."""

    known = Known()

    def remember(self, known: Known) -> None:
        """Take in the trials that have ended, and those that go on as soon as they are added."""
        for number, history in known.ended.items():
            trial: Any = Trial(f"past-{number}", number)
            self.on_trial_add(_NO_TUNE, trial)
            for epoch in history:
                self.on_trial_result(_NO_TUNE, trial, epoch)
        self.known = known

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        # The team tells the last epoch again, and it is judged then: it may have died before that was heard.
        for epoch in self.known.going_on.get(trial.number, ())[:-1]:
            self.on_trial_result(tune_controller, trial, epoch)


class _Asha(_WithPast, ASHAScheduler):
    pass


class _Median(_WithPast, MedianStoppingRule):
    pass


def search(proposals: InOrder, make_task: MakeTask, names: Sequence[str], queue: Any, teams: int,
           scheduler: Any) -> None:
    """Run all trials that are proposed, `teams` at a time; returns when the last one has ended, or was told to.

    names: of all trials of the run, by their numbers; scheduler: one of Tune's.
    """
    going: dict[Any, Trial] = {}
    while True:
        while len(going) < teams and (trial := _begin(proposals, make_task, names, queue)) is not None:
            scheduler.on_trial_add(_NO_TUNE, trial)
            going[queue.next_event.remote(trial.trial_id)] = trial
        if not going:
            return
        (told,), _ = ray.wait(list(going), num_returns=1)
        trial = going.pop(told)
        if _goes_on(trial, ray.get(told), scheduler, proposals):
            going[queue.next_event.remote(trial.trial_id)] = trial  # to ask for an epoch lets the team train it
        else:
            queue.stop.remote(trial.trial_id)  # of no account to a trial that has ended


def _begin(proposals: InOrder, make_task: MakeTask, names: Sequence[str], queue: Any) -> Trial | None:
    """Hand the next trial to the teams; None when there are no more."""
    while (proposed := proposals.next_trial()) is not None:
        number, config = proposed
        try:
            task = make_task(number, config)
        except (ValueError, UserError) as error:  # each value may be right, and all of them together not
            ray.get(queue.reject.remote(names[number], config, " ".join(str(error).split())))
            proposals.ended(number, failed=True)
            continue
        ray.get(queue.put.remote(task))
        return Trial(names[number], number)
    return None


def _goes_on(trial: Trial, event: Event, scheduler: Any, proposals: InOrder) -> bool:
    """Tell the scheduler and the search algorithm what became of a trial; returns whether it trains on."""
    if event.kind != "epoch":  # failed, or stopped from outside
        proposals.ended(trial.number, failed=event.kind != "stopped")
        return False
    proposals.epoch(trial.number, event.payload)
    if event.payload["last"]:
        scheduler.on_trial_complete(_NO_TUNE, trial, event.payload)
    elif scheduler.on_trial_result(_NO_TUNE, trial, event.payload) != TrialScheduler.STOP:
        return True
    proposals.ended(trial.number)
    return False


def scheduler_of(spec: Scheduler, epochs: int, metric: str, known: Known) -> TrialScheduler:
    """Tune's scheduler for a job; known: where the run stood when it was taken up again."""
    if spec.name == "none":
        return FIFOScheduler()
    goal: dict[str, Any] = {"time_attr": "epoch", "metric": metric, "mode": metric_mode(metric),
                            "grace_period": spec.grace_epochs}
    scheduler = _Median(**goal) if spec.name == "median" else _Asha(
        max_t=max(epochs, spec.grace_epochs), reduction_factor=spec.reduction_factor, **goal)
    scheduler.remember(known)
    return scheduler
