"""What a trial costs that trains next to nothing, in a search of 16: with the start, and once the workers are up."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import RAYSFT, job, run
from tests.benchmarks.compare import machine, versions

TRIALS = 16


def measure(rounds: int = 3) -> dict[str, Any]:
    """Needs two minutes."""
    whole, between = [], []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images.shards(scratch / "D", 100, 20)
        space = {"optimizer": [{"name": "sgd", "lr": {"uniform": [0.01, 0.02]}}]}
        path = job(scratch / "j.yaml", data={"source": "shards", "path": str(scratch / "D")}, storage="runs",
                   model={"name": "raysft.train.smallnet:small_cnn", "weights": "none"}, train={"epochs": 1},
                   search={"trials": TRIALS, "space": space, "scheduler": {"name": "none"}})
        for _ in range(rounds):
            began = time.perf_counter()
            run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
            whole.append((time.perf_counter() - began) / TRIALS)
            timing = json.loads((scratch / "runs/r/results.json").read_text())["timing"]
            between.append(timing["train_s"] / TRIALS)
            shutil.rmtree(scratch / "runs")
    ratios = {"seconds a trial, once the workers are up": sorted(between)[rounds // 2],
              "seconds a trial, from the command to its end (target 1.0; Ray's way 22)": sorted(whole)[rounds // 2]}
    return {"benchmark": "16 trials that train nothing", "baseline": "none", "machine": machine(),
            "versions": versions(), "ways": [], "seconds_a_trial": {"whole": whole, "between": between},
            "ratios": ratios}
