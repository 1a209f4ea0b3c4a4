"""The search: which trials run, side by side, and for how long; asked from a thread of the
driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from raysft.errors import UserError
from raysft.job.rungs import first_rung
from raysft.job.spec import Search
from raysft.search.halving import Halving
from raysft.search.propose import InOrder
from raysft.search.schedulers import Known, Median, Scheduler
from raysft.train.queue import Event, Task

MakeTask = Callable[[int, dict[str, Any]], Task]


def scheduler_of(spec: Search, trials: int, epochs: int, teams: int, known: Known) -> Scheduler:
    """What decides on the trials of a job; known: where the run stood when it was taken up
    again.
    """
    given = spec.scheduler
    if given.name == "asha":
        return Halving(given, trials, epochs, teams, spec.metric, known)
    return (
        Median(first_rung(given, epochs), spec.metric, known)
        if given.name == "median"
        else Scheduler()
    )


def search(
    proposals: InOrder,
    make_task: MakeTask,
    names: Sequence[str],
    queue: Any,
    teams: int,
    scheduler: Scheduler,
) -> None:
    """Run all trials that are proposed, `teams` at a time; returns when the last one has ended, or
    was told to.

    names: of all trials of the run, by their numbers.
    """
    going: dict[Any, int] = {}
    while True:
        while (
            len(going) < teams
            and (number := _next(proposals, make_task, names, queue, scheduler)) is not None
        ):
            going[queue.next_event.remote(names[number])] = number
        if not going:
            return
        (told,), _ = ray.wait(list(going), num_returns=1)
        number = going.pop(told)
        if _has_more(number, names[number], ray.get(told), queue, scheduler, proposals):
            going[queue.next_event.remote(names[number])] = (
                number  # to ask for an epoch lets the team train it
            )


def _next(
    proposals: InOrder, make_task: MakeTask, names: Sequence[str], queue: Any, scheduler: Scheduler
) -> int | None:
    """Hand a trial to the teams: the next one that is proposed, else a paused one; None when there
    is none now.
    """
    while (proposed := proposals.next_trial()) is not None:
        number, config = proposed
        try:
            task = make_task(number, config)
        except (
            ValueError,
            UserError,
        ) as error:  # each value may be right, and all of them together not
            ray.get(queue.reject.remote(names[number], config, " ".join(str(error).split())))
            proposals.ended(number, failed=True)
            continue
        ray.get(queue.put.remote(task))
        scheduler.begin(number)
        return number
    for number in scheduler.hopeless():
        ray.get(queue.stop.remote(names[number]))
    promoted = scheduler.promoted()
    if promoted is not None:
        ray.get(queue.go_on.remote(names[promoted]))
    return promoted


def _has_more(
    number: int, name: str, event: Event, queue: Any, scheduler: Scheduler, proposals: InOrder
) -> bool:
    """Act on what became of a trial; returns whether it still has its team."""
    if event.kind == "paused":
        scheduler.paused(number)
        proposals.ended(number)
        return False
    if event.kind != "epoch":  # failed, or stopped from outside
        scheduler.ended(number)
        proposals.ended(number, failed=event.kind != "stopped")
        return False
    proposals.epoch(number, event.payload)
    if event.payload["last"]:
        scheduler.ended(number, event.payload)
        proposals.ended(number)
        return False
    decision = scheduler.epoch(number, event.payload)
    if decision == "pause":
        ray.get(queue.pause.remote(name))
    if decision == "stop":
        queue.stop.remote(name)
        proposals.ended(number)
    return decision != "stop"
