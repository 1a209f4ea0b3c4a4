"""What becomes of a trial whose team could not train it to its end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raysft.train.queue.assignment import Assignment
from raysft.train.queue.events import TrialStatus
from raysft.train.queue.trial_state import WITHOUT_TEAM, Phase

MAX_ATTEMPTS = 3

Cause = Literal["failed", "diverged", "out_of_memory"]


@dataclass(frozen=True)
class Failure:
    """Why a member of a team gave its trial up."""

    error: str
    trace: str
    cause: Cause = "failed"


@dataclass(frozen=True)
class Requeue:
    """A team trains it on from its last checkpoint, with this assignment."""

    assignment: Assignment


@dataclass(frozen=True)
class Pause:
    """It was about to leave its team in any case, and waits for the search."""


@dataclass(frozen=True)
class End:
    """It is over."""

    status: TrialStatus
    error: str | None = None
    trace: str | None = None


@dataclass(frozen=True)
class Ignore:
    """No team has it any more: this is a late word of one that was given up."""


Decision = Requeue | Pause | End | Ignore


def after_lost_team(phase: Phase, assignment: Assignment) -> Decision:
    """A trial's worker died without a word, or its slot is gone."""
    if phase in WITHOUT_TEAM:
        return Ignore()
    if phase is Phase.STOPPING:
        return End("stopped")
    if phase is Phase.PAUSING:
        return Pause()
    attempt = assignment.attempt + 1
    if attempt >= MAX_ATTEMPTS:
        error = f"its worker died {attempt} times without getting further"
        return End("failed", error, "")
    return Requeue(replace(assignment, attempt=attempt))


def after_failure(phase: Phase, assignment: Assignment, failure: Failure) -> Decision:
    """All members of a trial's team have given it up, the first of them for this reason."""
    if phase in WITHOUT_TEAM:
        return Ignore()
    # Half the micro-batch needs half the memory of activations. Once is enough: what does not fit
    # then is the network itself, or another process on the same device.
    if failure.cause == "out_of_memory" and not assignment.halved:
        if phase is Phase.PAUSING:
            return Pause()
        if phase is Phase.RUNNING:
            return Requeue(_halved(assignment))
    status: TrialStatus = "diverged" if failure.cause == "diverged" else "failed"
    return End(status, failure.error, failure.trace)


def _halved(assignment: Assignment) -> Assignment:
    accumulate = 2 * assignment.train.accumulate
    train = assignment.train.model_copy(update={"accumulate": accumulate})
    return replace(assignment, train=train, halved=True)
