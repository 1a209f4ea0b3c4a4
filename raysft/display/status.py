"""`raysft status`: how far a run is, a trial a row; and what a status is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from raysft.console import Output, make_table
from raysft.records.documents import StatusDocument
from raysft.records.trial import metric_value
from raysft.wording import config_text, metric_text, score_text


class EpochsDone(TypedDict):
    """Epochs of all trials together."""

    done: float
    total: int


class ClusterStatus(StatusDocument):
    """How far a run of a cluster is, by what it has told."""

    epochs: EpochsDone
    errors: list[str]


def show_status(document: StatusDocument, output: Output) -> None:
    """The status of a run as a line and a table, then what went wrong."""
    metric = run_metric(document)
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
    output.show(make_table(rows, ("trial", "status", "epochs", score, "config")))
    for error in run_errors(document):
        output.line(error)


def run_errors(document: StatusDocument) -> list[str]:
    """What ended a run of a cluster; one of this machine says it in its trials and its log."""
    errors = document.get("errors")
    if not isinstance(errors, list):
        return []
    return [str(error) for error in errors]


def run_metric(document: StatusDocument) -> str:
    """What a run is steered by."""
    # A run of an older raysft does not say: there was nothing to choose.
    return document.get("metric", "val_accuracy")


def known_metric(metrics: Mapping[str, object], metric: str) -> float | None:
    """A metric of an epoch or of a trial; None before its first epoch."""
    if metrics.get(metric) is None:
        return None
    return metric_value(metrics, metric)
