"""How the search, the driver and the workers call the queue: on Ray, or in the same process.

A client turns each method of the queue into a plain call that waits for its answer. What differs
between a Ray actor and an object in this process is how a call is made, which is a `Link`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.errors import RaysftError, TrialError
from raysft.job.values import Config
from raysft.ray_calls import first_result
from raysft.records.documents import EpochMetrics, LoadedWeights
from raysft.train.queue.assignment import Assignment, HandedSplit, Member, Source, Turn
from raysft.train.queue.events import (
    CheckpointScored,
    Event,
    TrialEvent,
    TrialProgress,
)
from raysft.train.queue.policy import Failure
from raysft.train.queue.trial_queue import TrialQueue

# Every worker and every trial of the search waits in a call of its own; a run would hang once these
# are used up.
MOST_CALLS = 1000

P = ParamSpec("P")
T = TypeVar("T")
Answer = TypeVar("Answer", covariant=True)
Method = Callable[Concatenate[TrialQueue, P], Coroutine[object, object, T]]


class Reply(Protocol[Answer]):
    """A call that was made and may not have been answered yet."""

    def result(self, timeout: float | None = None) -> Answer:
        """The answer; raises what the call raised, and futures.TimeoutError."""


class Link(Protocol):
    """Makes calls of a queue's methods."""

    def start(self, method: Method[P, T], *args: P.args, **named: P.kwargs) -> Reply[T]:
        """Make a call without waiting for its answer."""

    def first_answer(self, reply: Reply[T]) -> T:
        """The answer to the first call; raises RunError where the queue does not start."""


class QueueClient:
    """The queue as others see it; see `TrialQueue` for what each method does."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def _call(self, method: Method[P, T], *args: P.args, **named: P.kwargs) -> T:
        return self._link.start(method, *args, **named).result()

    # --- the driver -----------------------------------------------------------------------------

    def set_splits(self, splits: Mapping[str, HandedSplit]) -> None:
        """Hand the splits, or the references to them, to all workers."""
        self._link.first_answer(self._link.start(TrialQueue.set_splits, splits))

    def events(self, after: int, wait_s: float) -> Sequence[Event]:
        """What happened since the event number `after`."""
        return self._call(TrialQueue.events, after, wait_s)

    def remove_slot(self, slot: int) -> None:
        """A slot will not come back."""
        self._call(TrialQueue.remove_slot, slot)

    def finish_search(self, reason: str = "") -> None:
        """Stop trials after their epoch."""
        self._call(TrialQueue.finish_search, reason)

    def close(self) -> None:
        """Send the teams home; does not wait, as the queue may be gone with its machine."""
        self._link.start(TrialQueue.close)

    # --- the search -----------------------------------------------------------------------------

    def put(self, assignment: Assignment) -> None:
        """Add an assignment for the next free team."""
        self._call(TrialQueue.put, assignment)

    def reject(self, trial: str, config: Config, error: str) -> None:
        """A configuration that no trial can have."""
        self._call(TrialQueue.reject, trial, config, error)

    def pause(self, trial: str) -> None:
        """Have a trial leave its team after the epoch it has reported."""
        self._call(TrialQueue.pause, trial)

    def skip(self, trial: str, config: Config) -> None:
        """A trial that the search has ended without."""
        self._call(TrialQueue.skip, trial, config)

    def resume(self, trial: str) -> None:
        """Give a paused trial to the next free team."""
        self._call(TrialQueue.resume, trial)

    def restart(self, assignment: Assignment) -> None:
        """Give a paused trial to the next free team, with another trial's checkpoint."""
        self._call(TrialQueue.restart, assignment)

    def next_event(self, trial: str, reader: str) -> TrialEvent:
        """Wait for the next event of a trial, which trains on until then."""
        return self._call(TrialQueue.next_event, trial, reader)

    def claim(self, trial: str, source: Source) -> None:
        """A paused trial will start from the checkpoint of another one."""
        self._call(TrialQueue.claim, trial, source)

    def pin(self, trial: str, epoch: int) -> None:
        """Keep the checkpoint of an epoch for other trials."""
        self._call(TrialQueue.pin, trial, epoch)

    def give_up(self, trial: str, error: str) -> None:
        """End a trial that nobody decides on any more."""
        self._call(TrialQueue.give_up, trial, error)

    def stop(self, trial: str) -> None:
        """End a trial before its last epoch."""
        self._call(TrialQueue.stop, trial)

    # --- the workers ----------------------------------------------------------------------------

    def register_worker(self, slot: int, rank: int) -> bool:
        """A process has started; returns whether it is still wanted."""
        return self._call(TrialQueue.register_worker, slot, rank)

    def report_unable(self, slot: int, host: str, error: str) -> None:
        """A process cannot import what it needs to work."""
        self._call(TrialQueue.report_unable, slot, host, error)

    def report_network(self, weights: LoadedWeights) -> None:
        """A worker has made a network with pretrained weights."""
        self._call(TrialQueue.report_network, weights)

    def refuse_run(self, error: RaysftError) -> None:
        """No worker can work."""
        self._call(TrialQueue.refuse_run, error)

    def splits(self) -> Mapping[str, HandedSplit]:
        """The splits, once the driver has prepared them."""
        return self._call(TrialQueue.splits)

    def next_assignment(self, member: Member, turn: int) -> Turn | None:
        """What the team of a member does in a turn."""
        return self._call(TrialQueue.next_assignment, member, turn)

    def rank_0_address(self, member: Member, group: int, address: str | None) -> str:
        """Hand the address of a team's rank 0 to its members."""
        return self._call(TrialQueue.rank_0_address, member, group, address)

    def report_progress(self, rank: int, progress: TrialProgress) -> None:
        """How far a member is inside an epoch; training does not wait for it to be heard."""
        self._link.start(TrialQueue.report_progress, rank, progress)

    def report_epoch(self, trial: str, epochs: Sequence[EpochMetrics], last: bool) -> bool:
        """Metrics of an epoch; returns whether to train on."""
        return self._call(TrialQueue.report_epoch, trial, epochs, last)

    def pinned_epochs(self, trial: str) -> Sequence[int]:
        """The epochs whose checkpoints must not be removed."""
        return self._call(TrialQueue.pinned_epochs, trial)

    def finish_trial(self, member: Member, trial: str, host: str) -> None:
        """A team is done with its trial."""
        self._call(TrialQueue.finish_trial, member, trial, host)

    def report_score(self, member: Member, scored: CheckpointScored) -> None:
        """A team has scored a checkpoint."""
        self._call(TrialQueue.report_score, member, scored)

    def report_failure(self, member: Member, trial: str, failure: Failure) -> None:
        """A member gives its trial up."""
        self._call(TrialQueue.report_failure, member, trial, failure)

    def wait_for_team(self, member: Member, turn: int) -> Reply[int]:
        """All members have given the trial up: the turn they go on with."""
        return self._link.start(TrialQueue.wait_for_team, member, turn)

    def report_hang(self, member: Member) -> TrialError | None:
        """A member has waited long enough for others to give a trial up."""
        return self._call(TrialQueue.report_hang, member)


