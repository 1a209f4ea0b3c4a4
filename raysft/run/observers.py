"""Everybody who is told what happens in a run: listener, files of the run, trackers, gauges."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from raysft.job.plan import RunPlan
from raysft.records.documents import LoadedWeights
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.run.gauges import Gauges
from raysft.run.listener import Listener
from raysft.run.progress import Progress
from raysft.run.trials import RunTrials
from raysft.tracking import Tracking
from raysft.train.queue.events import (
    BatchHalved,
    TrialEvent,
    TrialProgress,
    TrialStarted,
)

# Between two writes of progress.json: an object store asks money for each.
PROGRESS_SECONDS = 1.0
REMOTE_PROGRESS_SECONDS = 10.0
NAMES_SHOWN = 4


class Observers:
    """Passes on what happened to the trials of a run."""

    def __init__(
        self, run: Run, plan: RunPlan, trials: RunTrials, listener: Listener, tracking: Tracking
    ) -> None:
        self.run = run
        self.trials = trials
        self.listener = listener
        self.tracking = tracking
        self.progress = Progress(run.job, plan, run.known.values())
        self.gauges = Gauges(run.folder.name, run.metric)
        self._weights: dict[str, LoadedWeights] = {}
        self._last_status = 0.0
        self._last_saved = 0.0

    def note(self, text: str) -> None:
        """Say one line to whoever follows the run."""
        self.listener.note(text)

    def trial_event(self, record: TrialRecord, event: TrialEvent) -> None:
        """An event has been applied to the record of its trial."""
        text = describe_event(record, event)
        if text is not None:
            self.note(text)
        if not isinstance(event, TrialProgress):  # which changes nothing that is stored
            self.run.save_trial(record)
        self.tracking.trial(record, event.kind, event.at)
        self._report(record)

    def _report(self, record: TrialRecord) -> None:
        # Repeats come after all trials: the bar of epochs is at its end.
        if record.trial in self.trials.repeats:
            repeats = list(self.trials.repeats.values())
            self._report_end(record, repeats)
            return
        records = list(self.trials.records.values())
        self.listener.epochs(self.progress.done(records), self.progress.total, records)
        self._report_end(record, records)

    def _report_end(self, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        if record.ended:
            ended = sum(other.ended for other in records)
            self.listener.trial_ended(record, ended, len(records))

    def weights_loaded(self, report: LoadedWeights) -> None:
        """Say once for each network what came from its weights, and keep it in run.json."""
        name = f"{report['name']} {report['weights']}"
        if name in self._weights:  # every team makes one of its own
            return
        self._weights[name] = report
        self.run.save(weights=list(self._weights.values()))
        self.note(describe_weights(report))

    def publish_status(self) -> None:
        """Tell what the run is doing, no more often than anybody looks."""
        # Events come many times a second; a person and Prometheus look once.
        now = time.monotonic()
        if now - self._last_status < PROGRESS_SECONDS:
            return
        self._last_status = now
        records = list(self.trials.records.values())
        document = self.progress.document(records, list(self.trials.repeats.values()))
        on_disk = isinstance(self.run.folder, Path)
        if now - self._last_saved >= (PROGRESS_SECONDS if on_disk else REMOTE_PROGRESS_SECONDS):
            self._last_saved = now
            self.run.save_progress(document)
        self.listener.status(document, self.trials.all)
        self.gauges.set(document, records)


def describe_event(record: TrialRecord, event: TrialEvent) -> str | None:
    """What a person should read of an event; None for those that are expected."""
    if isinstance(event, BatchHalved):
        return (
            f"{record.trial}: out of memory; resuming from its last checkpoint with each batch in "
            f"{event.accumulate} parts"
        )
    if isinstance(event, TrialStarted) and event.attempt:
        where = f" ({event.last_seen})" if event.last_seen else ""
        return f"{record.trial}: a worker died{where}; resuming from its last checkpoint"
    return None


def describe_weights(report: LoadedWeights) -> str:
    """How much of a network came from its weights, in one line."""
    line = f"weights {report['name']}: "
    line += f"{report['loaded']} of {report['total']} tensors loaded"
    if report["source"]:
        line += f" ({report['source']})"
    if report["new"]:
        new = first_of(report["new"])
        line += f"; new {new}"
    if report["unfit"]:
        unfit = first_of(report["unfit"])
        line += f"; left out {unfit}"
    return line


def first_of(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:NAMES_SHOWN])
    left = len(names) - NAMES_SHOWN
    if left <= 0:
        return shown
    return f"{shown} and {left} more"
