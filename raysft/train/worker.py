"""One training process: it builds the network once, then trains trial after trial with its team."""

from __future__ import annotations

import copy
import datetime
import sys
import traceback
from collections.abc import Sequence
from concurrent import futures

import ray
import torch

from raysft.data.pixels import Preparer
from raysft.errors import DivergedError, StorageFullError, TrialError, UserError
from raysft.gc_pause import gc_paused
from raysft.job.spec import Model
from raysft.ray_shortcuts import preemption_announced
from raysft.records.documents import EpochMetrics
from raysft.records.predictions import Predictions
from raysft.storage import is_disk_full, storage_path
from raysft.train.allocator import keep_freed_memory
from raysft.train.checkpoint import MODEL, read_state, read_tensors
from raysft.train.evaluate import score
from raysft.train.kept_inputs import KeptInputs
from raysft.train.loop import Clock, Hooks, Splits, TrialPlan, run_trial
from raysft.train.metrics import held_out_scores
from raysft.train.modeling import Network
from raysft.train.normalise import can_halve, check_batches
from raysft.train.queue.assignment import Assignment, Member
from raysft.train.queue.client import QueueClient
from raysft.train.queue.events import CheckpointScored, TrialProgress
from raysft.train.queue.policy import Cause, Failure
from raysft.train.setup import Setup, WorkerPlace
from raysft.train.team import Team

# That those who gave a trial up wait for the others to have noticed; Ray takes up to 65 seconds to
# find a machine gone.
LEAVING_SECONDS = 90.0