# --- on Ray ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RayReply(Reply[Answer]):
    """A call of an actor."""

    reference: ray.ObjectRef[Answer]

    def result(self, timeout: float | None = None) -> Answer:
        """The answer of the actor."""
        try:
            return ray.get(self.reference, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise futures.TimeoutError from None


@dataclass(frozen=True)
class RayLink(Link):
    """Calls a queue that is an actor; can be sent to other processes."""

    actor: object
    """The handle of a TrialQueue actor."""

    def start(self, method: Method[P, T], *args: P.args, **named: P.kwargs) -> Reply[T]:
        """Call the actor."""
        return RayReply(getattr(self.actor, method.__name__).remote(*args, **named))

    def first_answer(self, reply: Reply[T]) -> T:
        """The actor's first answer: Ray may not be able to start its process."""
        assert isinstance(reply, RayReply)
        answer: T = first_result(reply.reference)
        return answer


def start_queue() -> QueueClient:
    """Start the queue of a run as an actor on this node."""
    # Beside the driver: a run ends with it in any case, so no other machine may end the run.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor_class = ray.remote(TrialQueue).options(
        num_cpus=0, max_concurrency=MOST_CALLS, scheduling_strategy=here
    )
    return QueueClient(RayLink(actor_class.remote()))


# --- in the same process --------------------------------------------------------------------------


class LocalLink(Link):
    """Calls a queue that lives in a thread of this process, as an actor's event loop would."""

    def __init__(self) -> None:
        self._queue = TrialQueue()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="queue", daemon=True).start()

    def start(self, method: Method[P, T], *args: P.args, **named: P.kwargs) -> Reply[T]:
        """Call the queue on its event loop."""
        return asyncio.run_coroutine_threadsafe(method(self._queue, *args, **named), self._loop)

    def first_answer(self, reply: Reply[T]) -> T:
        """The thread's first answer, which it always gives."""
        return reply.result()

    def shut_down(self) -> None:
        """End the thread; calls that wait are never answered."""
        self._loop.call_soon_threadsafe(self._loop.stop)
