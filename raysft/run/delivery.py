"""What a run hands back: results.json, and the card of the delivered model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysft.data.folders import describe_files
from raysft.data.layout import SplitName
from raysft.data.preparation import Preparation
from raysft.data.shards import Manifest
from raysft.data.splits import SplitSource
from raysft.job.spec import metric_mode
from raysft.records.run import Run, TrialRecord, validation_metrics, versions
from raysft.results.answers import per_class
from raysft.results.chance import doubt_of_test, doubts
from raysft.results.model import ModelCard
from raysft.results.readme import Known, model_readme
from raysft.train.architecture import foreign_module
from raysft.train.queue import Task


@dataclass(frozen=True)
class Scored:
    """The best epoch of a run's best trial and its metrics on the test split."""

    record: TrialRecord
    best: dict[str, Any]
    task: Task
    scores: dict[str, float]
    preparation: Preparation
    judged: np.ndarray
    """What was made of each test image; see `raysft.records.predictions`."""


def results_of_run(
    run: Run,
    board: Sequence[TrialRecord],
    scored: Scored | None,
    confirmed: dict[str, Any] | None,
    timing: dict[str, Any],
    val_rows: Sequence[int],
) -> dict[str, Any]:
    """What results.json holds; val_rows: validation images of each class."""
    best = None
    if scored is not None:
        best = {
            "trial": scored.record.trial,
            "config": scored.record.config,
            "epoch": scored.best["epoch"],
            **validation_metrics(scored.best),
            **scored.scores,
            "model": str(run.folder / "model"),
            "module": foreign_module(scored.task.model.name),
        }
        if confirmed is not None:
            best["confirmed"] = confirmed
    return {
        "run": run.folder.name,
        "status": "done" if best else "failed",
        "metric": run.metric,
        "mode": metric_mode(run.metric),
        "best": best,
        "trials": [record.row(run.metric) for record in board],
        "doubts": doubts_of(run, board, val_rows, scored),
        "timing": timing,
    }


def doubts_of(
    run: Run, board: Sequence[TrialRecord], val_rows: Sequence[int], scored: Scored | None
) -> list[str]:
    """What speaks against the result of a run and its model; see `raysft.results.chance`."""
    found = doubts([record.history for record in board if record.history], run.metric, val_rows)
    if scored is None:
        return found
    test_rows = np.bincount(
        scored.judged[:, 1].astype(np.int64)
    ).tolist()  # the second column is the label
    return found + doubt_of_test(scored.scores, test_rows)


def confirmation(
    best: TrialRecord, repeats: Sequence[TrialRecord], metric: str, seed: int
) -> dict[str, Any] | None:
    """The metric of the best trial and of its repeats with other seeds: values, mean, standard
    deviation.
    """
    found = [
        (seed + i, epoch)
        for i, record in enumerate([best, *repeats])
        if (epoch := record.best(metric)) is not None
        and (record is best or record.status == "finished")
    ]
    if not repeats:
        return None
    values = [epoch[metric] for _, epoch in found]
    return {
        "metric": metric,
        "seeds": [s for s, _ in found],
        "values": values,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def timing_of(
    board: Sequence[TrialRecord], begun: float, first_trial: float | None, last_trial: float
) -> dict[str, Any]:
    """Where the time of a run went, in seconds; images a second over all teams while trials were
    trained.
    """
    epochs = [epoch for record in board for epoch in record.history]
    busy = sum(e["train_seconds"] for e in epochs)
    first = first_trial or last_trial
    train_s = last_trial - first
    return {
        "total_s": round(time.time() - begun, 2),
        "startup_s": round(first - begun, 2),
        "train_s": round(train_s, 2),
        "images_per_s": round(sum(e["images"] for e in epochs) / train_s, 1) if train_s else None,
        "data_wait_fraction": round(sum(e["data_wait_seconds"] for e in epochs) / busy, 4)
        if busy
        else None,
    }


def card_of(run: Run, manifest: Manifest, test: SplitSource, scored: Scored) -> ModelCard:
    """The card of the delivered model."""
    provenance = {
        "run": run.folder.name,
        "trial": scored.record.trial,
        "epoch": scored.best["epoch"],
        "config": scored.record.config,
        "job": run.job.model_dump(),
        "versions": versions(),
        "git": run.info["git"],
        "data": manifest.fingerprint,
        "seed": scored.task.seed,
    }
    module = foreign_module(scored.task.model.name)
    if module is not None:
        provenance["code"] = {"module": module, "needs": "--trust-code"}
    how = scored.preparation
    return ModelCard(
        scored.task.model.name,
        manifest.classes,
        test.height,
        test.width,
        tuple(how.mean),
        tuple(how.std),
        {**validation_metrics(scored.best), **scored.scores},
        provenance,
        how.image_size,
        how.interpolation,
        resampling=test.resampling,
        decoding=manifest.image.decoding,
    )


def readme_of(
    run: Run,
    manifest: Manifest,
    sources: Mapping[SplitName, SplitSource],
    board: Sequence[TrialRecord],
    confirmed: dict[str, Any] | None,
    card: ModelCard,
    scored: Scored,
) -> str:
    """The README.md of the delivered model."""
    model, (_, label, predicted, *_) = scored.task.model, scored.judged.astype(np.int64).T
    recall = {
        row["class"]: row["recall"]
        for row in per_class(label, predicted, manifest.classes)
        if row["support"]
    }
    weights = next(
        (
            told
            for told in run.info.get("weights", [])
            if (told["name"], told["weights"]) == (model.name, model.weights)
        ),
        None,
    )
    known = Known(
        run.job,
        run.metric,
        {name: len(source.ids) for name, source in sources.items()},
        sources["train"].class_rows,
        manifest.skipped,
        [record.row(run.metric) for record in board],
        weights,
        confirmed,
        recall,
        (*manifest.notes, *describe_files(manifest.counts)),
        doubts_of(run, board, sources["val"].class_rows, scored),
    )
    return model_readme(card, known)
