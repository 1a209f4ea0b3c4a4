"""Several nodes on this machine, each a raylet: one dies in the middle of a trial, is told to go,
or comes back.
"""

import itertools
import logging
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from raysft.data.importer import import_dataset
from raysft.data.sources import Source
from raysft.job import Job
from raysft.job.plan import Node
from raysft.records.documents import TrialDocument
from raysft.records.reading import read_trials
from raysft.records.run import Run
from raysft.run.driver import Workspace, execute
from raysft.train import slots
from tests.run.runs import Recorder

RAY = str(Path(sys.executable).parent / "ray")

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
ROWS = 54  # for training, of the images that all tests have


@contextmanager
def cluster_of(head_cpus: int):
    """A cluster of a head and one more node with one CPU; this process is connected to it."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False}
    )
    other = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield cluster, other
    finally:
        ray.shutdown()
        cluster.shutdown()


class Saboteur(Recorder):
    """Kills the other node once an epoch is trained; brings it back once one is trained without
    it.
    """

    def __init__(self, nodes, hold: Path, brings_back: bool) -> None:
        super().__init__()
        (self.cluster, self.other), self.hold, self.brings_back = nodes, hold, brings_back
        self.killed = self.back = False

    def epochs(self, done, total, records):
        history = [epoch for record in records for epoch in record.history]
        if not self.killed and history:
            self.killed = True
            self.hold.touch()  # nobody gets further before the node is gone
            self.cluster.remove_node(self.other, allow_graceful=False)
            self.hold.unlink()
        elif self.brings_back and not self.back and any(epoch["workers"] == 1 for epoch in history):
            self.back = True
            self.hold.touch()  # until there are two workers again
            self.cluster.add_node(num_cpus=1)

    def note(self, text):
        super().note(text)
        if self.back and "resuming" in text:
            self.hold.unlink(missing_ok=True)


class Preemption(Recorder):
    """Tells the node that trains that it must go, takes it away once there is a checkpoint, and
    brings another.
    """

    def __init__(self, nodes, hold: Path, checkpoints: Path) -> None:
        super().__init__()
        (self.cluster, self.other), self.hold, self.checkpoints = nodes, hold, checkpoints
        self.saved = 0

    def epochs(self, done, total, records):
        if done > 0 and not self.saved:
            subprocess.run(
                [
                    RAY,
                    "drain-node",
                    "--address",
                    self.cluster.address,
                    "--node-id",
                    self.other.node_id,
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
            self.cluster.remove_node(self.other, allow_graceful=False)
            self.hold.unlink()
            self.cluster.add_node(num_cpus=1)


def prepared(
    images: Path, tmp_path: Path, monkeypatch, step_s: float = 0.0, **sections
) -> tuple[Run, Path]:
    """(run, file that holds training up) of a job on a tiny data set."""
    hold = tmp_path / "hold"
    (tmp_path / "held.py").write_text(HELD.format(hold=str(hold), step_s=step_s))
    monkeypatch.chdir(tmp_path)
    import_dataset(Source("imagefolder", str(images)), tmp_path / "D", "fail", lambda *a: None)
    data = {"source": "shards", "path": str(tmp_path / "D")}
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
    limits = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
    monkeypatch.setattr("raysft.train.slots.LIMITS", slots.LIMITS | limits)
    monkeypatch.setattr("raysft.train.slots.ELASTIC_LIMITS", limits)


def test_elastic_workers_become_fewer_with_the_nodes_and_more_again(
    no_ray, images, tmp_path, monkeypatch
):
    monkeypatch.setattr("raysft.train.slots.GROW_SECONDS", 3.0)
    with cluster_of(head_cpus=1) as nodes:
        run, hold = prepared(
            images,
            tmp_path,
            monkeypatch,
            0.05,
            train={"epochs": 100, "batch_size": 16},
            resources={"workers": [1, 2]},
        )
        (trial,) = go(run, [Node(1), Node(1)], Saboteur(nodes, hold, brings_back=True))
    assert trial["status"] == "finished"
    assert [epoch["epoch"] for epoch in trial["history"]] == list(range(1, 101))
    assert {epoch["images"] for epoch in trial["history"]} == {ROWS}
    workers = [epoch["workers"] for epoch in trial["history"]]
    assert [count for count, _ in itertools.groupby(workers)] == [2, 1, 2]


def test_a_node_that_dies_leaves_its_trials_to_the_other(no_ray, images, tmp_path, monkeypatch):
    with cluster_of(head_cpus=1) as nodes:
        run, hold = prepared(
            images,
            tmp_path,
            monkeypatch,
            train={"epochs": 100},
            search={
                "space": {"train.batch_size": {"grid": [8, 16]}},
                "scheduler": {"name": "none"},
            },
        )
        trials = go(run, [Node(1), Node(1)], Saboteur(nodes, hold, brings_back=False))
    assert [trial["status"] for trial in trials] == ["finished", "finished"]
    assert all(
        [epoch["epoch"] for epoch in trial["history"]] == list(range(1, 101)) for trial in trials
    )


def test_a_node_that_is_told_to_go_saves_its_trial_inside_the_epoch(
    no_ray, images, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    with cluster_of(head_cpus=0) as nodes:
        run, hold = prepared(
            images, tmp_path, monkeypatch, 0.2, train={"epochs": 1, "batch_size": 1}
        )
        listener = Preemption(nodes, hold, run.trial_folder("t0") / "checkpoints")
        (trial,) = go(run, [Node(1)], listener)
    assert trial["history"][0]["images"] == ROWS
    assert 0 < listener.saved < ROWS
    steps = (tmp_path / "hold.steps").read_text().splitlines()
    assert (
        steps.count(steps[-1]) == ROWS - listener.saved
    )  # the second worker went on where the first had saved it
