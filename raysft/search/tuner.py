"""The search: which trials run, side by side, and for how long; asked from a thread of the
driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysft.errors import UserError
from raysft.job.rungs import first_rung
from raysft.job.spec import Search
from raysft.job.values import Config
from raysft.search.earlier import EarlierTrials
from raysft.search.halving import Halving
from raysft.search.propose import InOrder
from raysft.search.rules import Median, Scheduler
from raysft.train.queue.assignment import Assignment
from raysft.train.queue.client import QueueClient, Reply
from raysft.train.queue.events import EpochEnded, TrialEnded, TrialEvent, TrialPaused

MakeAssignment = Callable[[int, Config], Assignment]


def make_scheduler(
    spec: Search, trials: int, epochs: int, teams: int, known: EarlierTrials
) -> Scheduler:
    """What decides on the trials of a job; known: those of an earlier part of its run."""
    given = spec.scheduler
    if given.name == "halving":
        return Halving(given, trials, epochs, teams, spec.metric, known)
    if given.name == "median":
        return Median(first_rung(given, epochs), spec.metric, known)
    return Scheduler()


def search(
    proposals: InOrder,
    make_assignment: MakeAssignment,
    names: Sequence[str],
    queue: QueueClient,
    teams: int,
    scheduler: Scheduler,
) -> None:
    """Run all trials that are proposed, `teams` at a time; returns when the last one has ended, or
    was told to.

    names: of all trials of the run, by their numbers.
    """
    going: dict[Reply[TrialEvent], int] = {}
    while True:
        # No more at a time than there are teams: what is proposed later knows more.
        while len(going) < teams:
            begun = _next(proposals, make_assignment, names, queue, scheduler)
            if begun is None:
                break
            going[queue.request_event(names[begun])] = begun
        if not going:
            return
        reply = queue.first(list(going))
        number = going.pop(reply)
        if _has_more(number, names[number], reply.result(), queue, scheduler, proposals):
            # to ask for an epoch lets the team train it
            going[queue.request_event(names[number])] = number


def _next(
    proposals: InOrder,
    make_assignment: MakeAssignment,
    names: Sequence[str],
    queue: QueueClient,
    scheduler: Scheduler,
) -> int | None:
    """Hand a trial to the teams: the next one that is proposed, else a paused one; None when there
    is none now.
    """
    while (proposed := proposals.next_trial()) is not None:
        number, config = proposed
        try:
            assignment = make_assignment(number, config)
        except (ValueError, UserError) as error:
            # Each value may be right, and all of them together not: that trial has failed.
            line = " ".join(str(error).split())
            queue.reject(names[number], config, line)
            proposals.ended(number, failed=True)
            continue
        queue.put(assignment)
        scheduler.begin(number)
        return number
    for number in scheduler.hopeless():
        queue.stop(names[number])
    promoted = scheduler.promoted()
    if promoted is not None:
        queue.resume(names[promoted])
    return promoted


def _has_more(
    number: int,
    name: str,
    event: TrialEvent,
    queue: QueueClient,
    scheduler: Scheduler,
    proposals: InOrder,
) -> bool:
    """Act on what became of a trial; returns whether it still has its team."""
    if isinstance(event, TrialPaused):
        scheduler.paused(number)
        # It may never go on: the proposals learn now what it was good for.
        proposals.ended(number)
        return False
    if not isinstance(event, EpochEnded):  # failed, or stopped from outside
        scheduler.ended(number)
        # Who was stopped was as good as its epochs; who failed says that its values do not work.
        stopped = isinstance(event, TrialEnded) and event.status == "stopped"
        proposals.ended(number, failed=not stopped)
        return False
    proposals.epoch(number, event.metrics)
    if event.last:
        scheduler.ended(number, event.metrics)
        proposals.ended(number)
        return False
    decision = scheduler.epoch(number, event.metrics)
    if decision == "pause":
        queue.pause(name)
    if decision == "stop":
        queue.stop(name)
        proposals.ended(number)
    return decision != "stop"
