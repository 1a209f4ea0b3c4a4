"""What a run on a cluster tells the person who submitted it: one line of JSON an event, in the log
of its Ray job.

The log stays on the head for as long as the cluster does, so a follower that was cut off reads on
from where it was, and status and results are there without reaching into the run's storage.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raysft.errors import (
    DataError,
    JobError,
    ModelError,
    RaysftError,
    ResourceError,
    RunError,
    UserError,
)
from raysft.records.documents import ProgressDocument, ResultsDocument
from raysft.records.trial import TrialRecord

# the record separator: no log line of anyone else begins with it. str.splitlines splits there!
MARK = "\x1eraysft "
EPOCHS_EVERY_S = 1.0
# About a kilobyte each, and the log is read as a whole by whoever asks for the status.
STATUS_EVERY_S = 5.0
_ERRORS = {
    kind.__name__: kind
    for kind in (UserError, JobError, DataError, ModelError, ResourceError, RunError)
}


# What an event says, by keys that its kind has; whoever reads one knows which those are.
Payload = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One event: plan, note, progress, epochs, standing, trial, results, error or end.

    planned and doctor answer a question.
    """

    kind: str
    payload: Payload


def encode(kind: str, payload: Mapping[str, object]) -> str:
    """The line of an event."""
    return MARK + json.dumps({"kind": kind, "payload": payload}, default=str)


def decode(line: str) -> Message | None:
    """The event of a line, None for a line of anyone else."""
    if not line.startswith(MARK):
        return None
    try:
        tree = json.loads(line[len(MARK) :])
        return Message(tree["kind"], tree["payload"])
    except (ValueError, KeyError):
        return None


def messages(log: str) -> Iterator[Message]:
    """All events of a log."""
    return (message for line in log.split("\n") if (message := decode(line)) is not None)


class Reporter:
    """A listener that writes events to a stream; the threads of a run share it."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._lock = write, threading.Lock()
        self._last_epochs = self._last_status = 0.0
        self._sent: dict[str, tuple[str, int, int]] = {}
        self._doing: list[str] = []

    def tell(self, kind: str, **payload: object) -> None:
        """Write an event."""
        # Two threads' lines would be written into one another.
        with self._lock:
            self._write(encode(kind, payload) + "\n")

    def note(self, text: str) -> None:
        """Send one line of news."""
        self.tell("note", text=text)

    def progress(self, what: str, done: int, total: int) -> None:
        """Send rows imported or bytes downloaded so far."""
        self.tell("progress", what=what, done=done, total=total)

    def epochs(self, done: float, total: int, records: Sequence[TrialRecord]) -> None:
        """Send the epochs trained so far, at most once in `EPOCHS_EVERY_S` seconds."""
        if done == total or time.monotonic() - self._last_epochs >= EPOCHS_EVERY_S:
            self._last_epochs = time.monotonic()
            self.tell("epochs", done=done, total=total)

    def trial_ended(self, record: TrialRecord, ended: int, total: int) -> None:
        """Send a trial that has ended."""
        self.tell("trial", record=asdict(record), ended=ended, total=total)

    def status(self, document: ProgressDocument, records: Sequence[TrialRecord]) -> None:
        """Where the run stands, and of its trials what is new: those that have begun, the epochs
        they have trained.

        Sent now and then, and when a team begins something else.
        """
        doing = [team["doing"] for team in document["teams"]]
        if doing == self._doing and time.monotonic() - self._last_status < STATUS_EVERY_S:
            return
        self._doing, self._last_status = doing, time.monotonic()
        trials = []
        for record in records:
            sent = self._sent.get(record.trial, ("pending", 0, 0))
            now = record.status, len(record.history), len(record.came_from)
            if now != sent:
                self._sent[record.trial] = now
                # Of a trial that has taken other weights over the history is another one.
                known = sent[1] if sent[2] == len(record.came_from) else 0
                about = {
                    key: value
                    for key, value in vars(record).items()
                    if key not in ("trace", "history")
                }
                # What is new alone: whole histories would make the log grow with their square.
                trials.append(about | {"history": record.history[known:]})
        self.tell("standing", progress=document, trials=trials)

    def error(self, error: RaysftError) -> None:
        """What ended the run, to be raised again where it is followed."""
        self.tell(
            "error", problems=[[type(p).__name__, p.where, p.what, p.todo] for p in error.problems]
        )


@dataclass
class RunSummary:
    """What the events of a run come to."""

    plan: list[str] = field(default_factory=list)
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    results: ResultsDocument | None = None
    errors: list[RaysftError] = field(default_factory=list)
    epochs: tuple[float, int] = (0, 0)
    folder: str = ""
    job: str | None = None
    metric: str = "val_accuracy"
    status: str | None = None
    progress: ProgressDocument | None = None

    def add(self, message: Message) -> None:
        """Add one event."""
        payload = message.payload
        if message.kind == "plan":
            self.plan, self.folder, self.metric = (
                payload["lines"],
                payload["folder"],
                payload["metric"],
            )
            self.job = payload["job"]
        elif message.kind == "trial":
            self.trials[payload["record"]["trial"]] = TrialRecord(**payload["record"])
        elif message.kind == "epochs":
            self.epochs = payload["done"], payload["total"]
        elif message.kind == "standing":
            self.progress = payload["progress"]
            for changed in payload["trials"]:
                known = self.trials.get(changed["trial"])
                self.trials[changed["trial"]] = _changed(known, changed)
        elif message.kind == "results":
            self.results = payload["results"]
        elif message.kind == "error":
            self.errors = [
                # A kind that this client does not know may come of another version.
                _ERRORS.get(name, RunError)(*parts)
                for name, *parts in payload["problems"]
            ]
        elif message.kind == "end":
            self.status = payload["status"]


def _changed(known: TrialRecord | None, changed: dict[str, Any]) -> TrialRecord:
    """A trial with what is new of it."""
    record = TrialRecord(**changed)
    if known is None:
        return record
    record.trace = known.trace
    # A trial that has taken other weights over has another history, and all of it came.
    if len(known.came_from) == len(record.came_from):
        before = len(known.history)
        # The event of the trial's end has the whole history, and may have come before.
        new = [epoch for epoch in record.history if epoch["epoch"] > before]
        record.history = [*known.history, *new]
    return record


def summarize(log: Iterable[Message]) -> RunSummary:
    """What a whole log comes to."""
    seen = RunSummary()
    for message in log:
        seen.add(message)
    return seen
