"""What a run came to: its results.json, what speaks against it, and where its time went."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysft.data.preparation import Preparation
from raysft.job.metrics import metric_mode
from raysft.records.documents import (
    BestDocument,
    Confirmation,
    EpochMetrics,
    HeldOutScores,
    ResultsDocument,
    Timing,
)
from raysft.records.predictions import Predictions
from raysft.records.run import Run
from raysft.records.trial import TrialRecord, metric_value, validation_metrics
from raysft.results.chance import score_doubts, training_doubts
from raysft.train.architecture import foreign_module
from raysft.train.queue.assignment import Assignment


@dataclass(frozen=True)
class Scored:
    """The best epoch of a run's best trial and its metrics on the test split."""

    record: TrialRecord
    best: EpochMetrics
    assignment: Assignment
    scores: HeldOutScores
    preparation: Preparation
    predictions: Predictions
    """Of the test images."""


def build_results(
    run: Run,
    trials: Sequence[TrialRecord],
    scored: Scored | None,
    repeated: Confirmation | None,
    timing: Timing,
    val_rows: Sequence[int],
) -> ResultsDocument:
    """A results.json; trials: from best to worst, val_rows: validation images of each class."""
    best = None if scored is None else _describe_best(run, scored, repeated)
    return {
        "run": run.folder.name,
        "status": "done" if best else "failed",
        "metric": run.metric,
        "mode": metric_mode(run.metric),  # who reads the file need not know our metrics
        "best": best,
        "trials": [record.row(run.metric) for record in trials],
        "doubts": find_doubts(run, trials, val_rows, scored),
        "timing": timing,
    }


def _describe_best(run: Run, scored: Scored, repeated: Confirmation | None) -> BestDocument:
    """The best trial in a results.json, with the scores of its model."""
    record, model = scored.record, scored.assignment.model
    best: BestDocument = {
        "trial": record.trial,
        "config": record.config,
        "epoch": scored.best["epoch"],
        **validation_metrics(scored.best),
        **scored.scores,  # type: ignore[typeddict-item]  # mypy fears a "confirmed" in it
        "model": str(run.folder / "model"),
        # Who loads the model has to have this module, and to trust it.
        "module": foreign_module(model.name),
    }
    if repeated is not None:
        best["confirmed"] = repeated
    return best


def find_doubts(
    run: Run, trials: Sequence[TrialRecord], val_rows: Sequence[int], scored: Scored | None
) -> list[str]:
    """What speaks against the result of a run and its model; see `raysft.results.chance`.

    val_rows: validation images of each class.
    """
    # A trial that never ended an epoch says nothing about chance.
    histories = [record.history for record in trials if record.history]
    found = training_doubts(histories, run.metric, val_rows)
    if scored is None:
        return found
    test_rows = np.bincount(scored.predictions.label).tolist()
    return found + score_doubts(scored.scores, test_rows)


def summarize_repeats(
    best: TrialRecord, repeats: Sequence[TrialRecord], metric: str, seed: int
) -> Confirmation | None:
    """The metric of the best trial and of its repeats with other seeds; None without repeats."""
    if not repeats:
        return None
    seeds: list[int] = []
    values: list[float] = []
    for offset, record in enumerate([best, *repeats]):
        epoch = record.best(metric)
        # A repeat that ended early says nothing about how good the recipe is.
        if epoch is None or (record is not best and record.status != "finished"):
            continue
        seeds.append(seed + offset)
        values.append(metric_value(epoch, metric))
    return {
        "metric": metric,
        "seeds": seeds,
        "values": values,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def measure_timing(
    trials: Sequence[TrialRecord], begun: float, first_start: float | None, last_end: float | None
) -> Timing:
    """Where the time of a run went, in seconds; images a second over all teams while they trained.

    begun: when the run began, by the clock.
    """
    # A run that is resumed with all trials ended has trained nothing this time.
    end = begun if last_end is None else last_end
    first = end if first_start is None else first_start
    epochs = [epoch for record in trials for epoch in record.trained]
    train_s = end - first
    images = sum(epoch["images"] for epoch in epochs)
    busy = sum(epoch["train_seconds"] for epoch in epochs)
    waited = sum(epoch["data_wait_seconds"] for epoch in epochs)
    return {
        "total_s": round(time.time() - begun, 2),
        "startup_s": round(first - begun, 2),
        "train_s": round(train_s, 2),
        "images_per_s": round(images / train_s, 1) if train_s else None,
        # Of what teams spent in training, not of the run: a team without a trial waits for none.
        "data_wait_fraction": round(waited / busy, 4) if busy else None,
    }
