"""The small actor between the search and the teams: trials go one way, metrics and decisions the
other.

    search:  put(task) ─▶ next_event ─▶ … ─▶ stop | pause ─▶ go_on        driver:  events
    teams:   take ─▶ meet (once) ─▶ report ─▶ … ─▶ finish | fail ─▶ settle (─▶ hang)

A trial fails when every member of its team has given it up; the first of them says why. A member
that was killed says
nothing: then Ray Train restarts the worker group, and the trial is taken up again from its last
checkpoint.

A team that reports an epoch waits until the search has asked for the next event of that trial (go
on), or has stopped or paused it. A paused trial leaves its team, and is taken up from its last
checkpoint by any team, once it may go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raysft.errors import RaysftError, TrialError
from raysft.job.recipe import Train
from raysft.job.spec import Model

MAX_ATTEMPTS = 3

Cause = Literal["failed", "diverged", "out_of_memory"]


@dataclass(frozen=True)
class Task:
    """What a team is asked to do: train a trial, or score one checkpoint on the test split."""

    kind: Literal["train", "score"]
    trial: str
    folder: str
    model: Model
    train: Train
    seed: int
    config: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0
    of_search: bool = True
    """Whether it ends with the search, which a repeat of its best trial and a score outlive."""
    halved: bool = False
    """Whether its micro-batch was halved because memory was short."""


@dataclass(frozen=True)
class Event:
    """What happened to a trial (proposed, started, progress, epoch, halved, paused, finished,
    stopped, diverged, failed, scored), to a worker (arrived, unable, built, refused), or to a team
    (restarted).
    """

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
    pausing: bool = False
    """Whether it is to leave its team after this epoch."""
    paused: bool = False
    complete: bool = False
    ended: bool = False
    epochs: int = 0
    furthest: int = 0
    """Steps of the epoch that were trained in any attempt, as far as was told."""
    stood: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(step, steps of the epoch) that each rank told last."""


