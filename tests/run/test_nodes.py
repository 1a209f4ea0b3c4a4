"""Several nodes on this machine, each a raylet: one dies in the middle of a trial, is told to go,
or comes back.
"""

import itertools
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.job import Job
from raysft.job.plan import Node
from raysft.records.documents import TrialDocument
from raysft.records.reading import read_trials
from raysft.records.run import Run
from raysft.run.driver import Workspace, execute
from raysft.train import slots
from tests.run.runs import Recorder, SharedImages

pytestmark = pytest.mark.long

RAY = [sys.executable, "-m", "ray.scripts.scripts"]

# Training waits for as long as a file is there; each step takes a while, and leaves a line with its
# process.
HELD = """
import os, time
import torch
from torch import nn
from tests.tiny import tiny
class Held(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = tiny(num_classes)
    def forward(self, images):
        if not torch.is_grad_enabled():  # judged, or tried out
            return self.net(images)
        if self.training:
            time.sleep({step_s})
            with open({hold!r} + ".steps", "a") as steps:
                steps.write(f"{{os.getpid()}}\\n")
        while self.training and os.path.exists({hold!r}):
            time.sleep(0.01)
        return self.net(images)
network = Held
"""
TWO_NODES = [Node(1), Node(1)]
# A node whose raylet is gone refuses the question whether it lives: two refusals will do.
IMPATIENT = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
ROWS = 54  # for training, of the images that all tests have


class Nodes:
    """A head with one CPU and another node with one, which comes and goes."""

    def __init__(self) -> None:
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": IMPATIENT}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.other = None
        self.bring_back()

    def bring_back(self) -> None:
        self.other = self.cluster.add_node(num_cpus=1)

    def kill(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)
        self.other = None


@pytest.fixture(scope="module")
def nodes_of_module(no_pool, module_without_ray) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
        nodes = Nodes()
        ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield nodes
        ray.shutdown()
        nodes.cluster.shutdown()


@pytest.fixture
def nodes(nodes_of_module: Nodes) -> Nodes:
    """The cluster of the module, whole again; this process is connected to it."""
    if nodes_of_module.other is None:
        nodes_of_module.bring_back()
    return nodes_of_module


