"""What ends a search before all of its trials have: a target, too many failures, the end of its
run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

from ray.tune import Stopper

from raysft.errors import RunError
from raysft.job.metrics import meets_target
from raysft.records.documents import EpochMetrics
from raysft.records.trial import metric_value
from raysft.search.in_process import InProcess
from raysft.search.results import ERROR, STATUS, TRIAL, Result
from raysft.train.queue.client import QueueClient


class AtTarget(InProcess, Stopper):
    """Ends the search when a trial is as good as the job wants it."""

    def __init__(self, target: float, metric: str, queue: QueueClient) -> None:
        self.target, self.metric, self.queue = target, metric, queue
        self.is_met = False

    def __call__(self, trial_id: str, result: Result) -> bool:
        """Look at an epoch."""
        if self.is_met or result.get(self.metric) is None:  # it failed before its first epoch
            return False
        value = metric_value(cast(EpochMetrics, result), self.metric)
        if not meets_target(value, self.target, self.metric):
            return False
        self.is_met = True
        trial = result[TRIAL]
        self.queue.finish_search(
            f"{trial} has reached search.target with {self.metric} {value:.4f}: the search ends"
        )
        return True

    def stop_all(self) -> bool:
        """Whether to end."""
        return self.is_met


class AfterFailures(InProcess, Stopper):
    """Ends the run when more trials have failed than the job allows.

    `failed`: how many have in an earlier part of the run; `file_of` names what tells more of a
    trial.
    """

    def __init__(
        self, most: int, failed: int, file_of: Callable[[str], str], queue: QueueClient
    ) -> None:
        self.most, self.failed, self.file_of, self.queue = most, failed, file_of, queue
        self.is_refused = False

    def __call__(self, trial_id: str, result: Result) -> bool:
        """Look at how a trial has ended."""
        if result.get(STATUS) == "failed":
            self.count(str(result[TRIAL]), str(result[ERROR]))
        return False

    def count(self, trial: str, error: str) -> None:
        """Count a trial that has failed."""
        self.failed += 1
        if self.failed <= self.most:
            return
        self.is_refused = True
        what = f"{self.failed} trials have failed, more than search.max_failures {self.most}"
        self.queue.refuse_run(RunError("search", f"{what}; {trial}: {error}", self.file_of(trial)))

    def stop_all(self) -> bool:
        """Whether to end."""
        return self.is_refused


class WithRun(InProcess, Stopper):
    """Ends the search with its run."""

    def __init__(self, is_over: threading.Event) -> None:
        self.is_over = is_over

    def __call__(self, trial_id: str, result: Result) -> bool:
        """No single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end."""
        return self.is_over.is_set()
