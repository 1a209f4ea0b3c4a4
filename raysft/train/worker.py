"""One training process: it builds the network once, then trains trial after trial with its team."""

from __future__ import annotations

import copy
import datetime
import sys
import traceback
from concurrent import futures

import ray
import torch

from raysft.data.epochs import KeptSplit, SplitReader, open_reader
from raysft.data.pixels import Preparer
from raysft.data.preparation import Preparation
from raysft.data.staging import keep_on_gpu
from raysft.errors import Diverged, StorageFull, TrialError, UserError
from raysft.gc_pause import gc_paused
from raysft.job.spec import Model
from raysft.ray_shortcuts import preemption_announced
from raysft.records.documents import EpochMetrics, LoadedWeights
from raysft.records.predictions import Predictions
from raysft.storage import is_disk_full, storage_path
from raysft.train.allocator import keep_freed_memory
from raysft.train.checkpoint import MODEL, read_state, read_tensors
from raysft.train.features import features_of
from raysft.train.loop import Clock, Recipe, Splits, run_trial, score
from raysft.train.metrics import held_out_scores
from raysft.train.modeling import Loaded, Network, build_network
from raysft.train.normalise import can_halve, check_batches
from raysft.train.queue.assignment import Assignment, Member
from raysft.train.queue.client import QueueClient
from raysft.train.queue.events import CheckpointScored, TrialProgress
from raysft.train.queue.policy import Cause, Failure
from raysft.train.setup import Setup
from raysft.train.team import Team
from raysft.train.tryout import try_network
from raysft.train.weights import Pixels

# That those who gave a trial up wait for the others to have noticed; Ray takes up to 65 seconds to
# find a machine gone.
LEAVING_SECONDS = 90.0
NETWORKS_KEPT = 4  # of a search over networks; each is only a copy in memory


