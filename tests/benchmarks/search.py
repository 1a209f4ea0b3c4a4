"""A search of four and of twelve trials: raysft, plain scripts two at a time, Ray's documented way.

ResNet-18 from scratch, 2,000 random images of 32×32 pixels, 2 epochs, one thread a trial, two
trials at a time; from the command to its end. *As commonly written*: the plain scripts use
ImageFolder, PIL and a DataLoader; Ray's way is a TorchTrainer inside a Tune function with Ray Data
streaming. raysft also validates on a part of its own, keeps checkpoints, and scores and delivers
the best model.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import RAYSFT, job, peer, run, two_at_a_time
from tests.benchmarks.compare import Figure, document, take_turns

PLAIN, RAY = "plain scripts", "Ray's documented way, 4"


def measure(rounds: int = 2) -> dict[str, Any]:
    """The comparison; needs twenty minutes, a good part of them for Ray's documented way."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = images.folder(scratch / "images", 2_000, 500)
        run(
            RAYSFT,
            "data",
            "import",
            "imagefolder",
            data / "train",
            "--test",
            data / "test",
            "--out",
            scratch / "D",
        )
        timings = [
            *take_turns(
                {f"{PLAIN}, 4": lambda: _plain(data, 1), "raysft, 4": lambda: _raysft(scratch, 1)},
                rounds,
            ),
            *take_turns(
                {
                    f"{PLAIN}, 12": lambda: _plain(data, 3),
                    "raysft, 12": lambda: _raysft(scratch, 3),
                },
                1,
                warm_up=False,
            ),
            *take_turns({RAY: lambda: _documented(scratch, data)}, 1, warm_up=False),
        ]
    median = {t.name: t.median for t in timings}
    return document(
        "search of ResNet-18 trials",
        timings,
        [
            Figure(
                "seconds of 4 trials, raysft to Ray's documented way",
                median["raysft, 4"] / median[RAY],
                0.22,
            ),
            Figure(
                "seconds of 4 trials, raysft to plain scripts",
                median["raysft, 4"] / median[f"{PLAIN}, 4"],
                1.0,
            ),
            Figure(
                "seconds of 12 trials, raysft to plain scripts",
                median["raysft, 12"] / median[f"{PLAIN}, 12"],
                0.75,
            ),
        ],
    )


def _plain(data: Path, times: int) -> None:
    two_at_a_time(
        [
            ("plain", "--data", data, "--lr", lr, "--optimizer", optimizer)
            for lr in (0.01, 0.003)
            for optimizer in ("sgd", "adamw")
        ]
        * times
    )


def _raysft(scratch: Path, times: int) -> None:
    rates = [0.01 / (1 + i) for i in range(2 * times)]
    space = {"optimizer": [{"name": name, "lr": {"grid": rates}} for name in ("sgd", "adamw")]}
    path = job(
        scratch / "j.yaml",
        data={"source": "shards", "path": str(scratch / "D")},
        model={"name": "resnet18", "weights": "none"},
        train={"epochs": 2},
        search={"space": space, "scheduler": {"name": "none"}},
    )
    run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
    shutil.rmtree(scratch / "runs")


def _documented(scratch: Path, data: Path) -> None:
    peer("ray_documented", "--data", data, "--storage", scratch / "ray")