@contextmanager
def busy_head() -> Iterator[None]:
    """Leave no CPU of the head to a run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    occupant = ray.remote(num_cpus=1, scheduling_strategy=here)(Occupant).remote()
    ray.get(occupant.arrived.remote())
    yield
    ray.kill(occupant)


class Occupant:
    def arrived(self) -> None:
        """Nothing."""


class Saboteur(Recorder):
    """Kills the other node once an epoch is trained; brings it back once one is trained without
    it.
    """

    def __init__(self, nodes: Nodes, hold: Path, brings_back: bool) -> None:
        super().__init__()
        self.nodes, self.hold, self.brings_back = nodes, hold, brings_back
        self.killed = self.back = False

    def epochs(self, done, total, records):
        history = [epoch for record in records for epoch in record.history]
        if not self.killed and history:
            self.killed = True
            self.hold.touch()  # nobody gets further before the node is gone
            self.nodes.kill()
            self.hold.unlink()
        elif self.brings_back and not self.back and any(epoch["workers"] == 1 for epoch in history):
            self.back = True
            self.hold.touch()  # until there are two workers again
            self.nodes.bring_back()

    def note(self, text):
        super().note(text)
        if self.back and "resuming" in text:
            self.hold.unlink(missing_ok=True)


class Preemption(Recorder):
    """Tells the node that trains that it must go, takes it away once there is a checkpoint, and
    brings another.
    """

    def __init__(self, nodes: Nodes, hold: Path, checkpoints: Path) -> None:
        super().__init__()
        self.nodes, self.hold, self.checkpoints = nodes, hold, checkpoints
        self.saved = 0

    def epochs(self, done, total, records):
        if done > 0 and not self.saved:
            subprocess.run(
                [
                    *RAY,
                    "drain-node",
                    "--address",
                    self.nodes.cluster.address,
                    "--node-id",
                    self.nodes.other.node_id,
                    "--reason",
                    "DRAIN_NODE_REASON_PREEMPTION",
                    "--reason-message",
                    "spot",
                    "--deadline-remaining-seconds",
                    "60",
                ],
                check=True,
                capture_output=True,
            )
            deadline = time.monotonic() + 30
            while not (found := list(self.checkpoints.glob("epoch-0000-step-*[0-9]"))):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            self.hold.touch()
            self.saved = int(found[0].name.rpartition("-")[2])
            self.nodes.kill()
            self.hold.unlink()
            self.nodes.bring_back()


def prepared(
    images: SharedImages, tmp_path: Path, monkeypatch, step_s: float = 0.0, **sections
) -> tuple[Run, Path]:
    """(run, file that holds training up) of a job on a tiny data set."""
    hold = tmp_path / "hold"
    (tmp_path / "held.py").write_text(HELD.format(hold=str(hold), step_s=step_s))
    monkeypatch.chdir(tmp_path)
    data = {"source": "shards", "path": str(images.dataset())}
    job = Job.model_validate(
        {
            "storage": str(tmp_path / "runs"),
            "data": data,
            "model": {"name": "held:network", "weights": "none"},
            **sections,
        }
    )
    return Run.create(job, "r"), hold


def go(run: Run, nodes: list[Node], listener: Recorder) -> list[TrialDocument]:
    """The trials of a run, which has to end well."""
    results = execute(
        run, nodes, listener, Workspace(run.folder.parent / "scratch"), wait_for_end=True
    )
    assert results["status"] == "done"
    return read_trials(run.folder)


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch):
    """Nobody waits a minute for workers on a node that is gone."""
    limits = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    monkeypatch.setattr("raysft.train.slots.LIMITS", slots.LIMITS | limits)
    monkeypatch.setattr("raysft.train.slots.ELASTIC_LIMITS", limits)


def test_elastic_workers_follow_the_nodes(nodes, shared_images, tmp_path, monkeypatch):
    monkeypatch.setattr("raysft.train.slots.GROW_SECONDS", 3.0)
    train = {"epochs": 10, "batch_size": 16}
    run, hold = prepared(
        shared_images, tmp_path, monkeypatch, 0.05, train=train, resources={"workers": [1, 2]}
    )
    (trial,) = go(run, TWO_NODES, Saboteur(nodes, hold, brings_back=True))
    assert trial["status"] == "finished"
    assert [epoch["epoch"] for epoch in trial["history"]] == list(range(1, 11))
    assert {epoch["images"] for epoch in trial["history"]} == {ROWS}
    workers = [epoch["workers"] for epoch in trial["history"]]
    assert [count for count, _ in itertools.groupby(workers)] == [2, 1, 2]


def test_node_that_dies_leaves_its_trials_to_others(nodes, shared_images, tmp_path, monkeypatch):
    space = {"train.batch_size": {"grid": [8, 16]}}
    search = {"space": space, "scheduler": {"name": "none"}}
    run, hold = prepared(shared_images, tmp_path, monkeypatch, train={"epochs": 40}, search=search)
    trials = go(run, TWO_NODES, Saboteur(nodes, hold, brings_back=False))
    assert [trial["status"] for trial in trials] == ["finished", "finished"]
    for trial in trials:
        assert [epoch["epoch"] for epoch in trial["history"]] == list(range(1, 41))


def test_node_told_to_go_saves_inside_the_epoch(nodes, shared_images, tmp_path, monkeypatch):
    train = {"epochs": 1, "batch_size": 1}
    run, hold = prepared(shared_images, tmp_path, monkeypatch, 0.1, train=train)
    listener = Preemption(nodes, hold, run.trial_folder("t0") / "checkpoints")
    with busy_head():
        (trial,) = go(run, [Node(1)], listener)
    assert trial["history"][0]["images"] == ROWS
    assert 0 < listener.saved < ROWS
    steps = (tmp_path / "hold.steps").read_text().splitlines()
    # the second worker went on where the first had saved it
    assert steps.count(steps[-1]) == ROWS - listener.saved
