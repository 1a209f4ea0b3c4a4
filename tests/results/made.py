"""A data set and a run on it, written as raysft writes them, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raysft.data.preparation import Preparation
from raysft.data.shards import ImageSpec, Manifest, Split, write_manifest, write_shard
from raysft.job import Job
from raysft.job.recipe import Train
from raysft.job.spec import Model
from raysft.records.predictions import PREDICTIONS, Predictions, write_predictions
from raysft.records.run import Run
from raysft.records.trial import TrialRecord, leaderboard
from raysft.results.model import CARD, ModelCard
from raysft.run.outcome import Scored, build_results, measure_timing, summarize_repeats
from raysft.storage import StoragePath, write_json
from raysft.train.metrics import MetricSums, SplitMetrics, held_out_scores
from raysft.train.queue.assignment import Assignment

CLASSES = ("ant", "bee", "cow")
SEARCH = {"trials": 4, "space": {"optimizer": ["sgd", "adamw"]}}


def make_data(
    folder: Path,
    classes: Sequence[str] = CLASSES,
    rows: int = 24,
    shard_rows: int = 8,
    size: int = 8,
    skipped: int = 0,
) -> Manifest:
    """Noise of `size`² pixels; the label of row i is i modulo the number of classes."""
    rng, spec, splits = np.random.default_rng(0), ImageSpec("raw", size, size), {}
    for name in ("train", "test"):
        (folder / name).mkdir(parents=True)
        files = []
        for number, start in enumerate(range(0, rows, shard_rows)):
            ids = np.arange(start, min(rows, start + shard_rows))
            images = rng.integers(0, 256, (len(ids), size, size, 3), np.uint8)
            files.append(
                write_shard(
                    folder / name / f"{number:04d}.parquet",
                    spec,
                    ids,
                    images,
                    (ids % len(classes)).astype(np.int32),
                )
            )
        splits[name] = Split(rows, tuple(files))
    manifest = Manifest(tuple(classes), spec, (0.5,) * 3, (0.25,) * 3, splits, skipped, "made")
    write_manifest(folder, manifest)
    return manifest


def epochs(number: int, best: float) -> list[dict[str, Any]]:
    """Metrics of epochs that get better up to a validation accuracy of `best`."""
    return [
        {
            "epoch": i,
            "train_loss": 2.0 / i,
            "train_accuracy": 0.5,
            "val_loss": 3.0 / i,
            "val_accuracy": best * i / number,
            "val_macro_f1": best * i / number - 0.01,
            "seconds": 1.5,
            "train_seconds": 1.25,
            "data_wait_seconds": 0.25,
            "images": 20,
        }
        for i in range(1, number + 1)
    ]


def config(name: str, lr: float) -> dict[str, Any]:
    return {"optimizer": {"name": name, "lr": lr}}


def some_records() -> list[TrialRecord]:
    """Trials that ended in every way there is."""
    return [
        TrialRecord("t0", config("sgd", 0.1), "stopped", epochs(1, 0.5), 0.0, 1.5, host="10.0.0.1"),
        TrialRecord(
            "t1", config("adamw", 1e-3), "finished", epochs(3, 0.9), 0.0, 4.5, host="10.0.0.2"
        ),
        TrialRecord(
            "t2", config("sgd", 0.02), "finished", epochs(3, 0.8), 0.0, 4.5, host="10.0.0.1"
        ),
        TrialRecord(
            "t3",
            config("sgd", 9.0),
            "diverged",
            [],
            0.0,
            0.5,
            "the training loss is nan in epoch 1",
            "Traceback: not a number",
            host="10.0.0.1",
        ),
    ]


def make_run(
    root: Path,
    classes: Sequence[str] = CLASSES,
    records: list[TrialRecord] | None = None,
    *,
    storage: str | None = None,
    predicted: bool = True,
    repeats: Sequence[TrialRecord] = (),
    rows: int = 24,
    val_rows: Sequence[int] = (2, 2),
    search: dict[str, Any] | None = None,
    **data: Any,
) -> Run:
    """A run that is done, named r, on a data set of its own in ROOT/D; one without any epoch has
    failed.
    """
    manifest = make_data(root / "D", classes, rows, **data)
    records = some_records() if records is None else records
    searched: dict[str, Any] = {"search": search or SEARCH} if len(records) > 1 else {}
    job = Job.model_validate(
        {
            "name": "made",
            "storage": storage or str(root / "runs"),
            "train": {"epochs": 3},
            "seed": 7,
            "cluster": {"price_per_hour": 36.0},
            **searched,
        }
    )
    run = Run.create(job, "r")
    known = {
        "fingerprint": manifest.fingerprint,
        "classes": list(classes),
        "stored": {name: split.rows for name, split in manifest.splits.items()},
        "path": str(root / "D"),
        "rows": {"train": rows - 4, "val": 4, "test": rows},
        "read": "kept",
    }
    run.save(status="running", trials=len(records), data=known)
    for record in (*records, *repeats):
        run.save_trial(record)
    board = leaderboard(records, run.metric)
    best = board[0].best(run.metric)
    scored = None
    if best is not None:
        metrics, predictions = predict(len(classes), rows)
        scores = held_out_scores(metrics)
        if predicted:
            write_predictions(run.folder / PREDICTIONS, predictions)
        task = Assignment("train", board[0].trial, "", Model(), Train(), 7)
        scored = Scored(
            board[0], best, task, scores, Preparation((0.5,) * 3, (0.25,) * 3), predictions
        )
        card = ModelCard(
            "resnet18",
            tuple(classes),
            8,
            8,
            (0.5,) * 3,
            (0.25,) * 3,
            scores,
            {},
            weights_sha256="a" * 64,
        )
        write_json(_folder(run.folder / "model") / CARD, asdict(card))
    confirmed = summarize_repeats(board[0], repeats, run.metric, 7) if repeats else None
    timing = measure_timing(board, 0.0, 2.0, 10.0) | {"total_s": 12.5}
    run.save_results(build_results(run, board, scored, confirmed, timing, val_rows))
    run.save(status="done" if scored else "failed", timing=timing)
    return run


def predict(classes: int, rows: int) -> tuple[SplitMetrics, Predictions]:
    """(metrics, predictions) of made outputs for the test images."""
    torch.manual_seed(0)
    labels = torch.arange(rows) % classes
    outputs = torch.randn(rows, classes) + 2.0 * F.one_hot(labels, classes)
    sums = MetricSums(classes, torch.device("cpu"))
    sums.add(outputs, labels)
    probabilities = F.softmax(outputs, dim=1)
    trust, guess = probabilities.max(1)
    of_label = probabilities[torch.arange(rows), labels]
    columns = torch.arange(rows), labels, guess, trust, of_label
    matrix = torch.stack([column.double() for column in columns], dim=1).numpy()
    return sums.metrics(), Predictions.from_matrix(matrix)


def _folder(folder: StoragePath) -> StoragePath:
    if isinstance(folder, Path):
        folder.mkdir()
    return folder
