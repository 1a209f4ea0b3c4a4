"""The small actor that hands run after run to the workers of slots that outlive one.

driver:   publish(run) ─▶ … ─▶ withdraw ─▶ wait_idle ─▶ publish(next run) ─▶ … ─▶ close
workers:  next_run ─▶ (train) ─▶ next_run ─▶ …                              ─▶ None: go home
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ray.actor import ActorHandle

from raysft.job.spec import Model
from raysft.train.queue.client import QueueClient
from raysft.train.setup import Setup


@dataclass(frozen=True)
class WorkerRun:
    """What a worker needs to know to take part in a run."""

    setup: Setup
    queue: QueueClient
    model: Model | None
    """The network to make while data is read; None where it is not known yet."""
    seed: int


@dataclass(frozen=True)
class PublishedRun:
    """A run that workers take part in; `number` counts the runs of a pool, from 1."""

    number: int
    run: WorkerRun


class RunFeed:
    """An asyncio actor: every worker that has nothing to do waits in a call of its own."""

    def __init__(self) -> None:
        self._number = 0
        self._current: PublishedRun | None = None
        self._closed = False
        self._workers: dict[tuple[int, int], ActorHandle[object]] = {}
        self._idle: set[tuple[int, int]] = set()
        self._changed = asyncio.Condition()

    # --- the workers ------------------------------------------------------------------------------

    async def next_run(
        self, slot: int, rank: int, after: int, worker: ActorHandle[object]
    ) -> PublishedRun | None:
        """The first run after the one numbered `after`; None: go home.

        A process that has just started asks with 0 and joins the run that goes on: it replaces one
        that died in it.
        """
        async with self._changed:
            self._workers[slot, rank] = worker
            self._idle.add((slot, rank))
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._closed or self._is_next(after))
            self._idle.discard((slot, rank))
            return None if self._closed else self._current

    def _is_next(self, after: int) -> bool:
        return self._current is not None and self._current.number > after

    # --- the driver -------------------------------------------------------------------------------

    async def publish(self, run: WorkerRun) -> None:
        """Give a run to all workers, those that start later included."""
        async with self._changed:
            self._number += 1
            self._current = PublishedRun(self._number, run)
            self._changed.notify_all()

    async def withdraw(self) -> None:
        """The run is over; with it goes the last handle of its queue that is kept here."""
        self._current = None

    async def wait_idle(self, workers: int, wait_s: float) -> bool:
        """Whether all workers have come back for the next run within `wait_s` seconds."""
        async with self._changed:
            everybody = self._changed.wait_for(lambda: len(self._idle) >= workers)
            try:
                await asyncio.wait_for(everybody, wait_s)
            except asyncio.TimeoutError:
                return False
            return True

    async def close(self) -> list[ActorHandle[object]]:
        """Send home who waits; returns the workers that are still at work on a run."""
        async with self._changed:
            self._closed = True
            busy = [worker for key, worker in self._workers.items() if key not in self._idle]
            self._changed.notify_all()
            return busy
