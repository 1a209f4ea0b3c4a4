"""Trackers of a run, each in a thread of its own: what they do costs the run nothing, what fails in
them as little.

A tracker is handed the newest state of each trial and logs what it has not logged yet. So its
mailbox holds no more than one record a trial, a slow server loses nothing, and a run that is taken
up again is logged on from where it was.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysft import interrupts
from raysft.errors import describe_error
from raysft.job import Job
from raysft.records.documents import ResultsDocument
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath, is_disk_full, read_json, write_json
from raysft.tracking.tracker import Close, News, Tracker

FLUSH_SECONDS = 30.0  # for all trackers together, at the end of a run
MODEL_SECONDS = 300.0  # more, where one of them takes the delivered model
# after Ctrl-C: a cluster kills a job that is not gone three seconds after it was asked to go
STOP_SECONDS = 2.0
KEEP_SECONDS, REMOTE_KEEP_SECONDS = (
    1.0,
    30.0,
)  # between two writes of what trackers remember: disk, object store
MEMORY = "tracking.json"


@dataclass
class Memory:
    """What trackers remember, in RUN/tracking.json."""

    folder: StoragePath
    known: dict[str, Any] = field(default_factory=dict)
    written: float = 0.0
    standing: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, folder: StoragePath) -> Memory:
        """That of a run directory; empty where nothing was tracked yet. Raises OSError,
        ValueError.
        """
        try:
            return cls(folder, read_json(folder / MEMORY))
        except FileNotFoundError:
            return cls(folder)

    def keep(self, tracker: Tracker, now: bool = False) -> None:
        """Write down what a tracker remembers now and then, at once what must not be forgotten.

        That is which trials it knows and which of them have ended; of epochs it can find out what
        it has.
        """
        standing = {trial: known["ended"] for trial, known in tracker.remembers["trials"].items()}
        with self.lock:
            self.known[tracker.name] = copy.deepcopy(
                tracker.remembers
            )  # others' threads change theirs meanwhile
            pause = KEEP_SECONDS if isinstance(self.folder, Path) else REMOTE_KEEP_SECONDS
            now = now or self.standing.get(tracker.name) != standing
            if now or time.monotonic() - self.written > pause:
                self.standing[tracker.name], self.written = standing, time.monotonic()
                write_json(self.folder / MEMORY, self.known)


class TrackerThread(threading.Thread):
    """A tracker at work; `note` is told once why it has given up, if it has."""

    def __init__(self, tracker: Tracker, memory: Memory, note: Callable[[str], None]) -> None:
        super().__init__(name=f"track-{tracker.name}", daemon=True)
        self.tracker, self.memory, self.note = tracker, memory, note
        self._mail: dict[str, News] = {}
        self._close: Close | None = None
        self._changed = threading.Condition()

    def tell(self, news: News) -> None:
        """Put the newest state of a trial in place of the one before."""
        with self._changed:
            self._mail[news.record.trial] = news
            self._changed.notify()

    def end(self, close: Close) -> None:
        """Nothing more will come."""
        with self._changed:
            self._close = close
            self._changed.notify()

    @property
    def has_mail(self) -> bool:
        return bool(self._mail)

    def run(self) -> None:
        try:
            self.tracker.open()
            self.memory.keep(self.tracker, now=True)
            while self._work():
                pass
        except (
            Exception
        ) as error:  # of any kind, by library and by what is wrong with the disk or the network
            why = "no space is left to write to" if is_disk_full(error) else describe_error(error)
            self.note(
                f"tracking {self.tracker.name}: {why}; nothing more is logged there, the run "
                "goes on"
            )

    def _work(self) -> bool:
        """Log what has come; whether more may."""
        with self._changed:
            self._changed.wait_for(lambda: self._mail or self._close)
            mail, self._mail = self._mail, {}
            close = self._close
        try:
            for news in mail.values():
                known = self.tracker.remembers["trials"].get(news.record.trial)
                if known is None or not known["ended"]:
                    self.tracker.trial(news)
            if close is not None:
                self.tracker.close(close)
        finally:
            self.memory.keep(self.tracker, now=close is not None)
        return close is None


class Tracking:
    """All trackers of a run, as the driver sees them; a context that closes them as the run
    ends.
    """

    def __init__(self, job: Job, run: Run, note: Callable[[str], None], scratch: Path) -> None:
        self.job, self.run, self.note = job, run, note
        self.results: ResultsDocument | None = None
        self.heard: dict[str, dict[int, float]] = {}
        self.begun = False
        self.threads = self._threads(_trackers_of(job, run, scratch))
        for (
            record
        ) in run.known.values():  # what an earlier part of the run could not log is logged now
            self._tell(record)

    def _threads(self, trackers: list[Tracker]) -> list[TrackerThread]:
        """A thread a tracker, none where it is not known what was logged already: that would be
        logged twice.
        """
        if not trackers:
            return []
        try:
            memory = Memory.of(self.run.folder)
        except (OSError, ValueError) as error:
            self.note(
                f"tracking: {self.run.folder / MEMORY} cannot be read ({error}); nothing is "
                "logged, the run goes "
                "on. Without that file all is logged anew"
            )
            return []
        for tracker in trackers:
            tracker.remembers |= memory.known.get(tracker.name, {})
        return [TrackerThread(tracker, memory, self.note) for tracker in trackers]

    def trial(self, record: TrialRecord, kind: str, at: float) -> None:
        """Something happened to a trial at `at` (seconds of the epoch).

        The libraries are imported once a trial trains or has ended: no start of a run waits for
        them.
        """
        if not self.threads or kind in ("proposed", "started"):
            return
        if kind == "epoch":
            self.heard.setdefault(record.trial, {}).setdefault(record.history[-1]["epoch"], at)
        if kind != "progress":
            self._tell(record)
        self._begin()

    def delivered(self, results: ResultsDocument) -> None:
        """The run has its model: what results.json holds."""
        self.results = results

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit))
        if stopped:
            interrupts.acknowledge()
        self._finish(Close("killed" if stopped else "failed" if kind else "finished", self.results))

    def _tell(self, record: TrialRecord) -> None:
        # The history of a record is replaced at every epoch and never changed, so a shallow copy is
        # one of a moment.
        for thread in self.threads:
            thread.tell(News(replace(record), self.heard.get(record.trial, {})))

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            for thread in self.threads:
                thread.start()

    def _finish(self, close: Close) -> None:
        """Wait for all trackers, but not without end; one that nothing has come for has nothing to
        close.
        """
        if not self.begun and not (
            close.results and any(thread.has_mail for thread in self.threads)
        ):
            return
        self._begin()
        for thread in self.threads:
            thread.end(close)
        takes_model = close.results is not None and (
            self.job.tracking.mlflow or self.job.tracking.wandb
        )
        limit = (
            STOP_SECONDS
            if close.ending == "killed"
            else FLUSH_SECONDS + (MODEL_SECONDS if takes_model else 0)
        )
        deadline = time.monotonic() + limit
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.note(
                    f"tracking {thread.tracker.name}: did not take everything within {limit:g} "
                    "seconds"
                )


def _trackers_of(job: Job, run: Run, scratch: Path) -> list[Tracker]:
    wanted, found = job.tracking, list[Tracker]()
    if wanted.tensorboard:
        from raysft.tracking.tensorboard import TensorBoard

        found.append(TensorBoard(job, run.folder, scratch))
    if wanted.mlflow:
        from raysft.tracking.mlflow import Mlflow

        found.append(Mlflow(job, run.folder, run.metric))
    if wanted.wandb:
        from raysft.tracking.wandb import Wandb

        found.append(Wandb(job, run.folder, scratch))
    return found
