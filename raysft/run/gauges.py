"""The progress of a run on the metrics endpoint of Ray's nodes, for Prometheus; each gauge carries
the run's name.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raysft.records.documents import ProgressDocument, TeamProgress
from raysft.records.trial import TrialRecord, leaderboard, metric_value

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

STATUSES = ("pending", "running", "paused", "finished", "stopped", "diverged", "failed")


class Gauges:
    """Gauges named raysft_…, which Ray exposes as ray_raysft_…; nothing where Ray collects no
    metrics.
    """

    def __init__(self, run: str, metric: str) -> None:
        self.run = run
        self.metric = metric
        collects = os.environ.get("RAY_enable_metrics_collection", "1")  # noqa: SIM112  # Ray's own spelling
        self.on = collects.lower() not in ("0", "false")
        self._gauges: dict[str, Gauge] = {}

    def set(self, document: ProgressDocument, records: Sequence[TrialRecord]) -> None:
        """Show what the run is doing."""
        if not self.on:
            return
        statuses = Counter(record.status for record in records)
        for status in STATUSES:  # also those that no trial has: a gauge keeps its last value
            self._set("trials", "Trials by status.", statuses[status], status=status)
        epochs = document["epochs"]
        meaning = "Epochs that are done, with a share for those in progress."
        self._set("epochs_done", meaning, epochs["done"])
        meaning = "Epochs that all trials will train if none ends early."
        self._set("epochs_total", meaning, epochs["total"])
        self._set_best(records)
        self._set_speed(document["teams"])

    def _set_best(self, records: Sequence[TrialRecord]) -> None:
        if not records:
            return
        first = leaderboard(list(records), self.metric)[0]
        best = first.best(self.metric)
        if best is not None:
            value = metric_value(best, self.metric)
            meaning = "The metric of the search in the best epoch so far."
            self._set("best_metric", meaning, value, metric=self.metric)

    def _set_speed(self, teams: Sequence[TeamProgress]) -> None:
        speeds = [team["images_per_s"] for team in teams if team["images_per_s"] is not None]
        meaning = "Images that all teams train in a second."
        self._set("images_per_second", meaning, sum(speeds))
        waits = [team["data_wait"] for team in teams if team["data_wait"] is not None]
        if waits:
            meaning = "Share of the training time that teams wait for data, their mean."
            self._set("data_wait_fraction", meaning, statistics.fmean(waits))
        loads = [team["gpu"] for team in teams if team["gpu"] is not None]
        if loads:
            meaning = "Percent of the time that the first GPU of each team is busy, their mean."
            self._set("gpu_utilization", meaning, statistics.fmean(loads))

    def _set(self, name: str, meaning: str, value: float, **tags: str) -> None:
        if name not in self._gauges:
            # Not before there is a Ray: its metrics start with the first gauge.
            from ray.util.metrics import Gauge

            self._gauges[name] = Gauge(f"raysft_{name}", meaning, ("run", *tags))
        self._gauges[name].set(value, {"run": self.run, **tags})
