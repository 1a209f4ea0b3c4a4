"""What a second worker brings: images a second of one and of two, raysft beside torchrun; *same
recipe*.

ResNet-18, 2,000 random images of 32×32 pixels, global batch 128, one thread a worker; the last of
three epochs counts. The efficiency is the rate of two workers over twice that of one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import BIN, PEERS, RAYSFT, job, run
from tests.benchmarks.compare import Figure, document, take_turns

ROWS, EPOCHS = 2_000, 3


def measure(rounds: int = 3) -> dict[str, Any]:
    """The comparison; needs five minutes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images.shards(scratch / "D", 2_222, 222)
        timings = take_turns(
            {
                f"{name}, {n}": partial(way, scratch, n)
                for name, way in (("torchrun", _torchrun), ("raysft", _raysft))
                for n in (1, 2)
            },
            rounds,
            warm_up=False,
        )
    rate = {t.name: t.value for t in timings}
    torchrun, raysft = (
        rate[f"{name}, 2"] / rate[f"{name}, 1"] / 2 for name in ("torchrun", "raysft")
    )
    return document(
        "two workers and one",
        timings,
        [
            Figure("efficiency of torchrun", torchrun),
            Figure("efficiency of raysft", raysft),
            Figure("efficiency, raysft's less torchrun's", raysft - torchrun, -0.03, True),
            Figure(
                "images/s of one worker, raysft to torchrun",
                rate["raysft, 1"] / rate["torchrun, 1"],
            ),
        ],
        "images/s",
    )


def _torchrun(scratch: Path, workers: int) -> float:
    printed = run(
        BIN / "torchrun",
        "--nproc-per-node",
        workers,
        PEERS / "ddp.py",
        "--rows",
        ROWS,
        "--epochs",
        EPOCHS,
    )
    return json.loads(printed.splitlines()[-1])["images_per_s"]


def _raysft(scratch: Path, workers: int) -> float:
    path = job(
        scratch / "j.yaml",
        data={"source": "shards", "path": str(scratch / "D")},
        train={"epochs": EPOCHS},
        model={"name": "resnet18", "weights": "none"},
        resources={"workers": workers},
    )
    run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
    last = json.loads((scratch / "runs/r/trials/t0/trial.json").read_text())["history"][-1]
    shutil.rmtree(scratch / "runs")
    return last["images"] / last["train_seconds"]
