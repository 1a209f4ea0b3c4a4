"""Images a second of `raysft predict --out` on one core and on two, beside a well-written loop in
one process.

12,000 random images of 32×32 pixels as PNG files, ResNet-18. The rates are those once libraries are
loaded and processes are up; the seconds are those of whole commands.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import RAYSFT, peer, run
from tests.benchmarks.compare import Figure, document, take_turns
from tests.deploy.models import make_model

ROWS, CLASSES = 12_000, 10


def measure(rounds: int = 3) -> dict[str, Any]:
    """The comparison; needs eight minutes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        photos = images.folder(scratch / "images", ROWS, CLASSES) / "train"
        model = make_model(
            scratch / "model", tuple(f"c{i}" for i in range(CLASSES)), 32, "resnet18", spread=1
        )
        ways = {
            "plain loop, 1 core": lambda: _plain(model, photos),
            "raysft, 1 core": lambda: _raysft(scratch, model, photos, 1),
            "raysft, 2 cores": lambda: _raysft(scratch, model, photos, 2),
        }
        timings = take_turns(ways, rounds, warm_up=False)
    plain, one, two = (t.value for t in timings)
    return document(
        "prediction of a folder",
        timings,
        [
            Figure("images/s, raysft to the plain loop, one core", one / plain, 0.9, True),
            Figure("images/s, two cores to one", two / one),
        ],
        "images/s",
    )


def _plain(model: Path, photos: Path) -> float:
    return json.loads(peer("predict", "--model", model, "--images", photos).splitlines()[-1])[
        "images_per_s"
    ]


def _raysft(scratch: Path, model: Path, photos: Path, cores: int) -> float:
    """On one core everything shares it: the driver, Ray and the network."""
    out = scratch / "p.parquet"
    words = [RAYSFT, "predict", model, photos, "--out", out, "--json"]
    if cores < len(os.sched_getaffinity(0)):
        words = ["taskset", "-c", ",".join(map(str, range(cores))), *words]
    found = json.loads(run(*words, cwd=scratch))
    assert found["images"] == ROWS
    out.unlink()
    return found["images_per_s"]
