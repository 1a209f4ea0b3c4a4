"""`raysft status`: how far a run is, a trial a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysft.console import Output, table_of
from raysft.wording import config_text, metric_text, score_text


def show_status(document: Mapping[str, Any], output: Output) -> None:
    """The status of a run as a line and a table, then what went wrong."""
    # A run of an older raysft names no metric.
    metric = document.get("metric", "val_accuracy")
    score = metric_text(metric)
    rows = [
        {
            "trial": trial["trial"],
            "status": trial["status"],
            "epochs": trial["epochs"],
            score: score_text(trial.get(metric)),
            "config": config_text(trial["config"]),
        }
        for trial in document["trials"]
    ]
    output.line(f"{document['run']}: {document['status']}, started {document['started']}")
    output.show(table_of(rows, ("trial", "status", "epochs", score, "config")))
    # Only those that a cluster has told; a run of this machine has them in its log.
    for error in document.get("errors", []):
        output.line(error)