class Worker:
    """One member of a team."""

    def __init__(self, setup: Setup, place: WorkerPlace, queue: QueueClient) -> None:
        self.setup, self.queue = setup, queue
        # The workers of an elastic slot are one team, as many as there are just now.
        workers = place.world_size if setup.resources.elastic else setup.resources.most_workers
        team_number, rank = divmod(place.world_rank, workers)
        self.member = Member(place.slot, team_number, rank, workers, place.incarnation)
        self.patience = datetime.timedelta(minutes=setup.resources.hang_minutes)
        self.team = Team(rank, workers, _own_device(setup), self.patience)
        self.group: int | None = None
        """Number of the process group that this worker is in."""
        self.kept = KeptInputs(setup, self.team, queue.report_network)

    def work(self, model: Model | None, seed: int) -> None:
        """Do assignments until there are no more; make the network of `model` before the first."""
        # where package.module:factory is importable for the submitter
        sys.path.append(self.setup.import_from)
        try:
            with gc_paused():
                # The first step of any optimizer imports it, when the whole team would wait for it;
                # here it costs nothing, while the driver reads the data.
                import torch._dynamo  # noqa: F401

                if model is not None:
                    self._prepare(model, seed)
        except UserError as error:
            self.queue.refuse_run(error)
            return
        self.kept.splits = self.queue.splits()
        number = 0
        while (turn := self.queue.next_assignment(self.member, number)) is not None:
            number = turn.next_turn
            failure = self._attempt(turn.assignment, turn.group)
            if failure is not None:
                number = self._give_up(turn.assignment.trial, number, failure)
        self.team.disconnect()

    def _prepare(self, model: Model, seed: int) -> None:
        """Make the first network; raises UserError where no trial could train it."""
        try:
            network = self.kept.network(model, seed)
            rows = sum(self.setup.class_rows)
            workers = self.setup.resources.most_workers
            size = self.kept.image_size(model)
            for train in self.setup.recipes:
                check_batches(network.net, network.head, train, rows, workers, size)
        except TrialError:
            return  # the trial will fail with it, and say so
        except UserError:
            # Other networks of a search may do better, and the trials with this one say what is
            # wrong.
            if self.setup.one_model:
                raise

    # --- an assignment --------------------------------------------------------------------------

    def _attempt(self, assignment: Assignment, group: int) -> Failure | None:
        """Do an assignment; returns why it failed, if it did."""
        try:
            self._connect(group)
            if assignment.kind == "train":
                self._train(assignment)
            else:
                self._score(assignment)
        except Exception as error:  # so one trial's failure stays its own
            if is_disk_full(error):  # which is everyone's
                self.queue.refuse_run(StorageFullError(assignment.folder))
            return self._failure(assignment, error)
        return None

    def _train(self, assignment: Assignment) -> None:
        network = self.kept.network(assignment.model, assignment.seed)
        plan = self._plan(assignment, network)
        channels_last = assignment.train.channels_last
        prepare = Preparer(plan.preparation, self.team.device, channels_last)
        splits = Splits(
            self.kept.reader("train"),
            self.kept.reader("val"),
            lambda split: self.kept.features(assignment, network, prepare, split),
        )
        # a copy: the next trial starts from the same weights
        net = copy.deepcopy(network.net)
        run_trial(plan, net, splits, self.team, self._hooks(assignment.trial))
        if self.team.rank == 0:
            host = _own_address()
            self.queue.finish_trial(self.member, assignment.trial, host)

    def _plan(self, assignment: Assignment, network: Network) -> TrialPlan:
        source = assignment.source
        return TrialPlan(
            assignment.train,
            assignment.seed,
            self.kept.preparation(assignment.model, network),
            self.setup.class_rows,
            self.setup.metric,
            storage_path(assignment.folder) / "checkpoints",
            network.head,
            self.setup.resources.most_workers,
            None if source is None else (storage_path(source.folder) / "checkpoints", source.epoch),
        )

    def _hooks(self, trial: str) -> Hooks:
        # At first all epochs are news: the driver may have ended before it heard of the last ones.
        reported = 0

        def report(history: list[EpochMetrics], is_last: bool) -> bool:
            nonlocal reported
            news = history[reported:]
            reported = len(history)
            return self.queue.report_epoch(trial, news, is_last)

        def progress(step: int, steps: int, clock: Clock) -> None:
            seconds = clock.elapsed()
            gpu = _gpu_percent(self.team.device)
            position = TrialProgress(trial, step, steps, seconds, clock.waited, gpu)
            self.queue.report_progress(self.team.rank, position)

        def pinned() -> Sequence[int]:
            return self.queue.pinned_epochs(trial) if self.setup.trials_copy else ()

        return Hooks(report, progress, preemption_announced, pinned)

    def _score(self, assignment: Assignment) -> None:
        network = self.kept.network(assignment.model, assignment.seed)
        preparation = self.kept.preparation(assignment.model, network)
        net = copy.deepcopy(network.net)
        checkpoint = storage_path(assignment.folder)
        net.load_state_dict(read_tensors(checkpoint, MODEL, read_state(checkpoint)))
        metrics, matrix = score(
            self.team.to_device(net),
            self.kept.reader("test"),
            self.team,
            Preparer(preparation, self.team.device),
            self.setup.classes,
        )
        if self.team.rank == 0:
            scores = held_out_scores(metrics)
            predictions = Predictions.from_matrix(matrix.numpy())
            scored = CheckpointScored(assignment.trial, scores, preparation, predictions)
            self.queue.report_score(self.member, scored)

    # --- when it fails --------------------------------------------------------------------------

    def _failure(self, assignment: Assignment, error: Exception) -> Failure:
        if isinstance(error, TrialError):
            text = error.what
        elif isinstance(error, UserError):
            text = str(error)
        else:
            text = f"{type(error).__name__}: {error}"
        cause = _cause(error)
        if cause == "out_of_memory" and not self._can_halve(assignment):
            cause = "failed"
            text = f"its batches cannot be cut into smaller parts: {text}"
        first_line = text.strip().splitlines()[0]
        return Failure(first_line, traceback.format_exc(), cause)

    def _can_halve(self, assignment: Assignment) -> bool:
        network = self.kept.find_network(assignment.model, assignment.seed)
        if network is None:
            return True
        workers = self.setup.resources.most_workers
        size = self.kept.image_size(assignment.model)
        return can_halve(network.net, network.head, assignment.train, workers, size)

    def _give_up(self, trial: str, turn: int, failure: Failure) -> int:
        """Leave a failed trial, wait for all to have left it; returns the turn they go on with."""
        # The reason goes first: once this member has left the group, the others fail too, and all
        # they know is that it has gone.
        self.queue.report_failure(self.member, trial, failure)
        self.team.disconnect()
        self.group = None
        if self.team.device.type == "cuda":
            torch.cuda.empty_cache()
        next_turn = self.queue.wait_for_team(self.member, turn)
        try:
            return next_turn.result(min(LEAVING_SECONDS, self.patience.total_seconds()))
        except futures.TimeoutError:
            hanging = self.queue.report_hang(self.member)
            # Ray Train restarts the worker group, which is the only way out of a collective that
            # another member never leaves.
            if hanging is not None:
                raise hanging from None
        return next_turn.result()

    def _connect(self, group: int) -> None:
        """Be in this process group with the rest of the team."""
        if self.group == group:
            return
        self.team.disconnect()

        def exchange(address: str | None) -> str:
            return self.queue.rank_0_address(self.member, group, address)

        self.team.connect(_own_address(), exchange)
        self.group = group


def _own_address() -> str:
    # the address that the cluster knows this node by, not what its host name resolves to
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def _own_device(setup: Setup) -> torch.device:
    """The device of this process, with threads and allocator set for it."""
    # Ray shows each process the GPUs it has reserved, so that its first is always number 0.
    device = torch.device("cuda", 0) if setup.resources.gpus_per_worker else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    # Torch takes all cores of the machine otherwise, and teams on one machine slow each other down.
    torch.set_num_threads(setup.resources.cpus_per_worker)
    return device


def _gpu_percent(device: torch.device) -> float | None:
    """Percent of the time that a GPU worked lately; None for a CPU, and where nothing knows it."""
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):  # without nvidia-ml-py, or a driver it can ask
        return None


def _cause(error: Exception) -> Cause:
    # On a GPU there is a class for it; of a CPU torch's allocator says so in words alone.
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "out_of_memory"
    return "diverged" if isinstance(error, DivergedError) else "failed"


def run_worker(
    setup: Setup, place: WorkerPlace, queue: QueueClient, model: Model | None, seed: int
) -> None:
    """What Ray Train runs in each process of a slot."""
    Worker(setup, place, queue).work(model, seed)
