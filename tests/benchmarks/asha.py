"""What stopping trials early saves: a search of 16 by halving beside the same 16 trained to the end.

Real images: scikit-learn's handwritten digits, 1,347 for training. Equal within seed noise means:
the difference of the best validation accuracies, in the mean over the rounds (each with a seed of
its own), is within two standard errors of the searches that ran to the end.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.children import RAYSFT, job, run
from tests.benchmarks.compare import Figure, document, take_turns

FULL, HALVING = "to the end", "halving"
TRIALS, EPOCHS = 16, 32


def measure(rounds: int = 5) -> dict[str, Any]:
    """The comparison; needs a quarter of an hour."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        timings = take_turns(
            {FULL: _search(scratch, "none"), HALVING: _search(scratch, "halving")},
            rounds,
            warm_up=False,
        )
    full, halving = timings
    noise = statistics.stdev(full.values) / len(full.values) ** 0.5
    lost = statistics.mean(full.values) - statistics.mean(halving.values)
    return document(
        f"{TRIALS} trials of {EPOCHS} epochs",
        timings,
        [
            Figure("seconds, halving to all trained to the end", halving.median / full.median, 0.4),
            Figure("best validation accuracy, to the end less halving", lost, 2 * noise),
        ],
        "best validation accuracy",
    )


def _search(scratch: Path, scheduler: str) -> Callable[[], float]:
    seeds = itertools.count()
    space = {
        "optimizer": [
            {"name": "sgd", "lr": {"loguniform": [1e-4, 0.3]}},
            {"name": "adamw", "lr": {"loguniform": [1e-5, 0.03]}},
        ]
    }

    def search() -> float:
        path = job(
            scratch / "j.yaml",
            data={"source": "digits"},
            seed=next(seeds),
            train={"epochs": EPOCHS},
            model={"name": "raysft.train.smallnet:small_cnn", "weights": "none"},
            search={"trials": TRIALS, "space": space, "scheduler": {"name": scheduler}},
        )
        run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
        results = json.loads((scratch / "runs/r/results.json").read_text())
        shutil.rmtree(scratch / "runs")
        return results["best"]["val_accuracy"]

    return search
