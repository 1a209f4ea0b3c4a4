"""Which slots of a run can work, and what becomes of the run when one of them cannot."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from raysft.errors import RunError, UserError, describe_error
from raysft.ray_calls import START_SECONDS, last_worker_output
from raysft.run.observers import Observer
from raysft.train.queue.events import (
    EpochEnded,
    Event,
    TrialProgress,
    WorkerArrived,
    WorkerUnable,
)
from raysft.train.queue.policy import MAX_ATTEMPTS
from raysft.train.slots import own_start_seconds


class WatchedSlot(Protocol):
    """What there is to know of a slot from outside."""

    number: int
    error: BaseException | None
    started: float | None
    """When it was begun, by the clock that never jumps; None before."""

    def is_alive(self) -> bool:
        """Whether its worker group is there, or is being started again."""


class SlotWatch(Observer):
    """The slots that a run still has.

    `on_lost` is called with the number of a slot that will not come back, where other slots are
    left to do its trials.
    """

    def __init__(
        self,
        log: str,
        note: Callable[[str], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self.slots: list[WatchedSlot] = []
        self.log = log
        self.note = note
        self.on_lost = on_lost
        self.has_trained = False
        self._arrived: set[int] = set()
        # Failed starts of each slot since any slot last got further.
        self._failed_starts: Counter[int] = Counter()

    def watch(self, slots: Sequence[WatchedSlot]) -> None:
        """Begin with these slots."""
        self.slots = list(slots)

    def event(self, event: Event) -> None:
        """Look at what says how the processes of the slots are."""
        if isinstance(event, WorkerArrived):
            self.process_started(event.slot)
        elif isinstance(event, WorkerUnable):
            self.start_failed(event.slot, event.host, event.error)
        elif isinstance(event, (TrialProgress, EpochEnded)):
            self.training_advanced()

    def process_started(self, slot: int) -> None:
        """A process of a slot runs."""
        self._arrived.add(slot)  # one is enough: Ray Train itself watches over the others

    def training_advanced(self) -> None:
        """A team has trained some steps: its environment works, and the others may recover."""
        self.has_trained = True
        self._failed_starts.clear()

    def start_failed(self, slot: int, host: str, error: str) -> None:
        """A process of a slot cannot import what it needs.

        Where nothing has trained yet, that will not go away: RunError. Later it may be one machine
        of many: the slot is given up when it happens again and again.
        """
        # The environment is most often the same on every machine.
        if not self.has_trained:
            raise RunError(
                f"slot {slot}",
                f"a worker on {host} cannot start: {error}",
                "repair its environment, then resume the run",
            )
        self.note(f"slot {slot}: a worker on {host} cannot start: {error}")
        self._failed_starts[slot] += 1
        if self._failed_starts[slot] >= MAX_ATTEMPTS:
            for known in [known for known in self.slots if known.number == slot]:
                self.give_up(known, f"(a worker on {host} cannot start: {error})")

    def check(self, read_events: Callable[[], object]) -> None:
        """Give up the slots that have ended, and those of which nothing has started in time.

        A slot that ended may have said why: `read_events` lets the run hear that first.
        """
        for slot in [slot for slot in self.slots if not slot.is_alive()]:
            read_events()
            reason = f"({describe_cause(slot.error)})" if slot.error else None
            self.give_up(slot, reason or "before the trials were done")
        # A person who lets Ray Train wait longer for its workers is not to be cut short here.
        patience = max(START_SECONDS, own_start_seconds())
        for slot in [slot for slot in self.slots if slot.number not in self._arrived]:
            if slot.started is not None and time.monotonic() - slot.started > patience:
                cause = f"none of its processes has started within {patience:g} seconds"
                self.give_up(slot, f"({cause}{last_worker_output()})")

    def give_up(self, slot: WatchedSlot, cause: str) -> None:
        """Go on without a slot; raises RunError where it was the last one."""
        if slot not in self.slots:  # an event that was read meanwhile has given it up already
            return
        self.slots.remove(slot)
        name = f"slot {slot.number}"
        if not self.slots:
            what = f"its worker group ended {cause}"
            raise RunError(name, what, f"see {self.log}")
        self.note(f"{name} ended {cause}: its trials go to the other slots")
        self.on_lost(slot.number)


def describe_cause(error: BaseException) -> str:
    """What an error says that ended a thread of the run."""
    if isinstance(error, UserError):
        return str(error)
    return describe_error(error, -1)
