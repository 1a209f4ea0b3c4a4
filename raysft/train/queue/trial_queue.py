"""The queue itself: trials, teams, and who waits for what."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from raysft.errors import RaysftError, TrialError
from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.job.values import Config
from raysft.records.documents import EpochMetrics, LoadedWeights
from raysft.train.queue.assignment import Assignment, HandedSplit, Member, Source, Turn
from raysft.train.queue.event_log import EventLog
from raysft.train.queue.events import (
    BatchHalved,
    CheckpointScored,
    EpochEnded,
    Event,
    NetworkBuilt,
    RunRefused,
    SearchFinished,
    TeamRestarted,
    TrialCopied,
    TrialEnded,
    TrialEvent,
    TrialPaused,
    TrialProgress,
    TrialProposed,
    TrialStarted,
    TrialStatus,
    WorkerArrived,
    WorkerUnable,
)
from raysft.train.queue.policy import (
    Decision,
    End,
    Failure,
    Pause,
    Requeue,
    after_failure,
    after_lost_team,
)
from raysft.train.queue.rendezvous import TeamState
from raysft.train.queue.trial_state import Phase, TrialState, describe_step


class TrialQueue:
    """State of a run's trials and teams. All methods run on one event loop, so that each may wait.

    A team that reports an epoch waits until the search has asked for the next event of that trial,
    which lets it train on, or has stopped or paused it. A member of a team that was killed says
    nothing: then Ray Train restarts the worker group, whose first call shows it.
    """

    def __init__(self) -> None:
        self._trials: dict[str, TrialState] = {}
        self._teams: dict[tuple[int, int], TeamState] = {}
        self._pending: deque[Assignment] = deque()
        self._pending_changed = asyncio.Condition()
        self._search_finished = False
        self._closed = False
        self._removed_slots: set[int] = set()
        self._log = EventLog()
        self._splits: asyncio.Future[Mapping[str, HandedSplit]] | None = None

    # --- the driver -----------------------------------------------------------------------------

    async def set_splits(self, splits: Mapping[str, HandedSplit]) -> None:
        """Hand the splits (or the references to them) to all workers."""
        self._splits_future().set_result(splits)

    async def events(self, after: int, wait_s: float) -> Sequence[Event]:
        """What happened since the event number `after`; waits up to `wait_s` seconds for something.

        To ask so acknowledges all before, which are dropped; an answer that was lost is given again
        to who asks again. Raises ValueError for events that were dropped.
        """
        return await self._log.after(after, wait_s)

    async def remove_slot(self, slot: int) -> None:
        """A slot will not come back: what its teams were training goes to the others."""
        self._removed_slots.add(slot)
        teams = [team for team in self._teams.values() if team.slot == slot]
        for team in teams:
            team.assignment = None  # a member that still waits for a trial must not get one
        await self._wake_teams()
        for team in teams:
            if team.running is not None:
                trial = team.running
                team.running = None
                await self._retry(trial)

    async def finish_search(self, reason: str = "") -> None:
        """Stop trials in training after their epoch, and those that the search still proposes."""
        if self._search_finished:
            return
        self._search_finished = True
        if reason:
            await self._log_event(SearchFinished(reason))
        for trial, state in list(self._trials.items()):
            if state.assignment.of_search:
                await self.stop(trial)

    async def close(self) -> None:
        """Send teams that ask home, and end all trials so that nobody waits for them."""
        self._closed = True
        self._pending.clear()
        await self._wake_teams()
        for state in list(self._trials.values()):
            state.decide(go_on=False)
            await self._end(state, End("stopped"))

    # --- the search -----------------------------------------------------------------------------

    async def put(self, assignment: Assignment) -> None:
        """Add a trial, or a checkpoint to score, for the next free team."""
        state = TrialState(assignment)
        self._trials[assignment.trial] = state
        await self._log_event(TrialProposed(assignment.trial, assignment.config))
        # The search may propose once more before it has heard that it is over.
        if self._closed or (self._search_finished and assignment.of_search):
            await self._end(state, End("stopped"))
            return
        await self._append(assignment)

    async def reject(self, trial: str, config: Config, error: str) -> None:
        """A configuration that was proposed for a trial, and that no trial can have."""
        state = TrialState(Assignment("train", trial, "", Model(), Train(), 0, config))
        self._trials[trial] = state
        await self._log_event(TrialProposed(trial, config))
        await self._end(state, End("failed", error, ""))

    async def skip(self, trial: str, config: Config) -> None:
        """A trial that the search has ended without."""
        state = TrialState(Assignment("train", trial, "", Model(), Train(), 0, config))
        self._trials[trial] = state
        await self._end(state, End("stopped"))

    async def next_event(self, trial: str, reader: str = "") -> TrialEvent:
        """The next epoch, or the end, of a trial. To ask is to let it train on.

        Another `reader` than before is answered first what that one was answered last: it may have
        died with it.
        """
        state = self._trials[trial]
        state.read_by(reader)
        if not state.unread:
            state.decide(go_on=True)
        while not state.unread:
            state.has_unread.clear()
            await state.has_unread.wait()
            if state.reader != reader:
                raise RuntimeError(f"{trial} is followed by somebody else now")
        state.delivered = state.unread.popleft()
        return state.delivered

    async def pause(self, trial: str) -> None:
        """Have a trial leave its team after the epoch it has reported; an event says so."""
        state = self._trials[trial]
        if state.phase is Phase.RUNNING:
            state.enter(Phase.PAUSING)
        elif state.phase is Phase.PAUSING:
            state.following = None
        elif state.phase is Phase.QUEUED:  # its worker died after that epoch
            self._drop_pending(trial)
            await self._pause(state)
        state.decide(go_on=False)

    async def resume(self, trial: str) -> None:
        """Give a paused trial to the next free team; one that was stopped meanwhile stays so."""
        state = self._trials[trial]
        await self._resume(state, state.assignment)

    async def restart(self, assignment: Assignment) -> None:
        """As `resume`, from the checkpoint of another trial and with other values."""
        await self._resume(self._trials[assignment.trial], assignment)

    async def claim(self, trial: str, source: Source) -> None:
        """A paused trial will start from the checkpoint of another one."""
        self._trials[trial].claimed = source

    async def pin(self, trial: str, epoch: int) -> None:
        """Keep the checkpoint of an epoch instead of the one pinned before."""
        self._trials[trial].pinned = epoch

    async def give_up(self, trial: str, error: str) -> None:
        """End a trial that nobody decides on any more."""
        state = self._trials.get(trial)
        if state is not None:
            state.decide(go_on=False)
            await self._end(state, End("failed", error, ""))

    async def stop(self, trial: str) -> None:
        """End a trial before its last epoch; one without a team never gets one."""
        state = self._trials.get(trial)
        # The search also stops trials that have trained to their end, or that it never proposed.
        if state is None or state.trained:
            return
        if state.phase in (Phase.QUEUED, Phase.PAUSED):
            await self._end(state, End("stopped"))
        elif state.phase in (Phase.RUNNING, Phase.PAUSING):
            state.enter(Phase.STOPPING)
        state.decide(go_on=False)

    # --- the workers ----------------------------------------------------------------------------

    async def register_worker(self, slot: int, rank: int) -> bool:
        """A process of a worker group has started; returns whether it is still wanted."""
        await self._log_event(WorkerArrived(slot, rank))
        return slot not in self._removed_slots

    async def report_unable(self, slot: int, host: str, error: str) -> None:
        """A process of a worker group cannot import what it needs to work."""
        await self._log_event(WorkerUnable(slot, host, error))

    async def report_network(self, weights: LoadedWeights) -> None:
        """A worker has made a network with pretrained weights."""
        await self._log_event(NetworkBuilt(weights))

    async def refuse_run(self, error: RaysftError) -> None:
        """No worker can work: the job is wrong, or the disk is full."""
        await self._log_event(RunRefused(error))

    async def splits(self) -> Mapping[str, HandedSplit]:
        """The splits, once the driver has prepared them."""
        return await asyncio.shield(self._splits_future())

    async def next_assignment(self, member: Member, turn: int) -> Turn | None:
        """What a team does in its turn 0, 1, …, the same for all members; None: go home.

        A higher `incarnation` than before means that their worker group was restarted.
        """
        key = (member.slot, member.team)
        team = self._teams.setdefault(key, TeamState(*key))
        if member.incarnation < team.incarnation:
            return None  # the call of a process that is dead by now
        if member.incarnation > team.incarnation:
            await self._restart(team, member.incarnation)
        if team.giving_up is not None:
            # This member was done with the trial before another one gave it up.
            await self._leave(team, member.rank)
            turn = await self.wait_for_team(member, turn)
            if member.incarnation < team.incarnation:
                return None
        if turn > team.turn:
            team.turn = turn
            team.assignment = asyncio.get_running_loop().create_future()
            await self._assign(team)
        if team.assignment is None:
            return None
        assignment = await asyncio.shield(team.assignment)
        return None if assignment is None else Turn(assignment, team.group, turn + 1)

    async def rank_0_address(self, member: Member, group: int, address: str | None) -> str:
        """Hand the address of a team's rank 0, which gives it here, to its members."""
        return await self._team(member).rank_0_address(group, address)

    async def report_progress(self, rank: int, progress: TrialProgress) -> None:
        """How far a member of a team is inside an epoch."""
        state = self._trials[progress.trial]
        state.note_step(rank, progress.step, progress.steps)
        if rank == 0:
            await self._log_event(progress)

    async def report_epoch(self, trial: str, epochs: Sequence[EpochMetrics], last: bool) -> bool:
        """Metrics of an epoch, after those before it that may not be known.

        Returns whether to train on, once the search has decided.
        """
        state = self._trials[trial]
        if state.phase is Phase.ENDED:
            return False
        metrics = epochs[-1]
        source = state.note_copied()
        if source is not None:
            state.epochs = source.epoch
            copied = TrialCopied(trial, source.trial, state.assignment.config, epochs)
            await self._log_event(copied)
        if state.note_epoch(metrics, last):
            await_search = state.assignment.of_search and not last  # nobody decides on a repeat
            state.decision = asyncio.get_running_loop().create_future() if await_search else None
            await self._publish(state, EpochEnded(trial, metrics, last, epochs[:-1]))
        if last or state.phase is Phase.STOPPING:
            return False
        return True if state.decision is None else await asyncio.shield(state.decision)

    async def pinned_epochs(self, trial: str) -> Sequence[int]:
        """The epochs whose checkpoints a team must not remove, for trials that start from them."""
        own = self._trials[trial].pinned
        epochs = set() if own is None else {own}
        for state in self._trials.values():
            for source in state.sources():
                if source.trial == trial:
                    epochs.add(source.epoch)
        return sorted(epochs)

    async def finish_trial(self, member: Member, trial: str, host: str) -> None:
        """A team is done with its trial: it has trained to its end, or was told to leave it."""
        self._release(member, trial)
        state = self._trials[trial]
        if state.phase is Phase.PAUSING:
            await self._pause(state)
        elif state.phase is not Phase.PAUSED:
            status: TrialStatus = "stopped" if state.phase is Phase.STOPPING else "finished"
            await self._end_with(state, TrialEnded(trial, status, host))

    async def report_score(self, member: Member, scored: CheckpointScored) -> None:
        """A team has scored a checkpoint."""
        self._release(member, scored.trial)
        await self._end_with(self._trials[scored.trial], scored)

    async def report_failure(self, member: Member, trial: str, failure: Failure) -> None:
        """A member of a team gives its trial up; what the first one says is why."""
        team = self._team(member)
        team.fail(trial, member.workers, failure)
        await self._leave(team, member.rank)

    async def wait_for_team(self, member: Member, turn: int) -> int:
        """Wait until all members have given the trial up; returns the turn they go on with.

        The team then gets a new process group. `turn` is the answer where all had left already.
        """
        team = self._team(member)
        if team.giving_up is None:
            return max(turn, team.next_turn)
        await team.giving_up.done.wait()
        return team.next_turn

    async def report_hang(self, member: Member) -> TrialError | None:
        """A member has waited long enough for others to give a trial up, which ends the trial.

        None where they have given it up meanwhile; else the worker group has to be started again.
        """
        # Only a member that lives can say so: while a worker group starts again, because a machine
        # is gone, it takes its time, and the trial goes on.
        team = self._team(member)
        giving_up = team.giving_up
        if giving_up is None:
            return None
        team.running = None
        state = self._trials[giving_up.trial]
        silent = ", ".join(
            f"rank {rank} ({describe_step(state.last_seen.get(rank))})"
            for rank in sorted(giving_up.missing)
        )
        failure = giving_up.failure
        error = f"{silent} did not answer any more; the others: {failure.error}"
        await self._end(state, End("failed", error, failure.trace))
        return TrialError(giving_up.trial, error)

    # --- teams, inside --------------------------------------------------------------------------

    def _team(self, member: Member) -> TeamState:
        return self._teams[member.slot, member.team]

    def _release(self, member: Member, trial: str) -> None:
        """A team has this trial no more; another member may have taken the next one already."""
        team = self._team(member)
        if team.running == trial:
            team.running = None

    async def _restart(self, team: TeamState, incarnation: int) -> None:
        is_first_start = team.incarnation == -1
        lost = team.restart(incarnation)
        if not is_first_start:
            await self._log_event(TeamRestarted(team.slot, team.number))
        if lost is not None:
            await self._retry(lost)

    async def _leave(self, team: TeamState, rank: int) -> None:
        """A member has left a failed trial; with the last one the trial's fate is decided."""
        if not team.leave(rank):
            return
        giving_up, taken_since = team.part()
        state = self._trials[giving_up.trial]
        await self._apply(state, after_failure(state.phase, state.assignment, giving_up.failure))
        if taken_since is not None:
            await self._retry(taken_since)
        giving_up.done.set()

    async def _assign(self, team: TeamState) -> None:
        """Give a team the next assignment, once there is one."""
        future = team.assignment
        assert future is not None

        def can_answer() -> bool:
            return bool(self._pending) or self._closed or team.assignment is not future

        async with self._pending_changed:
            await self._pending_changed.wait_for(can_answer)
            if team.assignment is not future:  # restarted, or its slot removed, while this waited
                future.cancel()
                return
            assignment = self._pending.popleft() if self._pending else None
        future.set_result(assignment)
        if assignment is not None:
            await self._start(team, assignment)

    async def _start(self, team: TeamState, assignment: Assignment) -> None:
        team.running = assignment.trial
        state = self._trials[assignment.trial]
        state.enter(Phase.RUNNING)
        last_seen = ", ".join(
            f"rank {rank} {describe_step(seen)}" for rank, seen in sorted(state.last_seen.items())
        )
        state.last_seen = {}
        await self._log_event(
            TrialStarted(
                assignment.trial,
                assignment.kind,
                team.slot,
                team.number,
                assignment.attempt,
                last_seen,
            )
        )

    # --- trials, inside -------------------------------------------------------------------------

    async def _retry(self, trial: str) -> None:
        """A trial has lost its team."""
        state = self._trials[trial]
        await self._apply(state, after_lost_team(state.phase, state.assignment))

    async def _apply(self, state: TrialState, decision: Decision) -> None:
        if isinstance(decision, End):
            await self._end(state, decision)
        elif isinstance(decision, Pause):
            await self._pause(state)
        elif isinstance(decision, Requeue):
            await self._requeue(state, decision.assignment)

    async def _requeue(self, state: TrialState, assignment: Assignment) -> None:
        halved = assignment.halved and not state.assignment.halved
        state.assignment = assignment
        state.enter(Phase.QUEUED)
        # ahead of trials that have not begun: the search waits for the next epoch of this one
        self._pending.appendleft(assignment)
        await self._wake_teams()
        if halved:
            await self._log_event(BatchHalved(assignment.trial, assignment.train.accumulate))

    async def _pause(self, state: TrialState) -> None:
        state.enter(Phase.PAUSED)
        await self._publish(state, TrialPaused(state.assignment.trial))
        following, state.following = state.following, None
        if following is not None:
            await self._resume(state, following)

    async def _resume(self, state: TrialState, assignment: Assignment) -> None:
        if state.phase is Phase.PAUSING:  # its team has not left it yet
            state.following = assignment
            # Its next reader must not take the epoch at which it paused for a new one.
            state.forget_events()
        if state.phase is not Phase.PAUSED:
            return
        state.enter(Phase.QUEUED)
        state.assignment = assignment
        state.forget_events()
        # The team reports the epoch of its checkpoint again, and must not be told to pause again.
        state.decision = None
        await self._append(assignment)

    async def _end(self, state: TrialState, end: End) -> None:
        trial = state.assignment.trial
        await self._end_with(state, TrialEnded(trial, end.status, error=end.error, trace=end.trace))

    async def _end_with(self, state: TrialState, event: TrialEvent) -> None:
        """End a trial, unless it has ended: two members may say so, or one after the search."""
        if state.phase is Phase.ENDED:
            return
        self._drop_pending(state.assignment.trial)
        state.enter(Phase.ENDED)
        await self._publish(state, event)

    # --- who waits ------------------------------------------------------------------------------

    def _splits_future(self) -> asyncio.Future[Mapping[str, HandedSplit]]:
        # not made in __init__, which runs outside of the event loop
        if self._splits is None:
            self._splits = asyncio.get_running_loop().create_future()
        return self._splits

    async def _append(self, assignment: Assignment) -> None:
        self._pending.append(assignment)
        await self._wake_teams()

    def _drop_pending(self, trial: str) -> None:
        # by name: an assignment changes while it waits, when a late report resets its attempts
        self._pending = deque(waiting for waiting in self._pending if waiting.trial != trial)

    async def _wake_teams(self) -> None:
        async with self._pending_changed:
            self._pending_changed.notify_all()

    async def _publish(self, state: TrialState, event: TrialEvent) -> None:
        """Tell the search, which waits for the next event of its trials, and the driver."""
        if state.assignment.of_search:  # of other trials nobody asks for the next
            state.unread.append(event)
            state.has_unread.set()
        await self._log_event(event)

    async def _log_event(self, event: Event) -> None:
        await self._log.append(event, event.trial if isinstance(event, TrialEvent) else "")
