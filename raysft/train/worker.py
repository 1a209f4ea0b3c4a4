"""One training process: it builds the network once, then trains trial after trial with its team."""

from __future__ import annotations

import copy
import sys
import traceback
from typing import Any

import ray
import torch

from raysft.data.ingest import Reader, open_reader
from raysft.errors import ModelError, TrialError
from raysft.storage import place
from raysft.train.checkpoint import read_tensors
from raysft.train.loop import Recipe, evaluate, run_trial
from raysft.train.modeling import build_model
from raysft.train.queue import Task
from raysft.train.setup import Setup
from raysft.train.team import Team


class Worker:
    """Member `rank` of team `team` in a slot."""

    def __init__(self, setup: Setup, slot: int, world_rank: int, incarnation: int, queue: Any) -> None:
        self.setup, self.slot, self.queue, self.incarnation = setup, slot, queue, incarnation
        self.team_number, rank = divmod(world_rank, setup.resources.workers)
        device = torch.device("cuda", 0) if setup.resources.gpus_per_worker else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.set_num_threads(setup.resources.cpus_per_worker)
        self.team = Team(rank, setup.resources.workers, device)
        self.group: int | None = None
        self.readers: dict[str, Reader] = {}

    def work(self) -> None:
        """Take task after task until there are no more."""
        sys.path.append(self.setup.import_from)  # where package.module:factory is importable for the submitter
        try:
            self.net = build_model(self.setup.model, self.setup.classes, self.setup.seed)
        except ModelError as error:
            ray.get(self.queue.refuse.remote(error))
            return
        self.splits = ray.get(self.queue.data.remote())
        me = (self.slot, self.team_number, self.team.rank, self.incarnation)
        turn = 0
        while (given := ray.get(self.queue.take.remote(*me, turn))) is not None:
            task, group, turn = given
            failed = self._attempt(task, group)
            if failed is not None:
                turn = self._give_up(task, turn, *failed)
        self.team.disconnect()

    def _attempt(self, task: Task, group: int) -> tuple[str, str] | None:
        """Do a task; returns (error, traceback) when it failed, so that one trial's failure stays its own."""
        try:
            self._connect(group)
            payload = self._train(task) if task.kind == "train" else self._score(task)
            if self.team.rank == 0:
                ray.get(self.queue.finish.remote(self.slot, self.team_number, task.trial, payload))
        except Exception as error:
            line = error.what if isinstance(error, TrialError) else f"{type(error).__name__}: {error}"
            return line.strip().splitlines()[0], traceback.format_exc()
        return None

    def _give_up(self, task: Task, turn: int, error: str, trace: str) -> int:
        """Tell why before the others find this member gone, leave the group, wait for all to have left it.

        Returns the turn from which all go on.
        """
        me = (self.slot, self.team_number)
        ray.get(self.queue.fail.remote(*me, self.team.rank, self.team.workers, task.trial, error, trace))
        self.team.disconnect()
        self.group = None
        return ray.get(self.queue.settle.remote(*me, turn))

    def _connect(self, group: int) -> None:
        if self.group == group:
            return
        self.team.disconnect()

        def meet(address: str | None) -> str:
            return ray.get(self.queue.meet.remote(self.slot, self.team_number, group, address))

        self.team.connect(ray.util.get_node_ip_address(), meet)
        self.group = group

    def _train(self, task: Task) -> dict[str, Any]:
        assert task.train is not None
        setup, queue = self.setup, self.queue
        folder = place(task.folder) / "checkpoints"
        recipe = Recipe(task.train, setup.seed, setup.mean, setup.std, setup.metric, folder)
        epochs = 0

        def report(metrics: dict[str, Any], last: bool) -> bool:
            nonlocal epochs
            epochs = metrics["epoch"]
            return ray.get(queue.report.remote(task.trial, metrics, last))

        def progress(step: int, steps: int) -> None:
            queue.progress.remote(task.trial, epochs, step, steps)

        run_trial(recipe, copy.deepcopy(self.net), self._reader("train"), self._reader("val"), self.team, report,
                  progress)
        return {"host": ray.util.get_node_ip_address()}

    def _score(self, task: Task) -> dict[str, Any]:
        net = copy.deepcopy(self.net)
        net.load_state_dict(read_tensors(place(task.folder) / "model.safetensors"))
        test = self._reader("test")
        loss, accuracy = evaluate(self.team.place(net), test, self.team, self.setup.mean, self.setup.std)
        return {"test_loss": loss, "test_accuracy": accuracy}

    def _reader(self, split: str) -> Reader:
        if split not in self.readers:
            value = self.splits[split]
            self.readers[split] = open_reader(ray.get(value) if isinstance(value, ray.ObjectRef) else value)
        return self.readers[split]


def run_worker(setup: Setup, slot: int, world_rank: int, incarnation: int, queue: Any) -> None:
    """What Ray Train runs in each process of a slot; `incarnation` grows with every start of its worker group."""
    Worker(setup, slot, world_rank, incarnation, queue).work()