@dataclass
class _Failure:
    trial: str
    payload: dict[str, str]
    missing: set[int]
    cause: Cause
    settled: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _Team:
    slot: int
    number: int
    incarnation: int = -1
    turn: int = -1
    agreed_turn: int = 0
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
        self._closed = self._over = False
        self._given_up: set[int] = set()
        self._events: deque[Event] = deque()  # those that the driver may not have yet
        self._had = self._handed = (
            0  # how many the driver has, by its own word, and how many it was given
        )
        self._latest: dict[
            str, int
        ] = {}  # the number of a trial's last event, where that is a progress not yet given
        self._happened = asyncio.Condition()
        self._data: asyncio.Future[dict[str, Any]] | None = None

    # --- the driver -----------------------------------------------------------------------------

    async def set_data(self, data: dict[str, Any]) -> None:
        """Hand the splits (or the references to them) to all workers."""
        self._data_future().set_result(data)

    async def events(self, after: int, wait_s: float) -> Sequence[Event]:
        """What happened since the event number `after`; waits up to `wait_s` seconds for something.

        To ask so is to say that all before are there: they are dropped. An answer that was lost is
        given again to who asks again. Raises ValueError for events that were dropped.
        """
        if after < self._had:
            raise ValueError(f"events before number {self._had} were delivered, and are not kept")
        async with self._happened:
            while self._had < after:
                self._events.popleft()
                self._had += 1
            if not self._events and wait_s > 0:
                try:
                    await asyncio.wait_for(self._happened.wait_for(lambda: self._events), wait_s)
                except asyncio.TimeoutError:
                    return []
            self._handed = self._had + len(self._events)
            return list(self._events)

    async def lost(self, slot: int) -> None:
        """A slot will not come back: what its teams were training goes to the others."""
        self._given_up.add(slot)
        teams = [team for (number, _), team in self._teams.items() if number == slot]
        for team in teams:
            team.task = None  # whoever of it still waits for a trial must not get one
        async with self._more:
            self._more.notify_all()
        for team in teams:
            if team.running is not None:
                trial, team.running = team.running, None
                await self._again(self._trials[trial])

    async def finish_search(self) -> None:
        """Good enough: trials in training end with their epoch, and none that the search still
        proposes begins.
        """
        self._over = True
        for trial, state in list(self._trials.items()):
            if state.task.of_search:
                await self.stop(trial)

    async def close(self) -> None:
        """No more trials: teams that ask are sent home, and the search is told that what it waits
        for has stopped.
        """
        async with self._more:
            self._closed = True
            self._pending.clear()
            self._more.notify_all()
        for state in list(self._trials.values()):
            state.stopped = True
            _decide(state, go_on=False)
            await self._end(state, "stopped", {})

    # --- the search -----------------------------------------------------------------------------

    async def put(self, task: Task) -> None:
        """Add a trial for the next free team."""
        self._trials[task.trial] = _Trial(task)
        await self._tell(Event("proposed", task.trial, {"config": task.config}))
        if self._closed or (self._over and task.of_search):
            await self._end(self._trials[task.trial], "stopped", {})
            return
        await self._offer(task)

    async def reject(self, trial: str, config: dict[str, Any], error: str) -> None:
        """A configuration that was proposed for a trial, and that no trial can have."""
        self._trials[trial] = state = _Trial(Task("train", trial, "", Model(), Train(), 0, config))
        await self._tell(Event("proposed", trial, {"config": config}))
        await self._end(state, "failed", {"error": error, "trace": ""})

    async def next_event(self, trial: str) -> Event:
        """The next epoch, or the end, of a trial. To ask is to let it train on."""
        state = self._trials[trial]
        if not state.unread:
            _decide(state, go_on=True)
        while not state.unread:
            state.news.clear()
            await state.news.wait()
        return state.unread.popleft()

    async def pause(self, trial: str) -> None:
        """Have a trial leave its team with the epoch that it has told; its next event says when it
        has.
        """
        state = self._trials[trial]
        state.pausing = True
        _decide(state, go_on=False)

    async def go_on(self, trial: str) -> None:
        """Give a paused trial to the next free team; of no account to one that has ended."""
        state = self._trials[trial]
        if state.ended:
            return
        state.paused, state.decision = False, None
        await self._offer(state.task)

    async def stop(self, trial: str) -> None:
        """End a trial before its last epoch; one that waits for a team, or is paused, never gets
        one.
        """
        state = self._trials.get(trial)
        if state is None or state.ended or state.stopped or state.complete:
            return  # the search also stops trials that have trained to their end
        state.stopped = True
        if state.task in self._pending:
            self._pending.remove(state.task)
            await self._end(state, "stopped", {})
        elif state.paused:
            await self._end(state, "stopped", {})
        _decide(state, go_on=False)

    # --- the teams ------------------------------------------------------------------------------

    async def arrive(self, slot: int, rank: int) -> bool:
        """A process of a worker group has started; returns whether it is still wanted."""
        await self._tell(Event("arrived", "", {"slot": slot, "rank": rank}))
        return slot not in self._given_up

    async def unable(self, slot: int, host: str, error: str) -> None:
        """A process of a worker group cannot import what it needs to work."""
        await self._tell(Event("unable", "", {"slot": slot, "host": host, "error": error}))

    async def data(self) -> dict[str, Any]:
        """The splits, once the driver has prepared them."""
        return await asyncio.shield(self._data_future())

    async def built(self, payload: dict[str, Any]) -> None:
        """A worker has made a network: what came from its weights, and how they want their
        images.
        """
        await self._tell(Event("built", "", payload))

    async def refuse(self, error: RaysftError) -> None:
        """A worker cannot work at all: the job is wrong."""
        await self._tell(Event("refused", "", {"error": error}))

    async def take(
        self, slot: int, team: int, rank: int, incarnation: int, turn: int
    ) -> tuple[Task, int, int] | None:
        """(task, number of the process group, next turn) of a team's turn 0, 1, …; None: go home.

        All members get the same. A higher `incarnation` than before means that their worker group
        was restarted.
        """
        state = self._teams.setdefault((slot, team), _Team(slot, team))
        if incarnation < state.incarnation:
            return None  # the call of a process that is dead by now
        if incarnation > state.incarnation:
            await self._restart(state, incarnation)
        if (
            state.failure is not None
        ):  # this member was done with the trial before another one gave it up
            await self._give_up(state, rank)
            turn = await self.settle(slot, team, turn)
            if incarnation < state.incarnation:
                return None
        if turn > state.turn:
            state.turn, state.task = turn, asyncio.get_running_loop().create_future()
            await self._assign(state)
        if state.task is None:
            return None
        task = await asyncio.shield(state.task)
        return (task, state.group, turn + 1) if task else None

    async def meet(self, slot: int, team: int, group: int, address: str | None) -> str:
        """Hand the address of a team's rank 0 to its members."""
        state = self._teams[slot, team]
        future = state.meetings.setdefault(group, asyncio.get_running_loop().create_future())
        if address is not None and not future.done():
            future.set_result(address)
        return await asyncio.shield(future)

    async def progress(
        self,
        trial: str,
        rank: int,
        step: int,
        steps: int,
        about: dict[str, float | None] | None = None,
    ) -> None:
        """How far a member of a team is inside an epoch; `about`: its seconds so far, those waited,
        load of its GPU.
        """
        state = self._trials[trial]
        state.stood[rank] = (step, steps)
        if step > state.furthest:  # machines that come and go do not fail a trial that gets on
            state.furthest, state.task = step, replace(state.task, attempt=0)
        if rank == 0:
            await self._tell(
                Event("progress", trial, {"step": step, "steps": steps, **(about or {})})
            )

    async def report(self, trial: str, epochs: Sequence[dict[str, Any]], last: bool) -> bool:
        """Metrics of an epoch, after those before it that may not be known; returns whether to
        train on, once the search has decided.
        """
        state, metrics = self._trials[trial], epochs[-1]
        state.complete = state.complete or last
        if metrics["epoch"] > state.epochs:  # an epoch trained again after a crash is known already
            state.epochs = metrics["epoch"]
            state.furthest, state.task = 0, replace(state.task, attempt=0)
            asked = state.task.of_search and not last  # nobody decides on a repeat
            state.decision = asyncio.get_running_loop().create_future() if asked else None
            await self._tell_both(
                state, Event("epoch", trial, metrics | {"last": last, "before": epochs[:-1]})
            )
        if last or state.stopped:
            return False
        return True if state.decision is None else await asyncio.shield(state.decision)

    async def finish(self, slot: int, team: int, trial: str, payload: dict[str, Any]) -> None:
        """A team is done with its trial."""
        members = self._teams[slot, team]
        if members.running == trial:  # another member may have taken the next one already
            members.running = None
        state = self._trials[trial]
        if state.pausing and not state.stopped:
            await self._rest(state)
            return
        kind = (
            "scored" if state.task.kind == "score" else "stopped" if state.stopped else "finished"
        )
        await self._end(state, kind, payload)

    async def fail(
        self,
        slot: int,
        team: int,
        rank: int,
        workers: int,
        trial: str,
        error: str,
        trace: str,
        cause: Cause = "failed",
    ) -> None:
        """A member of a team gives its trial up. The first to do so tells the cause."""
        state = self._teams[slot, team]
        if state.failure is None:
            state.failure = _Failure(
                trial, {"error": error, "trace": trace}, set(range(workers)), cause
            )
        for meeting in state.meetings.values():
            if (
                not meeting.done()
            ):  # nobody must wait for a member that gave up before it could be met
                meeting.set_exception(ConnectionError(f"the team did not meet: {error}"))
                meeting.exception()
        await self._give_up(state, rank)

    async def settle(self, slot: int, team: int, turn: int) -> int:
        """Wait until all members have given the trial up; returns the turn from which they go on
        together.

        The team then gets a new process group. `turn` is the answer where all had given up already.
        """
        state = self._teams[slot, team]
        if state.failure is None:
            return max(turn, state.agreed_turn)
        await state.failure.settled.wait()
        return state.agreed_turn

    async def hang(self, slot: int, team: int) -> TrialError | None:
        """A member has waited long enough for others to give the trial up, which ends it: their
        worker group has to be started again. None where they have given it up meanwhile.

        Only a member that lives can say so: while their group starts again, because a machine is
        gone, it takes its time, and the trial goes on.
        """
        state = self._teams[slot, team]
        return None if state.failure is None else await self._hang(state, state.failure)

    # --- inside ---------------------------------------------------------------------------------

    def _data_future(self) -> asyncio.Future[dict[str, Any]]:
        if self._data is None:
            self._data = asyncio.get_running_loop().create_future()
        return self._data

    async def _give_up(self, team: _Team, rank: int) -> None:
        assert team.failure is not None
        failure = team.failure
        failure.missing.discard(rank)
        if not failure.missing:
            running, team.running, team.failure, team.group = (
                team.running,
                None,
                None,
                team.group + 1,
            )
            await self._fail_or_halve(self._trials[failure.trial], failure)
            team.agreed_turn = team.turn + 1
            if (
                running is not None and running != failure.trial
            ):  # some had taken the next when others failed this one
                await self._again(self._trials[running])
            failure.settled.set()

    async def _hang(self, team: _Team, failure: _Failure) -> TrialError:
        """End a trial that some members of its team never gave up, and say where these stood."""
        trial, team.running = self._trials[failure.trial], None
        missing = ", ".join(
            f"rank {rank} ({_where(trial.stood.get(rank))})" for rank in sorted(failure.missing)
        )
        error = f"{missing} did not answer any more; the others: {failure.payload['error']}"
        await self._end(trial, "failed", failure.payload | {"error": error})
        return TrialError(failure.trial, error)

    async def _fail_or_halve(self, state: _Trial, failure: _Failure) -> None:
        """A trial that ran out of memory goes on from its last checkpoint with half the
        micro-batch, once.
        """
        if failure.cause == "out_of_memory" and not state.task.halved:
            train = state.task.train.model_copy(
                update={"accumulate": 2 * state.task.train.accumulate}
            )
            async with self._more:
                if not state.stopped:  # as all are when the run closes
                    state.task = replace(state.task, train=train, halved=True)
                    self._pending.appendleft(state.task)
                    self._more.notify_all()
            if state.task.train is train:
                await self._tell(
                    Event("halved", state.task.trial, {"accumulate": train.accumulate})
                )
                return
        await self._end(
            state, "diverged" if failure.cause == "diverged" else "failed", failure.payload
        )

    async def _restart(self, team: _Team, incarnation: int) -> None:
        if team.incarnation != -1:
            await self._tell(Event("restarted", "", {"slot": team.slot, "team": team.number}))
        if team.failure is not None:
            team.failure.settled.set()  # nobody waits on but calls of processes that are dead
        lost, team.running, team.failure = team.running, None, None
        team.incarnation, team.turn, team.agreed_turn, team.group = (
            incarnation,
            -1,
            0,
            team.group + 1,
        )
        if lost is not None:
            await self._again(self._trials[lost])

    async def _again(self, state: _Trial) -> None:
        state.task = replace(state.task, attempt=state.task.attempt + 1)
        if state.stopped:
            await self._end(state, "stopped", {})
        elif state.pausing:
            await self._rest(state)
        elif state.task.attempt >= MAX_ATTEMPTS:
            error = f"its worker died {MAX_ATTEMPTS} times without getting further"
            await self._end(state, "failed", {"error": error, "trace": ""})
        else:
            await self._offer(state.task, first=True)

    async def _offer(self, task: Task, first: bool = False) -> None:
        """Let the next free team have a task, after those that wait already or before them."""
        async with self._more:
            self._pending.insert(0 if first else len(self._pending), task)
            self._more.notify_all()

    async def _assign(self, team: _Team) -> None:
        assert team.task is not None
        future = team.task
        async with self._more:
            await self._more.wait_for(
                lambda: self._pending or self._closed or team.task is not future
            )
            if team.task is not future:  # the worker group was restarted while this one waited
                future.cancel()
                return
            task = self._pending.popleft() if self._pending else None
        future.set_result(task)
        if task is not None:
            team.running = task.trial
            state = self._trials[task.trial]
            stood = ", ".join(
                f"rank {rank} {_where(at)}" for rank, at in sorted(state.stood.items())
            )
            state.stood = {}
            await self._tell(
                Event(
                    "started",
                    task.trial,
                    {
                        "kind": task.kind,
                        "attempt": task.attempt,
                        "stood": stood,
                        "slot": team.slot,
                        "team": team.number,
                    },
                )
            )

    async def _rest(self, state: _Trial) -> None:
        if not state.ended:
            state.pausing, state.paused = False, True
            await self._tell_both(state, Event("paused", state.task.trial, {}))

    async def _end(self, state: _Trial, kind: str, payload: dict[str, Any]) -> None:
        if not state.ended:
            state.ended = True
            await self._tell_both(state, Event(kind, state.task.trial, payload))

    async def _tell_both(self, state: _Trial, event: Event) -> None:
        if state.task.of_search:  # of other trials nobody asks for the next
            state.unread.append(event)
            state.news.set()
        await self._tell(event)

    async def _tell(self, event: Event) -> None:
        async with self._happened:
            # A driver that is slow needs to hear how far a trial is, not how far it was on the way
            # there.
            replaced = self._latest.pop(event.trial, -1)
            if event.kind == "progress" and replaced >= self._handed:
                self._events[replaced - self._had] = event
                self._latest[event.trial] = replaced
                return
            if event.kind == "progress":
                self._latest[event.trial] = self._had + len(self._events)
            self._events.append(event)
            self._happened.notify_all()


def _where(stood: tuple[int, int] | None) -> str:
    return f"last seen after step {stood[0]} of {stood[1]}" if stood else "not seen in training"


def _decide(state: _Trial, go_on: bool) -> None:
    if state.decision is not None and not state.decision.done():
        state.decision.set_result(go_on)
