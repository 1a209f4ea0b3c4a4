"""A search of four and of twelve trials: raysft, Ray's documented way, plain scripts two at a time.

ResNet-18 from scratch, 2,000 random CIFAR-shaped images, 2 epochs, one thread a trial, two trials at a time; from
the command to its end. *As commonly written*: the plain scripts use ImageFolder, PIL and a DataLoader; Ray's way is a
TorchTrainer inside a Tune function with Ray Data streaming.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import images
from tests.benchmarks.children import RAYSFT, job, peer, run, two_at_a_time
from tests.benchmarks.compare import Timing, document, take_turns

BASELINE = "plain scripts, 4"
TARGETS = {"raysft, 4": 1.0}


def measure(rounds: int = 2, documented: bool = True, twelve: bool = True) -> dict[str, Any]:
    """The comparison; needs half an hour, most of it for Ray's documented way."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = images.folder(scratch / "images", 2_000, 500)
        run(RAYSFT, "data", "import", "imagefolder", data / "train", "--test", data / "test", "--out", scratch / "D")
        timings = take_turns({BASELINE: lambda: _plain(data, 1), "raysft, 4": lambda: _raysft(scratch, 1)}, rounds,
                             warm_up=False)
        if twelve:
            timings += take_turns({"plain scripts, 12": lambda: _plain(data, 3),
                                   "raysft, 12": lambda: _raysft(scratch, 3)}, 1, warm_up=False)
        if documented:
            timings += take_turns({"Ray's documented way, 4": lambda: _documented(scratch, data)}, 1, warm_up=False)
        found = document("search of ResNet-18 trials", timings, BASELINE, TARGETS)
        return found | {"ratios": _ratios({t.name: t for t in timings})}


def _ratios(by_name: dict[str, Timing]) -> dict[str, float]:
    """The figures that have targets of their own."""
    pairs = {"raysft to Ray's documented way, 4 trials (target 0.28)": ("raysft, 4", "Ray's documented way, 4"),
             "raysft to plain scripts, 4 trials (target 1.0)": ("raysft, 4", BASELINE),
             "raysft to plain scripts, 12 trials (target 0.85)": ("raysft, 12", "plain scripts, 12")}
    return {name: by_name[a].median / by_name[b].median for name, (a, b) in pairs.items()
            if a in by_name and b in by_name}


def _plain(data: Path, times: int) -> None:
    two_at_a_time([("plain", "--data", data, "--lr", lr, "--optimizer", optimizer)
                   for lr in (0.01, 0.003) for optimizer in ("sgd", "adamw")] * times)


def _raysft(scratch: Path, times: int) -> None:
    rates = [0.01 / (1 + i) for i in range(2 * times)]
    space = {"optimizer": [{"name": name, "lr": {"grid": rates}} for name in ("sgd", "adamw")]}
    path = job(scratch / "j.yaml", data={"source": "shards", "path": str(scratch / "D")},
               model={"name": "resnet18", "weights": "none"}, train={"epochs": 2}, storage=str(scratch / "runs"),
               search={"space": space, "scheduler": {"name": "none"}})
    run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
    shutil.rmtree(scratch / "runs")


def _documented(scratch: Path, data: Path) -> None:
    peer("ray_documented", "--data", data, "--storage", scratch / "ray")
