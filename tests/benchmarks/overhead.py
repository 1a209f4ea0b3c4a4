"""What a trial costs that trains next to nothing, in a search of 16: with the start, and once the
workers are up.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import RAYSFT, job, run
from tests.benchmarks.compare import Figure, document, take_turns

TRIALS = 16


def measure(rounds: int = 5) -> dict[str, Any]:
    """Needs two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images.shards(scratch / "D", 100, 20)
        space = {"optimizer": [{"name": "sgd", "lr": {"uniform": [0.01, 0.02]}}]}
        path = job(
            scratch / "j.yaml",
            data={"source": "shards", "path": str(scratch / "D")},
            model={"name": "raysft.train.smallnet:small_cnn", "weights": "none"},
            train={"epochs": 1},
            search={"trials": TRIALS, "space": space, "scheduler": {"name": "none"}},
        )
        (timing,) = take_turns(
            {f"raysft, {TRIALS} trials": lambda: _search(path, scratch)}, rounds, warm_up=False
        )
    return document(
        f"{TRIALS} trials that train nothing",
        [timing],
        [
            Figure("seconds a trial, from the command to its end", timing.median / TRIALS, 1.0),
            Figure("seconds a trial, once the workers are up", timing.value / TRIALS),
        ],
        "s of all trials",
    )


def _search(path: Path, scratch: Path) -> float:
    run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
    seconds = json.loads((scratch / "runs/r/results.json").read_text())["timing"]["train_s"]
    shutil.rmtree(scratch / "runs")
    return seconds
