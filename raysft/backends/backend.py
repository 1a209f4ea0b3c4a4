"""What every place that runs jobs can be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

from raysft.deploy.prediction import Predicted, PredictionRequest
from raysft.display.plan import PlanDocument
from raysft.entrypoints.doctor import Finding
from raysft.records.documents import ResultsDocument, StatusDocument

Workers = int | list[int]
"""N, or [LEAST, MOST], as resources.workers has them."""


class RunRow(TypedDict):
    """A run in a list of them."""

    run: str
    status: str
    started: str | None
    ended: str | None
    trials: NotRequired[int | None]
    """Of a run on this machine."""


@dataclass(frozen=True)
class PlannedJob:
    """What a job would run, as a document and as lines."""

    document: PlanDocument
    lines: Sequence[str]


class Backend(Protocol):
    """Runs jobs and knows its runs; a run is given by its name or its directory.

    Every method raises UserError for what a person has to correct, and RunError for what failed.
    """

    run_columns: tuple[str, ...]
    """The keys of a row of `runs`."""

    def plan(self, job_file: Path, overrides: Sequence[str], measure: bool) -> PlannedJob:
        """Plan a job; `measure` trains a few steps of it first."""

    def submit(
        self, job_file: Path, overrides: Sequence[str], name: str | None, detach: bool
    ) -> None:
        """Run a job and show how it goes on, to its end unless it is to be left alone."""

    def resume(
        self, run: str, workers: Workers | None, overrides: Sequence[str], detach: bool
    ) -> None:
        """Resume a run that was stopped or crashed, as `submit` shows it.

        overrides: where its files are by now.
        """

    def runs(self, storage: str) -> list[RunRow]:
        """All runs that are known, oldest first; `storage` is a folder of this machine."""

    def status(self, run: str) -> StatusDocument:
        """How far a run is, with its trials."""

    def watch(self, run: str) -> Iterator[StatusDocument]:
        """The status of a run again and again, until it has ended."""

    def results(self, run: str) -> ResultsDocument:
        """The results.json of a run."""

    def logs(self, run: str, follow: bool) -> None:
        """Show what a run has printed; `follow` goes on until the run has ended."""

    def stop(self, run: str) -> None:
        """Stop a run; what it has trained stays, and it can be resumed."""

    def predict(self, request: PredictionRequest, show_progress: bool) -> Predicted:
        """Predict a whole folder or data set."""

    def doctor(self, storage: str) -> list[Finding]:
        """Examine the nodes, and `storage` from each of them."""
