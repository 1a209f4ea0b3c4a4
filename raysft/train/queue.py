"""The small actor between the search and the teams: trials go one way, metrics and decisions the other.

    search:  put(task) ─▶ next_event ─▶ … ─▶ stop         driver:  events
    teams:   take ─▶ meet (once) ─▶ report ─▶ … ─▶ finish | fail ─▶ settle

A trial fails when every member of its team has given it up; the first of them says why. A member that was killed says
nothing: then Ray Train restarts the worker group, and the trial is taken up again from its last checkpoint.

A team that reports an epoch waits until the search has asked for the next event of that trial (go on) or has stopped
it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raysft.errors import RaysftError
from raysft.job.spec import Train

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Task:
    """What a team is asked to do: train a trial, or score one checkpoint on the test split."""

    kind: Literal["train", "score"]
    trial: str
    folder: str
    train: Train | None = None
    attempt: int = 0


@dataclass(frozen=True)
class Event:
    """What happened to a trial: started, progress, epoch, finished, stopped, failed, scored; or to a slot: ready."""

    kind: str
    trial: str
    payload: dict[str, Any]
    at: float = field(default_factory=time.time)


@dataclass
class _Trial:
    task: Task
    unread: deque[Event] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    decision: asyncio.Future[bool] | None = None
    stopped: bool = False
    ended: bool = False
    epochs: int = 0


@dataclass
class _Failure:
    trial: str
    payload: dict[str, str]
    missing: set[int]
    settled: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _Team:
    joined: set[int] = field(default_factory=set)
    turn: int = -1
    task: asyncio.Future[Task | None] | None = None
    running: str | None = None
    failure: _Failure | None = None
    group: int = 0
    meetings: dict[int, asyncio.Future[str]] = field(default_factory=dict)


class TrialQueue:
    """State of a run's trials and teams; an asyncio actor, so every method may wait."""

    def __init__(self) -> None:
        self._trials: dict[str, _Trial] = {}
        self._teams: dict[tuple[int, int], _Team] = {}
        self._pending: deque[Task] = deque()
        self._more = asyncio.Condition()
        self._closed = False
        self._events: list[Event] = []
        self._happened = asyncio.Condition()
        self._data: asyncio.Future[dict[str, Any]] | None = None

    # --- the driver ---

    async def set_data(self, data: dict[str, Any]) -> None:
        """Hand the splits (or the references to them) to all workers."""
        self._data_future().set_result(data)

    async def events(self, after: int, wait_s: float) -> Sequence[Event]:
        """What happened since the event number `after`; waits up to `wait_s` seconds for something."""
        async with self._happened:
            if len(self._events) <= after and wait_s > 0:
                try:
                    await asyncio.wait_for(self._happened.wait_for(lambda: len(self._events) > after), wait_s)
                except asyncio.TimeoutError:
                    return []
            return self._events[after:]

    async def close(self) -> None:
        """No more trials: teams that ask are sent home."""
        async with self._more:
            self._closed = True
            self._more.notify_all()

    # --- the search ---

    async def put(self, task: Task) -> None:
        """Add a trial for the next free team."""
        self._trials[task.trial] = _Trial(task)
        async with self._more:
            self._pending.append(task)
            self._more.notify_all()

    async def next_event(self, trial: str) -> Event:
        """The next epoch, or the end, of a trial. To ask is to let it train on."""
        state = self._trials[trial]
        if not state.unread:
            _decide(state, go_on=True)
        while not state.unread:
            state.news.clear()
            await state.news.wait()
        return state.unread.popleft()

    async def stop(self, trial: str) -> None:
        """End a trial before its last epoch; one that waits for a team never starts."""
        state = self._trials.get(trial)
        if state is None or state.ended or state.stopped:
            return
        state.stopped = True
        if state.task in self._pending:
            self._pending.remove(state.task)
            await self._end(state, "stopped", {})
        _decide(state, go_on=False)

    # --- the teams ---

    async def data(self) -> dict[str, Any]:
        """The splits, once the driver has prepared them."""
        return await asyncio.shield(self._data_future())

    async def refuse(self, error: RaysftError) -> None:
        """A worker cannot work at all: the job is wrong."""
        await self._tell(Event("refused", "", {"error": error}))

    async def take(self, slot: int, team: int, rank: int, turn: int) -> tuple[Task, int] | None:
        """The task of a team's turn 0, 1, … and the number of its process group; None: go home.

        All members get the same. Turn 0 of a member that was here before means that its worker group was restarted.
        """
        state = self._teams.setdefault((slot, team), _Team())
        if turn == 0:
            await self._join(state, rank)
        elif state.failure is not None:  # this member was done with the trial before another one gave it up
            await self._give_up(state, rank)
            await self.settle(slot, team)
        if turn > state.turn:
            state.turn, state.task = turn, asyncio.get_running_loop().create_future()
            await self._assign(state)
        assert state.task is not None
        task = await asyncio.shield(state.task)
        return (task, state.group) if task else None

    async def meet(self, slot: int, team: int, group: int, address: str | None) -> str:
        """Hand the address of a team's rank 0 to its members."""
        state = self._teams[slot, team]
        future = state.meetings.setdefault(group, asyncio.get_running_loop().create_future())
        if address is not None and not future.done():
            future.set_result(address)
        return await asyncio.shield(future)

    async def progress(self, trial: str, epoch: int, step: int, steps: int) -> None:
        """How far a team is inside an epoch."""
        await self._tell(Event("progress", trial, {"epoch": epoch, "step": step, "steps": steps}))

    async def report(self, trial: str, metrics: dict[str, Any], last: bool) -> bool:
        """Metrics of an epoch; returns whether to train on, once the search has decided."""
        state = self._trials[trial]
        if metrics["epoch"] > state.epochs:  # an epoch trained again after a crash is known already
            state.epochs = metrics["epoch"]
            state.decision = None if last else asyncio.get_running_loop().create_future()
            await self._tell_both(state, Event("epoch", trial, metrics | {"last": last}))
        if last or state.stopped:
            return False
        return True if state.decision is None else await asyncio.shield(state.decision)

    async def finish(self, slot: int, team: int, trial: str, payload: dict[str, Any]) -> None:
        """A team is done with its trial."""
        self._teams[slot, team].running = None
        state = self._trials[trial]
        kind = "scored" if state.task.kind == "score" else "stopped" if state.stopped else "finished"
        await self._end(state, kind, payload)

    async def fail(self, slot: int, team: int, rank: int, workers: int, trial: str, error: str, trace: str) -> None:
        """A member of a team gives its trial up. The first to do so tells the cause."""
        state = self._teams[slot, team]
        if state.failure is None:
            state.failure = _Failure(trial, {"error": error, "trace": trace}, set(range(workers)))
        await self._give_up(state, rank)

    async def settle(self, slot: int, team: int) -> None:
        """Wait until all members have given the trial up; the team then gets a new process group."""
        failure = self._teams[slot, team].failure
        if failure is not None:
            await failure.settled.wait()

    # --- inside ---

    def _data_future(self) -> asyncio.Future[dict[str, Any]]:
        if self._data is None:
            self._data = asyncio.get_running_loop().create_future()
        return self._data

    async def _give_up(self, team: _Team, rank: int) -> None:
        assert team.failure is not None
        failure = team.failure
        failure.missing.discard(rank)
        if not failure.missing:
            team.running, team.failure, team.group = None, None, team.group + 1
            await self._end(self._trials[failure.trial], "failed", failure.payload)
            failure.settled.set()

    async def _join(self, team: _Team, rank: int) -> None:
        if rank in team.joined:
            lost, team.running, team.failure = team.running, None, None
            team.joined, team.turn, team.group = set(), -1, team.group + 1
            if lost is not None:
                await self._again(self._trials[lost])
        team.joined.add(rank)

    async def _again(self, state: _Trial) -> None:
        state.task = replace(state.task, attempt=state.task.attempt + 1)
        if state.stopped:
            await self._end(state, "stopped", {})
        elif state.task.attempt >= MAX_ATTEMPTS:
            await self._end(state, "failed", {"error": f"its worker died {MAX_ATTEMPTS} times", "trace": ""})
        else:
            self._pending.appendleft(state.task)

    async def _assign(self, team: _Team) -> None:
        assert team.task is not None
        future = team.task
        async with self._more:
            await self._more.wait_for(lambda: self._pending or self._closed or team.task is not future)
            if team.task is not future:  # the worker group was restarted while this one waited
                future.cancel()
                return
            task = self._pending.popleft() if self._pending else None
        future.set_result(task)
        if task is not None:
            team.running = task.trial
            await self._tell(Event("started", task.trial, {"kind": task.kind, "attempt": task.attempt}))

    async def _end(self, state: _Trial, kind: str, payload: dict[str, Any]) -> None:
        if not state.ended:
            state.ended = True
            await self._tell_both(state, Event(kind, state.task.trial, payload))

    async def _tell_both(self, state: _Trial, event: Event) -> None:
        state.unread.append(event)
        state.news.set()
        await self._tell(event)

    async def _tell(self, event: Event) -> None:
        async with self._happened:
            self._events.append(event)
            self._happened.notify_all()


def _decide(state: _Trial, go_on: bool) -> None:
    if state.decision is not None and not state.decision.done():
        state.decision.set_result(go_on)
