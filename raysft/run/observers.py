"""Everybody who is told what happens in a run: listener, files of the run, trackers, gauges."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from raysft.job.plan import RunPlan
from raysft.records.documents import LoadedWeights, ProgressDocument
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.run.gauges import Gauges
from raysft.run.listener import Listener
from raysft.run.progress import Progress
from raysft.run.trials import RunTrials
from raysft.tracking import Tracking
from raysft.train.queue.events import (
    BatchHalved,
    Event,
    NetworkBuilt,
    SearchFinished,
    TrialEvent,
    TrialProgress,
    TrialStarted,
)

# Between two writes of progress.json: an object store asks money for each.
PROGRESS_SECONDS = 1.0
REMOTE_PROGRESS_SECONDS = 10.0
NAMES_SHOWN = 4


class Observer:
    """Hears what happens in a run, of which it looks at what concerns it."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def trial_event(self, record: TrialRecord, event: TrialEvent) -> None:
        """Something happened to a trial, whose record has been brought up to date."""

    def status(self, document: ProgressDocument, trials: RunTrials) -> None:
        """What the run is doing, once a second."""


class Observers:
    """Tells everybody in `others`, and those whom every run has."""

    def __init__(
        self, run: Run, plan: RunPlan, trials: RunTrials, listener: Listener, tracking: Tracking
    ) -> None:
        self.trials = trials
        self.progress = Progress(run.job, plan, run.known.values())
        self.note = listener.note
        """Say one line to whoever follows the run."""
        self.others: list[Observer] = [
            # First: who reads that a trial has ended may end the run with Ctrl-C.
            Stored(run),
            Tracked(tracking),
            Told(listener, trials, self.progress),
            Shown(Gauges(run.folder.name, run.metric)),
        ]
        self._last_status = 0.0

    def event(self, event: Event) -> None:
        """Tell them of an event, after what is known of the run and its trial has heard of it."""
        self.progress.apply(event)
        for observer in self.others:
            observer.event(event)
        record = self.trials.find(event.trial) if isinstance(event, TrialEvent) else None
        if record is None:  # of the score on the test split, which is no trial
            return
        assert isinstance(event, TrialEvent)
        self.trials.apply(record, event)
        for observer in self.others:
            observer.trial_event(record, event)

    def publish_status(self) -> None:
        """Tell them what the run is doing, no more often than anybody looks."""
        # Events come many times a second; a person and Prometheus look once.
        now = time.monotonic()
        if now - self._last_status < PROGRESS_SECONDS:
            return
        self._last_status = now
        records = list(self.trials.records.values())
        document = self.progress.document(records, list(self.trials.repeats.values()))
        for observer in self.others:
            observer.status(document, self.trials)


class Told(Observer):
    """Whoever follows the run: a console, a log, a notebook."""

    def __init__(self, listener: Listener, trials: RunTrials, progress: Progress) -> None:
        self.listener, self.trials, self.progress = listener, trials, progress
        self._networks: set[str] = set()

    def event(self, event: Event) -> None:
        """Say why the search ends, and once for each network what came from its weights."""
        if isinstance(event, SearchFinished):
            self.listener.note(event.reason)
        elif isinstance(event, NetworkBuilt):
            name = _network_name(event.weights)
            if name not in self._networks:  # every team makes one of its own
                self._networks.add(name)
                self.listener.note(describe_weights(event.weights))

    def trial_event(self, record: TrialRecord, event: TrialEvent) -> None:
        """Say what is not expected, and how far the run is."""
        text = describe_event(record, event)
        if text is not None:
            self.listener.note(text)
        # Repeats come after all trials: the bar of epochs is at its end.
        if record.trial in self.trials.repeats:
            self._tell_end(record, list(self.trials.repeats.values()))
            return
        records = list(self.trials.records.values())
        self.listener.epochs(self.progress.done(records), self.progress.total, records)
        self._tell_end(record, records)

    def _tell_end(self, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        if record.ended:
            ended = sum(other.ended for other in records)
            self.listener.trial_ended(record, ended, len(records))

    def status(self, document: ProgressDocument, trials: RunTrials) -> None:
        """Show what the run is doing."""
        self.listener.status(document, trials.all)


class Stored(Observer):
    """The files of the run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._weights: dict[str, LoadedWeights] = {}
        self._last_saved = 0.0

    def event(self, event: Event) -> None:
        """Keep in run.json what came from the weights of each network."""
        if isinstance(event, NetworkBuilt) and _network_name(event.weights) not in self._weights:
            self._weights[_network_name(event.weights)] = event.weights
            self.run.save(weights=list(self._weights.values()))

    def trial_event(self, record: TrialRecord, event: TrialEvent) -> None:
        """Write the trial's file."""
        if not isinstance(event, TrialProgress):  # which changes nothing that is stored
            self.run.save_trial(record)

    def status(self, document: ProgressDocument, trials: RunTrials) -> None:
        """Write progress.json."""
        now = time.monotonic()
        on_disk = isinstance(self.run.folder, Path)
        if now - self._last_saved >= (PROGRESS_SECONDS if on_disk else REMOTE_PROGRESS_SECONDS):
            self._last_saved = now
            self.run.save_progress(document)


class Tracked(Observer):
    """TensorBoard, MLflow, Weights & Biases."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking

    def trial_event(self, record: TrialRecord, event: TrialEvent) -> None:
        """Log what is new."""
        self.tracking.trial(record, event.kind, event.at)


class Shown(Observer):
    """Gauges for Prometheus."""

    def __init__(self, gauges: Gauges) -> None:
        self.gauges = gauges

    def status(self, document: ProgressDocument, trials: RunTrials) -> None:
        """Set them."""
        self.gauges.set(document, list(trials.records.values()))


def _network_name(weights: LoadedWeights) -> str:
    return f"{weights['name']} {weights['weights']}"


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
