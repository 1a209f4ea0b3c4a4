"""What a trial is doing as the queue sees it, and what it may do next."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum

from raysft.records.documents import EpochMetrics
from raysft.train.queue.assignment import Assignment, Source
from raysft.train.queue.events import TrialEvent


class Phase(Enum):
    """Where a trial is between being proposed and having ended."""

    QUEUED = "waits for a team"
    RUNNING = "has a team"
    PAUSING = "is to leave its team after the epoch it has reported, and to wait"
    STOPPING = "is to leave its team after the epoch it has reported, and to end"
    PAUSED = "has no team, and waits to be resumed or stopped"
    ENDED = "is over"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.RUNNING, Phase.PAUSED, Phase.ENDED}),
    # back into the queue when its worker died, or memory was short
    Phase.RUNNING: frozenset({Phase.QUEUED, Phase.PAUSING, Phase.STOPPING, Phase.ENDED}),
    # the search can still be told to end while its trial is on the way out
    Phase.PAUSING: frozenset({Phase.PAUSED, Phase.STOPPING, Phase.ENDED}),
    Phase.STOPPING: frozenset({Phase.ENDED}),
    Phase.PAUSED: frozenset({Phase.QUEUED, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}
WITHOUT_TEAM = frozenset({Phase.QUEUED, Phase.PAUSED, Phase.ENDED})


@dataclass
class TrialState:
    """What the queue knows of a trial."""

    assignment: Assignment
    phase: Phase = Phase.QUEUED
    trained: bool = False
    """Whether its last epoch was reported: nothing stops it any more."""
    epochs: int = 0
    """The highest that was reported in any attempt."""
    most_steps: int = 0
    """Steps of the epoch in progress, as far as any attempt reported."""
    last_seen: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(step, steps of the epoch) that each rank reported last."""
    unread: deque[TrialEvent] = field(default_factory=deque)
    """Events that the search has not read yet."""
    has_unread: asyncio.Event = field(default_factory=asyncio.Event)
    reader: str = ""
    """Who asked for its events last."""
    delivered: TrialEvent | None = None
    """What that one was answered last."""
    following: Assignment | None = None
    """What it goes on with at once when it has left its team."""
    claimed: Source | None = None
    """The checkpoint of another trial that it will start from."""
    pinned: int | None = None
    """The last epoch whose checkpoint other trials may start from."""
    decision: asyncio.Future[bool] | None = None
    """Whether to train on after the epoch just reported; None where nobody is asked."""

    def enter(self, phase: Phase) -> None:
        """Change the phase; raises ValueError for a step that no trial can take."""
        if phase not in TRANSITIONS[self.phase]:
            trial = self.assignment.trial
            raise ValueError(
                f"trial {trial} cannot go from {self.phase.name} to {phase.name} in the queue"
            )
        self.phase = phase

    def read_by(self, reader: str) -> None:
        """Somebody asks for its events: one that is new has not heard what was answered last."""
        if reader == self.reader:
            return
        self.reader = reader
        if self.delivered is not None:
            self.unread.appendleft(self.delivered)
        self.has_unread.set()  # who asked before need not wait any more

    def forget_events(self) -> None:
        """What was to be told of the time before a pause is of no use after it."""
        self.unread.clear()
        self.delivered = None

    def decide(self, go_on: bool) -> None:
        """Answer the team that waits after an epoch, if one does."""
        if self.decision is not None and not self.decision.done():
            self.decision.set_result(go_on)

    def note_step(self, rank: int, step: int, steps: int) -> None:
        """A member of its team is inside an epoch."""
        self.last_seen[rank] = (step, steps)
        if step > self.most_steps:
            self.most_steps = step
            # Only deaths without progress in between count: on machines that come and go a trial
            # of many hours outlives any fixed number of them.
            self.assignment = replace(self.assignment, attempt=0)

    def note_epoch(self, metrics: EpochMetrics, last: bool) -> bool:
        """An epoch was reported; returns whether that is news."""
        self.trained = self.trained or last
        # A team that resumes reports the epoch of its checkpoint again: whoever wrote it may have
        # died before it could report.
        if metrics["epoch"] <= self.epochs:
            return False
        self.epochs = metrics["epoch"]
        self.most_steps = 0
        self.assignment = replace(self.assignment, attempt=0)
        return True

    def sources(self) -> list[Source]:
        """The checkpoints of other trials that it is still to start from."""
        following = self.following.source if self.following else None
        sources = [self.claimed, following, self.assignment.source]
        return [source for source in sources if source is not None]

    def note_copied(self) -> Source | None:
        """Its team has reported an epoch: where it came from, the first time."""
        source = self.assignment.source
        # A team that takes the trial from now on finds the checkpoint in the trial's own folder.
        self.assignment = replace(self.assignment, source=None)
        if source is not None:
            self.claimed = None
            self.pinned = None
        return source


def describe_step(seen: tuple[int, int] | None) -> str:
    """Where a rank was seen last, in words."""
    if seen is None:
        return "not seen in training"
    step, steps = seen
    return f"last seen after step {step} of {steps}"
