"""Schedulers that end trials early on the same 16 trials: epochs trained and the best accuracy.

Each round has a seed of its own, and in it every scheduler the same configurations, epochs and
images: scikit-learn's handwritten digits, 1,347 for training. To be no worse within seed noise
means: the mean difference of the best validation accuracies is within two standard errors of it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.children import RAYSFT, job, run
from tests.benchmarks.compare import Figure, document, take_turns

TRIALS, EPOCHS = 16, 32
OURS = "halving"
# All of them have the same first rung, a factor of 4 from one to the next, and the same most epochs.
SCHEDULERS: dict[str, dict[str, object]] = {
    OURS: {"name": OURS},
    "Tune's ASHA": {"name": "asha_tune"},
    "Tune's HyperBand": {"name": "hyperband", "reduction_factor": 4},
    "to the end": {"name": "none"},
}


def measure(rounds: int = 5) -> dict[str, Any]:
    """The comparison; needs half an hour."""
    epochs: dict[str, list[int]] = {name: [] for name in SCHEDULERS}
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            name: _search(Path(folder), scheduler, epochs[name])
            for name, scheduler in SCHEDULERS.items()
        }
        timings = take_turns(ways, rounds, warm_up=False)
    found = {timing.name: timing for timing in timings}
    figures = []
    for name in SCHEDULERS:
        figures.append(Figure(f"epochs trained, {name}", statistics.mean(epochs[name])))
        accuracy = statistics.mean(found[name].values)
        figures.append(Figure(f"best validation accuracy, {name}", accuracy))
    for name in SCHEDULERS:
        if name != OURS:
            figures.append(_behind(name, found[name].values, found[OURS].values))
    title = f"{TRIALS} trials of at most {EPOCHS} epochs, {rounds} seeds"
    return document(title, timings, figures, "best validation accuracy", epochs=epochs)


def _behind(name: str, theirs: Sequence[float], ours: Sequence[float]) -> Figure:
    """How much less accurate the best trial of ours is, seed by seed."""
    differences = [other - own for other, own in zip(theirs, ours, strict=True)]
    noise = statistics.stdev(differences) / len(differences) ** 0.5 if len(ours) > 1 else 0.0
    return Figure(f"accuracy, {name} less {OURS}", statistics.mean(differences), 2 * noise)


def _search(scratch: Path, scheduler: dict[str, object], trained: list[int]) -> Callable[[], float]:
    """A search that returns its best validation accuracy and adds the epochs of its trials."""
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
            search={"trials": TRIALS, "space": space, "scheduler": scheduler},
        )
        run(RAYSFT, "submit", path, "--name", "r", cwd=scratch)
        results = json.loads((scratch / "runs/r/results.json").read_text())
        shutil.rmtree(scratch / "runs")
        trained.append(sum(trial["epochs"] for trial in results["trials"]))
        accuracy: float = results["best"]["val_accuracy"]
        return accuracy

    return search
