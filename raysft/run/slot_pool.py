"""Where the slots of a run come from: its own, or a pool whose slots outlive it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.job.plan import RunPlan, Slot
from raysft.job.spec import Resources
from raysft.train.queue.policy import MAX_ATTEMPTS
from raysft.train.run_feed import RunFeed, WorkerRun
from raysft.train.slots import SlotThread, SlotWork

WIND_DOWN_SECONDS = 60.0
RESTARTS = 50  # of a slot, besides those that failing trials may cost: machines come and go
# Ray Train counts the restarts of a slot over all runs of a pool.
POOL_RESTARTS = 100 * RESTARTS
MOST_WORKERS = 1000  # of a pool; each waits in a call of its own


class SlotSource(Protocol):
    """Gives a run its slots."""

    def begin(self, plan: RunPlan, resources: Resources, run: WorkerRun) -> Sequence[SlotThread]:
        """The slots of a plan, at work on a run."""

    def end(self, left: Collection[int], wait: bool) -> None:
        """The run has sent its teams home; `left`: the numbers of the slots it still has."""


class OwnSlots:
    """Slots that end with their run; `scratch` is a folder for Ray Train."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._threads: list[SlotThread] = []

    def begin(self, plan: RunPlan, resources: Resources, run: WorkerRun) -> Sequence[SlotThread]:
        """Start the slots of a plan."""
        restarts = RESTARTS + MAX_ATTEMPTS * plan.trials
        # Sent once to each worker, with the handle of the queue inside.
        work: SlotWork = {"run": run}
        self._threads = start_slots(plan.slots, resources, self.scratch, restarts, work)
        return self._threads

    def end(self, left: Collection[int], wait: bool) -> None:
        """Wait until the workers have gone, if that is asked for."""
        if wait:
            for thread in self._threads:
                if thread.number in left:
                    thread.join(WIND_DOWN_SECONDS)


@dataclass(frozen=True)
class Shape:
    """What two runs must have in common to use the same slots one after the other."""

    slots: tuple[Slot, ...]
    cpus_per_worker: int
    gpus_per_worker: float
    nodes: frozenset[str]
    connection: str
    """Ray's name for this process's connection; another one has other processes."""

    @property
    def workers(self) -> int:
        """Processes of all slots together."""
        workers = 0
        for slot in self.slots:
            workers += slot.teams * slot.workers
        return workers

    @property
    def is_elastic(self) -> bool:
        """Whether slots have as many workers as there is room for, which changes all the time."""
        least = [slot.least for slot in self.slots]
        return any(least)


class SlotPool:
    """Slots that are kept for the next run of the same shape, which starts seconds earlier.

    A context that sends the workers home at its end. They hold their CPUs and GPUs until then, also
    between two runs. `scratch` is a folder for Ray Train.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._starts = 0
        self._shape: Shape | None = None
        self._threads: list[SlotThread] = []
        self._feed: ActorHandle[RunFeed] | None = None

    def begin(self, plan: RunPlan, resources: Resources, run: WorkerRun) -> Sequence[SlotThread]:
        """Give a run to the slots that are there, or to new ones where these do not fit."""
        shape = current_shape(plan, resources)
        # A slot may have ended between two runs, with its machine for example.
        fits = shape == self._shape and all(thread.is_alive() for thread in self._threads)
        if not fits:
            self.close()
            self._start(shape, resources)
        for thread in self._threads:
            thread.started = time.monotonic()  # its processes have to report to this run too
        ray.get(self._feed_actor.publish.remote(run))
        return list(self._threads)

    def end(self, left: Collection[int], wait: bool) -> None:
        """Wait for the workers to leave the run; a pool that is not whole then is closed."""
        # First: a worker that comes back, or is started again, must not join this run once more.
        ray.get(self._feed_actor.withdraw.remote())
        assert self._shape is not None
        is_whole = len(left) == len(self._threads)
        # An elastic slot may have any number of workers by the next run.
        if is_whole and not self._shape.is_elastic and self._wait_idle(self._shape.workers):
            return
        self.close()

    def _wait_idle(self, workers: int) -> bool:
        # In short calls, because a slot that has died is never idle.
        deadline = time.monotonic() + WIND_DOWN_SECONDS
        while time.monotonic() < deadline and all(thread.is_alive() for thread in self._threads):
            if ray.get(self._feed_actor.wait_idle.remote(workers, 1.0)):
                return True
        return False

    def make_room(self) -> None:
        """Leave a CPU to those who ask for one: close, where the workers hold all there are."""
        free = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray annotates none
        if free.get("CPU", 0.0) < 1.0:
            self.close()

    def close(self) -> None:
        """Send the workers home; those that are stuck in a run are killed."""
        if self._shape is None:
            return
        # Without that connection its processes are gone already.
        if ray.is_initialized() and self._shape.connection == connection():
            stuck: list[ActorHandle[object]] = ray.get(self._feed_actor.close.remote())
            for worker in stuck:
                ray.kill(worker)  # Ray Train starts it again, and the new one goes home
        for thread in self._threads:
            thread.join(WIND_DOWN_SECONDS)
        self._shape, self._feed = None, None
        self._threads = []

    def __enter__(self) -> SlotPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _feed_actor(self) -> ActorHandle[RunFeed]:
        assert self._feed is not None
        return self._feed

    def _start(self, shape: Shape, resources: Resources) -> None:
        # Ray Train takes a folder it has used before for an interrupted run of its own.
        self._starts += 1
        folder = self.scratch / f"start-{self._starts}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor_class = ray.remote(RunFeed).options(
            num_cpus=0, max_concurrency=MOST_WORKERS, scheduling_strategy=here
        )
        # Ray's type of a new actor is that of its handle or of its class.
        self._feed = actor_class.remote()  # type: ignore[assignment]
        assert self._feed is not None
        work: SlotWork = {"feed": self._feed}
        self._threads = start_slots(shape.slots, resources, folder, POOL_RESTARTS, work)
        self._shape = shape


def start_slots(
    slots: Sequence[Slot],
    resources: Resources,
    scratch: Path,
    restarts: int,
    work: SlotWork,
) -> list[SlotThread]:
    """Start slots for one run ({"run": …}) or for a feed of runs ({"feed": …})."""
    threads = []
    for number, slot in enumerate(slots):
        thread = SlotThread(number, slot, resources, str(scratch), restarts, work)
        thread.start()
        threads.append(thread)
    return threads


def current_shape(plan: RunPlan, resources: Resources) -> Shape:
    """The shape of a run on the nodes that are there now."""
    known = ray.nodes()  # type: ignore[no-untyped-call]  # Ray annotates none
    nodes = frozenset(node["NodeID"] for node in known if node["Alive"])
    return Shape(
        plan.slots,
        resources.cpus_per_worker,
        resources.gpus_per_worker,
        nodes,
        connection(),
    )


def connection() -> str:
    """What sets this process's connection to Ray apart from all before."""
    context = ray.get_runtime_context()
    return f"{context.gcs_address} {context.get_job_id()}"
