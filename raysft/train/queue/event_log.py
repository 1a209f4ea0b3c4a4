"""The events that the driver has not got yet, each delivered at least once and kept no longer."""

from __future__ import annotations

import asyncio
from collections import deque

from raysft.train.queue.events import Event, TrialProgress


class EventLog:
    """A numbered row of events that one reader asks for; what it has acknowledged is dropped."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._acknowledged = 0
        """How many events the reader has by its own word; the number of the first one here."""
        self._delivered = 0
        """Up to which number events were put into an answer, which may have been lost."""
        self._last_progress: dict[str, int] = {}
        """By trial the number of its last event, where that is a progress."""
        self._changed = asyncio.Condition()

    async def append(self, event: Event, trial: str = "") -> None:
        """Add an event of a trial, or of none."""
        async with self._changed:
            number = self._acknowledged + len(self._events)
            last_progress = self._last_progress.pop(trial, -1)
            if isinstance(event, TrialProgress):
                # A slow driver needs to hear where a trial is, not where it was on the way there.
                # Without this a driver that hangs for an hour lets the queue grow by thousands.
                if last_progress >= self._delivered:
                    self._events[last_progress - self._acknowledged] = event
                    self._last_progress[trial] = last_progress
                    return
                self._last_progress[trial] = number
            self._events.append(event)
            self._changed.notify_all()

    async def after(self, number: int, wait_s: float) -> list[Event]:
        """Events from `number` on; waits up to `wait_s` seconds for the first one.

        To ask so acknowledges all before. Raises ValueError for events that were dropped.
        """
        if number < self._acknowledged:
            raise ValueError(
                f"events before number {self._acknowledged} were delivered, and are not kept"
            )
        async with self._changed:
            while self._acknowledged < number:
                self._events.popleft()
                self._acknowledged += 1
            if not self._events and wait_s > 0:
                waiting = self._changed.wait_for(lambda: self._events)
                try:
                    await asyncio.wait_for(waiting, wait_s)
                except asyncio.TimeoutError:
                    return []
            # From here on these stay as they are: an answer that is given again, because the first
            # one was lost, must number its events as the first one did.
            self._delivered = self._acknowledged + len(self._events)
            return list(self._events)
