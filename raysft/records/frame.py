"""The trials of a run as a data frame, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from raysft.records.documents import TrialDocument
from raysft.records.trial import TrialRecord, leaderboard

if TYPE_CHECKING:
    import pandas


def trials_frame(trials: Sequence[TrialDocument], metric: str) -> pandas.DataFrame:
    """A row a trial, the best by `metric` first: how it ended, the metrics of its best epoch, and
    its configuration, a column a value named `config.KEY`.
    """
    import pandas  # half a second, which only notebooks pay

    statuses = {trial["trial"]: trial["status"] for trial in trials}
    records = [TrialRecord.from_document(trial) for trial in trials]
    rows = []
    for record in leaderboard(records, metric):
        # The record of one that has not ended says pending, as it would be when it is resumed.
        rows.append({**_row(record, metric), "status": statuses[record.trial]})
    return pandas.DataFrame(rows)


def _row(record: TrialRecord, metric: str) -> dict[str, object]:
    row: dict[str, object] = {**record.row(metric)}
    del row["config"]
    best = record.best(metric)
    row["best_epoch"] = None if best is None else best["epoch"]
    return row | dict(_flat("config", record.config))


def _flat(prefix: str, values: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value