class Worker:
    """Member `rank` of team `team` in a slot."""

    def __init__(
        self,
        setup: Setup,
        slot: int,
        world_rank: int,
        world_size: int,
        incarnation: int,
        queue: QueueClient,
    ) -> None:
        self.setup, self.queue = setup, queue
        workers = world_size if setup.resources.elastic else setup.resources.most_workers
        team_number, rank = divmod(world_rank, workers)
        self.member = Member(slot, team_number, rank, workers, incarnation)
        device = torch.device("cuda", 0) if setup.resources.gpus_per_worker else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            keep_freed_memory()
        torch.set_num_threads(setup.resources.cpus_per_worker)
        self.patience = datetime.timedelta(minutes=setup.resources.hang_minutes)
        self.team = Team(rank, workers, device, self.patience)
        self.group: int | None = None
        self.readers: dict[str, SplitReader] = {}
        self.networks: dict[tuple[Model, int], Network] = {}
        self.features: dict[tuple[Model, int | None, str], KeptSplit | None] = {}

    def work(self, model: Model | None, seed: int) -> None:
        """Do assignments until there are no more; make the network of `model` before the first."""
        sys.path.append(
            self.setup.import_from
        )  # where package.module:factory is importable for the submitter
        try:
            with gc_paused():
                import torch._dynamo  # noqa: F401  # the first step of any optimizer would, when all wait for it

                if model is not None:
                    self._begin(model, seed)
        except UserError as error:
            self.queue.refuse_run(error)
            return
        self.splits = self.queue.splits()
        number = 0
        while (turn := self.queue.next_assignment(self.member, number)) is not None:
            number = turn.next_turn
            failure = self._attempt(turn.assignment, turn.group)
            if failure is not None:
                number = self._give_up(turn.assignment.trial, number, failure)
        self.team.disconnect()

    def _begin(self, model: Model, seed: int) -> None:
        """Make the first network, which imports what it is made of; raises UserError where no trial
        could train it.
        """
        try:
            network = self._network(model, seed)
            for train in self.setup.recipes:
                check_batches(
                    network.net,
                    network.head,
                    train,
                    sum(self.setup.class_rows),
                    self.setup.resources.most_workers,
                    self._size(model),
                )
        except TrialError:
            return  # a trial's own, which tells it
        except UserError:
            if self.setup.one_model:
                # otherwise other networks may do better, and the trials with this one tell what is
                # wrong
                raise

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
                self.queue.refuse_run(StorageFull(assignment.folder))
            return self._failure(assignment, error)
        return None

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
        return Failure(text.strip().splitlines()[0], traceback.format_exc(), cause)

    def _can_halve(self, task: Assignment) -> bool:
        network = self.networks.get((task.model, task.seed))
        return network is None or can_halve(
            network.net,
            network.head,
            task.train,
            self.setup.resources.most_workers,
            self._size(task.model),
        )

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
            if hanging is not None:
                raise hanging from None
        return next_turn.result()

    def _connect(self, group: int) -> None:
        if self.group == group:
            return
        self.team.disconnect()

        def meet(address: str | None) -> str:
            return self.queue.rank_0_address(self.member, group, address)

        self.team.connect(ray.util.get_node_ip_address(), meet)
        self.group = group

    def _train(self, task: Assignment) -> None:
        setup, queue = self.setup, self.queue
        network = self._network(task.model, task.seed)
        recipe = Recipe(
            task.train,
            task.seed,
            self._preparation(task.model, network),
            setup.class_rows,
            setup.metric,
            storage_path(task.folder) / "checkpoints",
            network.head,
            setup.resources.most_workers,
        )
        prepare = Preparer(recipe.preparation, self.team.device, task.train.channels_last)
        splits = Splits(
            self._reader("train"),
            self._reader("val"),
            lambda split: self._features(task, network, prepare, split),
        )

        # At first all epochs are news: the driver may have ended before it heard of the last ones.
        reported = 0

        def report(history: list[EpochMetrics], last: bool) -> bool:
            nonlocal reported
            news = history[reported:]
            reported = len(history)
            return queue.report_epoch(task.trial, news, last)

        def progress(step: int, steps: int, clock: Clock) -> None:
            gpu = _gpu_percent(self.team.device)
            position = TrialProgress(task.trial, step, steps, clock.elapsed(), clock.waited, gpu)
            queue.report_progress(self.team.rank, position)

        run_trial(
            recipe,
            copy.deepcopy(network.net),
            splits,
            self.team,
            report,
            progress,
            preemption_announced,
        )
        if self.team.rank == 0:
            queue.finish_trial(self.member, task.trial, ray.util.get_node_ip_address())

    def _score(self, task: Assignment) -> None:
        network = self._network(task.model, task.seed)
        how = self._preparation(task.model, network)
        net = copy.deepcopy(network.net)
        checkpoint = storage_path(task.folder)
        net.load_state_dict(read_tensors(checkpoint, MODEL, read_state(checkpoint)))
        scores, matrix = score(
            self.team.place(net),
            self._reader("test"),
            self.team,
            Preparer(how, self.team.device),
            self.setup.classes,
        )
        if self.team.rank == 0:
            predictions = Predictions.from_matrix(matrix.numpy())
            scored = CheckpointScored(task.trial, held_out_scores(scores), how, predictions)
            self.queue.report_score(self.member, scored)

    def _network(self, spec: Model, seed: int) -> Network:
        """The network of `spec` as trials start with it; made once, but for the last few only
        kept.
        """
        if (spec, seed) not in self.networks:
            made = build_network(spec, self.setup.classes, seed)
            try_network(made.net, spec.name, self.setup.classes, *self._size(spec))
            while len(self.networks) >= NETWORKS_KEPT:
                self.networks.pop(next(iter(self.networks)))
            self.networks[spec, seed] = made
            if self.team.rank == 0 and made.loaded is not None:
                preparation = self._preparation(spec, made)
                self.queue.report_network(_loaded_weights(spec, made.loaded, preparation))
        return self.networks[spec, seed]

    def _size(self, spec: Model) -> tuple[int, int]:
        """(height, width) of images as the network sees them."""
        side = spec.image_size or self.setup.usual_size
        return (side, side) if side else self.setup.decoded

    def _preparation(self, spec: Model, network: Network) -> Preparation:
        """What images go through: as the job says, else as the weights say, else by the data's own
        mean and std.
        """
        own = network.pixels or Pixels(self.setup.data_mean, self.setup.data_std)
        return Preparation(
            self.setup.mean or own.mean,
            self.setup.std or own.std,
            spec.image_size or self.setup.usual_size,
            spec.interpolation or own.interpolation,
        )

    def _features(
        self, task: Assignment, network: Network, prepare: Preparer, split: str
    ) -> KeptSplit | None:
        """A split as features of the untrained backbone of a task's network, made once for all
        trials.
        """
        key = (
            task.model,
            task.seed if network.loaded is None else None,
            split,
        )  # pretrained ones have no seed
        reader = self._reader(split)
        if key not in self.features and isinstance(reader, KeptSplit):
            net = self.team.place(copy.deepcopy(network.net), task.train.channels_last)
            limit = self.setup.feature_bytes
            made = features_of(reader, net, network.head, prepare, self.team, limit)
            self.features[key] = self._resident(made) if made is not None else None
            while (
                len(self.features) > 2
                and sum(f.nbytes for f in self.features.values() if f) > limit
            ):
                self.features.pop(next(iter(self.features)))
        return self.features.get(key)

    def _reader(self, split: str) -> SplitReader:
        if split not in self.readers:
            value = self.splits[split]
            reader = open_reader(ray.get(value) if isinstance(value, ray.ObjectRef) else value)
            self.readers[split] = (
                self._resident(reader) if isinstance(reader, KeptSplit) else reader
            )
        return self.readers[split]

    def _resident(self, split: KeptSplit) -> KeptSplit:
        return keep_on_gpu(split, self.team.device, self.setup.resources.gpus_per_worker)


def _loaded_weights(spec: Model, loaded: Loaded, preparation: Preparation) -> LoadedWeights:
    return {
        "name": spec.name,
        "weights": spec.weights,
        "loaded": loaded.loaded,
        "new": list(loaded.new),
        "unfit": list(loaded.unfit),
        "total": loaded.total,
        "source": loaded.source,
        "mean": list(preparation.mean),
        "std": list(preparation.std),
        "image_size": preparation.image_size,
        "interpolation": preparation.interpolation,
    }


def _gpu_percent(device: torch.device) -> float | None:
    """Percent of the time that a GPU worked lately; None for a CPU, and without nvidia-ml-py, which
    knows it.
    """
    if device.type != "cuda":
        return None
    try:
        return float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):
        return None


def _cause(error: Exception) -> Cause:
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(
        error
    ):  # of a GPU, of the CPU
        return "out_of_memory"
    return "diverged" if isinstance(error, Diverged) else "failed"


def run_worker(
    setup: Setup,
    slot: int,
    world_rank: int,
    world_size: int,
    incarnation: int,
    queue: QueueClient,
    model: Model | None,
    seed: int,
) -> None:
    """What Ray Train runs in each process of a slot; `incarnation` grows with every start of its
    worker group.
    """
    Worker(setup, slot, world_rank, world_size, incarnation, queue).work(model, seed)
