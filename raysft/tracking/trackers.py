"""Trackers of a run, each in a thread of its own: what they do costs the run nothing, what fails in
them as little.

A tracker is handed the newest state of each trial and logs what it has not logged yet. So no more
than one update a trial waits for it, a slow server loses nothing, and a run that is resumed is
logged on from where it was.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from raysft import interrupts
from raysft.errors import describe_error
from raysft.job import Job
from raysft.records.documents import ResultsDocument
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath, is_disk_full, read_json, write_json
from raysft.tracking.tracker import Ending, RunEnd, Tracker, TrackerState, TrialUpdate

FLUSH_SECONDS = 30.0  # for all trackers together, at the end of a run
MODEL_SECONDS = 300.0  # more, where one of them takes the delivered model
# after Ctrl-C: a cluster kills a job that is not gone three seconds after it was asked to go
STOP_SECONDS = 2.0
# Between two writes of tracking.json: an object store asks money for each.
SAVE_SECONDS = 1.0
REMOTE_SAVE_SECONDS = 30.0
STATE_FILE = "tracking.json"


@dataclass
class TrackingFile:
    """RUN/tracking.json: what each tracker has to know when the run is resumed."""

    folder: StoragePath
    states: dict[str, TrackerState] = field(default_factory=dict)
    _saved_at: float = 0.0
    _saved_ends: dict[str, dict[str, bool]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, folder: StoragePath) -> TrackingFile:
        """That of a run directory, empty where nothing was tracked yet; OSError, ValueError."""
        try:
            return cls(folder, read_json(folder / STATE_FILE))
        except FileNotFoundError:
            return cls(folder)

    def save(self, tracker: Tracker, at_once: bool = False) -> None:
        """Write down the state of a tracker now and then, at once what must not be forgotten.

        That is which trials it knows and which of them have ended; of epochs it can find out what
        it has.
        """
        ends = {}
        for trial, logged in tracker.state["trials"].items():
            ends[trial] = logged["ended"]
        on_disk = isinstance(self.folder, Path)
        pause = SAVE_SECONDS if on_disk else REMOTE_SAVE_SECONDS
        with self._lock:
            # A copy: another tracker's thread writes it while this one goes on with its own.
            self.states[tracker.name] = copy.deepcopy(tracker.state)
            changed = self._saved_ends.get(tracker.name) != ends
            if at_once or changed or time.monotonic() - self._saved_at > pause:
                self._saved_ends[tracker.name] = ends
                self._saved_at = time.monotonic()
                write_json(self.folder / STATE_FILE, self.states)


class TrackerThread(threading.Thread):
    """A tracker at work; `note` is called once with the reason if it gives up."""

    def __init__(self, tracker: Tracker, file: TrackingFile, note: Callable[[str], None]) -> None:
        super().__init__(name=f"track-{tracker.name}", daemon=True)
        self.tracker = tracker
        self.file = file
        self.note = note
        self._updates: dict[str, TrialUpdate] = {}
        self._end: RunEnd | None = None
        self._changed = threading.Condition()

    def submit(self, update: TrialUpdate) -> None:
        """Put the newest state of a trial in place of the one before."""
        with self._changed:
            self._updates[update.record.trial] = update
            self._changed.notify()

    def end(self, end: RunEnd) -> None:
        """Nothing more will come."""
        with self._changed:
            self._end = end
            self._changed.notify()

    @property
    def has_updates(self) -> bool:
        """Whether there is something that is not logged yet."""
        return bool(self._updates)

    def run(self) -> None:
        """Log until the run has ended, or the tracker fails."""
        try:
            self.tracker.open()
            self.file.save(self.tracker, at_once=True)
            while self._log_updates():
                pass
        # Each library raises errors of its own kind, and so do disk and network.
        except Exception as error:
            reason = describe_error(error)
            if is_disk_full(error):
                reason = "no space is left to write to"
            self.note(
                f"tracking {self.tracker.name}: {reason}; nothing more is logged there, the run "
                "goes on"
            )

    def _log_updates(self) -> bool:
        """Wait for updates and log them; returns whether more may come."""
        with self._changed:
            self._changed.wait_for(lambda: self._updates or self._end)
            updates = self._updates
            self._updates = {}
            end = self._end
        try:
            for update in updates.values():
                logged = self.tracker.state["trials"].get(update.record.trial)
                if logged is None or not logged["ended"]:
                    self.tracker.trial(update)
            if end is not None:
                self.tracker.close(end)
        finally:
            # Also what was logged before a failure: a resumed run must not log it twice.
            self.file.save(self.tracker, at_once=end is not None)
        return end is None


class Tracking:
    """All trackers of a run, as the driver sees them; a context that closes them at its end."""

    def __init__(self, job: Job, run: Run, note: Callable[[str], None], scratch: Path) -> None:
        self.job = job
        self.run = run
        self.note = note
        self.results: ResultsDocument | None = None
        self._epoch_times: dict[str, dict[int, float]] = {}
        self._has_begun = False
        self.threads = self._make_threads(_wanted_trackers(job, run, scratch))
        # What an earlier part of the run could not log is logged now.
        for record in run.known.values():
            self._submit(record)

    def _make_threads(self, trackers: list[Tracker]) -> list[TrackerThread]:
        """A thread a tracker; none where it is not known what was logged already."""
        if not trackers:
            return []
        try:
            file = TrackingFile.read(self.run.folder)
        except (OSError, ValueError) as error:  # without it all would be logged twice
            self.note(
                f"tracking: {self.run.folder / STATE_FILE} cannot be read ({error}); nothing is "
                "logged, the run goes on. Without that file all is logged anew"
            )
            return []
        for tracker in trackers:
            stored = file.states.get(tracker.name)
            if stored is not None:
                tracker.state.update(stored)
        return [TrackerThread(tracker, file, self.note) for tracker in trackers]

    def trial(self, record: TrialRecord, kind: str, at: float) -> None:
        """Something happened to a trial at `at` (seconds of the epoch).

        The libraries are imported once a trial trains or has ended: no start of a run waits for
        them.
        """
        if not self.threads or kind in ("proposed", "started"):
            return
        if kind == "epoch":
            times = self._epoch_times.setdefault(record.trial, {})
            # An epoch that is trained again after a crash was logged with its first time.
            times.setdefault(record.history[-1]["epoch"], at)
        if kind != "progress":
            self._submit(record)
        self._begin()

    def set_results(self, results: ResultsDocument) -> None:
        """The run has its model: what results.json holds."""
        self.results = results

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending: Ending = "failed"
        if kind is None:
            ending = "finished"
        elif issubclass(kind, (KeyboardInterrupt, SystemExit)):
            interrupts.acknowledge()
            ending = "killed"
        end = RunEnd(ending, self.results)
        self._finish(end)

    def _submit(self, record: TrialRecord) -> None:
        # The history of a record is replaced at every epoch and never changed, so a shallow copy is
        # one of a moment.
        times = self._epoch_times.get(record.trial, {})
        for thread in self.threads:
            update = TrialUpdate(replace(record), times)
            thread.submit(update)

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            for thread in self.threads:
                thread.start()

    def _finish(self, end: RunEnd) -> None:
        """Wait for all trackers, but not without end."""
        has_updates = any(thread.has_updates for thread in self.threads)
        if not self._has_begun and not (end.results and has_updates):
            return  # nothing was logged, so there is nothing to close
        self._begin()
        for thread in self.threads:
            thread.end(end)
        limit = self._seconds_to_finish(end)
        deadline = time.monotonic() + limit
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.note(
                    f"tracking {thread.tracker.name}: did not take everything within {limit:g} "
                    "seconds"
                )

    def _seconds_to_finish(self, end: RunEnd) -> float:
        if end.ending == "killed":
            return STOP_SECONDS
        takes_model = self.job.tracking.mlflow or self.job.tracking.wandb
        if end.results is not None and takes_model:
            return FLUSH_SECONDS + MODEL_SECONDS
        return FLUSH_SECONDS


def _wanted_trackers(job: Job, run: Run, scratch: Path) -> list[Tracker]:
    # Imported where they are wanted: each library takes a second or more.
    found: list[Tracker] = []
    if job.tracking.tensorboard:
        from raysft.tracking.tensorboard import TensorBoard

        found.append(TensorBoard(job, run.folder, scratch))
    if job.tracking.mlflow:
        from raysft.tracking.mlflow import Mlflow

        found.append(Mlflow(job, run.folder, run.metric))
    if job.tracking.wandb:
        from raysft.tracking.wandb import Wandb

        found.append(Wandb(job, run.folder, scratch))
    return found
