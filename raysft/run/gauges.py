"""The progress of a run on the metrics endpoint of Ray's nodes, for Prometheus; each gauge carries
the run's name.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raysft.records.trial import TrialRecord, leaderboard, metric_value

STATUSES = ("pending", "running", "paused", "finished", "stopped", "diverged", "failed")


class Gauges:
    """Gauges named raysft_…, which Ray exposes as ray_raysft_…; nothing where Ray collects no
    metrics.
    """

    def __init__(self, run: str, metric: str) -> None:
        self.run, self.metric = run, metric
        collects = os.environ.get("RAY_enable_metrics_collection", "1")  # noqa: SIM112  # Ray's own spelling
        self.on = collects.lower() not in ("0", "false")
        self._made: dict[str, Any] = {}

    def set(self, document: Mapping[str, Any], records: Sequence[TrialRecord]) -> None:
        """Show where the run stands."""
        if not self.on:
            return
        found = Counter(record.status for record in records)
        for status in STATUSES:
            self._set("trials", "Trials by status.", found[status], status=status)
        self._set(
            "epochs_done",
            "Epochs that are done, with a share for those in progress.",
            document["epochs"]["done"],
        )
        self._set(
            "epochs_total",
            "Epochs that all trials will train if none ends early.",
            document["epochs"]["total"],
        )
        best = leaderboard(list(records), self.metric)[0].best(self.metric) if records else None
        if best is not None:
            self._set(
                "best_metric",
                "The metric of the search in the best epoch so far.",
                metric_value(best, self.metric),
                metric=self.metric,
            )
        teams = [team for team in document["teams"] if team["images_per_s"] is not None]
        self._set(
            "images_per_second",
            "Images that all teams train in a second.",
            sum(team["images_per_s"] for team in teams),
        )
        if teams:
            self._set(
                "data_wait_fraction",
                "Share of the training time that teams wait for data, their mean.",
                statistics.fmean(team["data_wait"] for team in teams),
            )
        busy = [team["gpu"] for team in document["teams"] if team["gpu"] is not None]
        if busy:
            self._set(
                "gpu_utilization",
                "Percent of the time that the first GPU of each team is busy, their mean.",
                statistics.fmean(busy),
            )

    def _set(self, name: str, meaning: str, value: float, **tags: str) -> None:
        if name not in self._made:
            from ray.util.metrics import Gauge

            self._made[name] = Gauge(f"raysft_{name}", meaning, ("run", *tags))
        self._made[name].set(value, {"run": self.run, **tags})
