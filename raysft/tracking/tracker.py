"""What a tracker is: one place that the trials of a run are logged to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from typing_extensions import NotRequired, TypedDict

from raysft.records.documents import ResultsDocument
from raysft.records.trial import TrialRecord

Ending = Literal["finished", "killed", "failed"]


class LoggedTrial(TypedDict):
    """How much of a trial a tracker has logged."""

    epochs: int
    """The last epoch that is logged."""
    ended: bool
    run: NotRequired[str]
    """What the tracker's store calls the trial; event files are called after it anyway."""


class LoggedResult(TypedDict):
    """Where a tracker has logged the result of a run."""

    run: str


class TrackerState(TypedDict):
    """What a tracker has to know when a run is resumed; its part of tracking.json."""

    trials: dict[str, LoggedTrial]
    uri: NotRequired[str | None]
    """The store of MLflow."""
    parent: NotRequired[str | None]
    """MLflow's run above those of the trials."""
    experiment: NotRequired[str]
    result: NotRequired[LoggedResult]


@dataclass(frozen=True)
class TrialUpdate:
    """The newest state of a trial, and when (seconds of the epoch) each of its epochs ended."""

    record: TrialRecord
    epoch_times: Mapping[int, float]

    def time_of(self, epoch: int) -> float:
        """When an epoch ended; of one from an earlier part of the run nobody knows any more."""
        if epoch in self.epoch_times:
            return self.epoch_times[epoch]
        return time.time()


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: with its results, or without."""

    ending: Ending
    results: ResultsDocument | None = None


class Tracker(Protocol):
    """One place that trials are logged to; called in one thread only, and may take its time."""

    name: str
    state: TrackerState

    def open(self) -> None:
        """Import its library and reach its store."""

    def trial(self, update: TrialUpdate) -> None:
        """Log what is new of a trial that had not ended when it was last logged."""

    def close(self, end: RunEnd) -> None:
        """Log the results, and close the trials that are still open."""
