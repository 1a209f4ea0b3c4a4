"""Who follows a run while it goes on: the console, the log of a cluster's job, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raysft.records.documents import ProgressDocument
from raysft.records.trial import TrialRecord


class Listener(Protocol):
    """What a run reports while it goes on; a console shows it."""

    def note(self, text: str) -> None:
        """One line for a person to read."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Rows imported, bytes downloaded."""

    def epochs(self, done: float, total: int, records: Sequence[TrialRecord]) -> None:
        """Epochs trained by all trials, with a fraction for those in progress."""

    def trial_ended(self, record: TrialRecord, ended: int, total: int) -> None:
        """A trial finished, was stopped by the search, or failed."""

    def status(self, document: ProgressDocument, records: Sequence[TrialRecord]) -> None:
        """What the run is doing, once a second; see raysft.run.progress."""


class SilentListener:
    """A listener for a run that nobody follows."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def epochs(self, done: float, total: int, records: Sequence[TrialRecord]) -> None:
        """Nothing."""

    def trial_ended(self, record: TrialRecord, ended: int, total: int) -> None:
        """Nothing."""

    def status(self, document: ProgressDocument, records: Sequence[TrialRecord]) -> None:
        """Nothing."""
