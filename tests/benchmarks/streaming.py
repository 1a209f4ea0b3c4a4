"""Streaming more than memory may hold: peak memory with 2 GB and with 8 GB of shards, a budget of
256 MB.

`raysft submit` of one epoch over random images of 32×32 pixels with a network that costs next to
nothing. Memory is the proportional set size of all processes together, object store included,
sampled while the run goes on; a file that Ray spills would be seen in its session's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import images
from tests.benchmarks.children import ENVIRONMENT, RAYSFT, job
from tests.benchmarks.compare import Figure, document, take_turns

ROWS, TIMES = 650_000, 4
SAMPLE_SECONDS = 0.2
NETWORK = """
from torch import nn

def network(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


def measure(rounds: int = 1) -> dict[str, Any]:
    """The comparison; needs ten minutes and 10 GB of disk."""
    spilled: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "colours.py").write_text(NETWORK)
        for times in (1, TIMES):
            images.shards(scratch / f"D{times}", times * ROWS, 1_000)
        timings = take_turns(
            {f"{2 * times} GB": partial(_peak, scratch, times, spilled) for times in (1, TIMES)},
            rounds,
            warm_up=False,
        )
    small, large = timings
    return document(
        "streaming with a budget of 256 MB",
        timings,
        [
            Figure("peak memory, 8 GB of shards to 2 GB", large.value / small.value, 1.05),
            Figure("seconds an image, 8 GB of shards to 2 GB", large.median / TIMES / small.median),
            Figure("files spilled", len(set(spilled)), 0),
        ],
        "peak memory MB",
    )


def _peak(scratch: Path, times: int, spilled: list[str]) -> float:
    """Run one epoch over the data set; returns the most memory its processes had, in MB."""
    path = job(
        scratch / "j.yaml",
        data={"source": "shards", "path": str(scratch / f"D{times}"), "budget_gb": 0.256},
        train={"epochs": 1, "batch_size": 1024, "augment": {"flip": False, "crop_padding": 0}},
        model={"name": "colours:network", "weights": "none"},
    )
    before = set(Path("/tmp").glob("raysft-*"))
    process = subprocess.Popen(
        [RAYSFT, "submit", str(path), "--name", "r"],
        cwd=scratch,
        text=True,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        for session in set(Path("/tmp").glob("raysft-*")) - before:
            spilled += map(str, session.glob("session_2*/ray_spilled_objects*/*"))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise RuntimeError(process.stderr.read()[-2000:])
    run = json.loads((scratch / "runs/r/run.json").read_text())
    assert run["data"]["read"] == "streamed"
    shutil.rmtree(scratch / "runs")
    return peak / 1e6


def _memory(pid: int) -> int:
    """Proportional set size of a process and all below it, in bytes."""
    total = 0
    with suppress(psutil.Error):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total
