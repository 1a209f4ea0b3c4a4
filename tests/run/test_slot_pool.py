"""Slots that outlive a run: the next one finds nothing of it, and a pool that is not whole ends."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysft.records.predictions import PREDICTIONS
from raysft.run import slot_pool as module
from tests.run.runs import (
    ONE_TEAM,
    ONE_TEAM_THEN_ANOTHER,
    TWO_TEAMS_THEN_TWO_WORKERS,
    Recorder,
    Runner,
    losses,
)

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.long]

# Notes the process it is built in, and leaves behind what a person's own code may leave behind.
CARELESS = """
import os, random
import torch
from tests.tiny import {factory}
def network(num_classes):
    with open({pids!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    net = {factory}(num_classes)
    os.environ["OMP_NUM_THREADS"] = "7"
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    random.seed(torch.randint(1000, ()).item())
    return net
"""

STUCK = """
import time
import torch
from torch import nn
from tests.tiny import tiny
class Stuck(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net, self.steps = tiny(classes), 0
    def forward(self, images):
        self.steps += self.training and torch.is_grad_enabled()
        if self.steps == 5:  # in the second epoch
            time.sleep(3600)
        return self.net(images)
def network(num_classes):
    return Stuck(num_classes)
"""


class Impatient(Recorder):
    """Presses Ctrl-C once an epoch is trained."""

    def epochs(self, done, total, records) -> None:
        if done >= 1:
            raise KeyboardInterrupt


def write_module(folder: Path, factory: str) -> Path:
    folder.mkdir()
    pids = folder / "pids"
    (folder / "own.py").write_text(CARELESS.format(factory=factory, pids=str(pids)))
    return pids


def predictions(run) -> dict:
    return pq.read_table(run.folder / PREDICTIONS).to_pydict()


@pytest.mark.long
@ONE_TEAM_THEN_ANOTHER
def test_pooled_run_equals_one_on_new_workers(go: Runner, tmp_path, monkeypatch):
    pids = [write_module(tmp_path / factory, factory) for factory in ("wider", "tiny")]
    _, _, first = go()
    for factory in ("wider", "tiny"):  # a module of the same name in another folder
        monkeypatch.chdir(tmp_path / factory)
        _, _, careless = go(model={"name": "own:network"}, seed=7)
    _, _, last = go()
    _, _, tiny = go(seed=7)
    go.pool.close()
    _, _, new = go()
    assert losses(first) == losses(last) == losses(new)
    assert predictions(first) == predictions(last) == predictions(new)
    assert pids[0].read_text() == pids[1].read_text()  # both built in the same process
    assert losses(careless) == losses(tiny)


@TWO_TEAMS_THEN_TWO_WORKERS
def test_another_shape_starts_other_workers(go: Runner, tmp_path, monkeypatch):
    pids = write_module(tmp_path / "own", "tiny")
    monkeypatch.chdir(tmp_path / "own")
    two_trials = {"space": {"train.batch_size": {"grid": [8, 16]}}}
    go(model={"name": "own:network"}, search=two_trials)
    of_teams = set(pids.read_text().split())
    pids.write_text("")
    go(model={"name": "own:network"}, resources={"workers": 2})
    of_team = set(pids.read_text().split())
    assert len(of_team) == 2
    assert not of_team & of_teams


@ONE_TEAM
def test_worker_that_does_not_come_back_is_replaced(go: Runner, tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "WIND_DOWN_SECONDS", 3.0)
    with pytest.raises(KeyboardInterrupt):
        go(listener=Impatient(), model={"name": "stuck:network"})
    results, _, _ = go()
    assert results["status"] == "done"
