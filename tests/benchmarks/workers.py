"""What a second worker brings: images a second of one and of two, raysft beside torchrun; *same recipe*.

ResNet-18, 2,000 random images of 32×32 pixels, global batch 128, one thread a worker; the last of three epochs counts.
The efficiency is the rate of two workers over twice that of one.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import BIN, PEERS, RAYSFT, job, run
from tests.benchmarks.compare import machine, versions

ROWS, EPOCHS = 2_000, 3


def measure(rounds: int = 3) -> dict[str, Any]:
    """The comparison; needs five minutes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images.shards(scratch / "D", 2_222, 222)
        rates: dict[str, list[float]] = {f"{name}, {n}": [] for name in ("torchrun", "raysft") for n in (1, 2)}
        for number in range(rounds):
            for name in rates if number % 2 == 0 else reversed(rates):
                way, workers = name.split(", ")
                rates[name].append((_torchrun if way == "torchrun" else _raysft)(scratch, int(workers)))
    median = {name: statistics.median(values) for name, values in rates.items()}
    efficiency = {way: median[f"{way}, 2"] / median[f"{way}, 1"] / 2 for way in ("torchrun", "raysft")}
    ratios = {"efficiency of torchrun": efficiency["torchrun"], "efficiency of raysft": efficiency["raysft"],
              "raysft's minus torchrun's (target at least -0.03)": efficiency["raysft"] - efficiency["torchrun"],
              "rate of one worker, raysft to torchrun": median["raysft, 1"] / median["torchrun, 1"]}
    return {"benchmark": "two workers and one", "baseline": "none", "machine": machine(), "versions": versions(),
            "ways": [], "images_per_s": rates, "ratios": ratios}


def _torchrun(scratch: Path, workers: int) -> float:
    printed = run(BIN / "torchrun", "--nproc-per-node", workers, PEERS / "ddp.py", "--rows", ROWS, "--epochs", EPOCHS)
    return json.loads(printed.splitlines()[-1])["images_per_s"]


def _raysft(scratch: Path, workers: int) -> float:
    path = job(scratch / "j.yaml", data={"source": "shards", "path": str(scratch / "D")}, train={"epochs": EPOCHS},
               model={"name": "resnet18", "weights": "none"}, resources={"workers": workers}, storage="runs")
    run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
    last = json.loads((scratch / "runs/r/trials/t0/trial.json").read_text())["history"][-1]
    shutil.rmtree(scratch / "runs")
    return last["images"] / last["train_seconds"]
