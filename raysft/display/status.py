"""`raysft status`: how far a run is, a trial a row; and what a status is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from raysft.console import Output, table_of
from raysft.records.documents import StatusDocument
from raysft.records.trial import metric_value
from raysft.wording import config_text, metric_text, score_text


class EpochsDone(TypedDict):
    """Epochs of all trials together."""

    done: float
    total: int


class RunStatus(StatusDocument):
    """How far a run is, wherever it runs."""

    epochs: NotRequired[EpochsDone]
    """Of a run on a cluster; one on this machine has them in its progress."""
    errors: NotRequired[list[str]]
    """Of a run on a cluster; one on this machine has them in its trials and its log."""


def show_status(document: RunStatus, output: Output) -> None:
    """The status of a run as a line and a table, then what went wrong."""
    metric = metric_of(document)
    score = metric_text(metric)
    rows = [
        {
            "trial": trial["trial"],
            "status": trial["status"],
            "epochs": trial["epochs"],
            score: score_text(known_metric(trial, metric)),
            "config": config_text(trial["config"]),
        }
        for trial in document["trials"]
    ]
    output.line(f"{document['run']}: {document['status']}, started {document['started']}")
    output.show(table_of(rows, ("trial", "status", "epochs", score, "config")))
    for error in document.get("errors", []):
        output.line(error)


def metric_of(document: RunStatus) -> str:
    """What a run is steered by."""
    # A run of an older raysft does not say: there was nothing to choose.
    return document.get("metric", "val_accuracy")


def known_metric(metrics: Mapping[str, object], metric: str) -> float | None:
    """A metric of an epoch or of a trial; None before its first epoch."""
    if metrics.get(metric) is None:
        return None
    return metric_value(metrics, metric)
