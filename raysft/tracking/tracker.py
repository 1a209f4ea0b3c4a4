"""What a tracker is: one place that the trials of a run are logged to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from raysft.records.documents import ResultsDocument
from raysft.records.trial import TrialRecord

Ending = Literal["finished", "killed", "failed"]


@dataclass(frozen=True)
class News:
    """The newest state of a trial, and when (seconds of the epoch) each of its epochs was heard
    of.
    """

    record: TrialRecord
    heard: Mapping[int, float]

    def at(self, epoch: int) -> float:
        """When an epoch was heard of; of one from an earlier part of the run nothing is known but
        that it was.
        """
        return self.heard.get(epoch, time.time())


@dataclass(frozen=True)
class Close:
    """How a run ended: with its results, or without."""

    ending: Ending
    results: ResultsDocument | None = None


class Tracker(Protocol):
    """One place that trials are logged to; all of it is called in one thread and may take its
    time.
    """

    name: str
    remembers: dict[str, Any]
    """What it has to know when the run is taken up again, with `trials`: for each, its epochs and
    whether it ended.
    """

    def open(self) -> None:
        """Import its library and reach its store."""

    def trial(self, news: News) -> None:
        """Log what is new of a trial that had not ended when it was last logged."""

    def close(self, close: Close) -> None:
        """Log the results, and close the trials that are still open."""
