"""A Ray cluster, reached over its dashboard: runs are Ray jobs, their events are in its logs."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from raysft.backends.backend import PlannedJob, RunRow, Workers
from raysft.cluster.address import Address
from raysft.cluster.jobs import GIVE_UP_SECONDS, ClusterClient, ClusterRun, minutes
from raysft.cluster.messages import Message, RunSummary, decode, summarize
from raysft.console import Output, Watcher
from raysft.deploy.prediction import Predicted, PredictionRequest
from raysft.display.results import show_outcome
from raysft.display.status import ClusterStatus
from raysft.entrypoints.doctor import Finding
from raysft.errors import JobErrors, UserError
from raysft.job import Job, dump_job, load_job, load_text
from raysft.records.documents import ResultsDocument, TrialDocument
from raysft.records.relocation import parse_places, refuse_storage, with_places
from raysft.records.run import Run, new_name, with_workers

REFRESH_SECONDS = 1.0


class ClusterBackend:
    """Runs jobs on a cluster; its runs are what the cluster knows of them. Paths are its nodes'."""

    run_columns: tuple[str, ...] = ("run", "status", "started", "ended")

    def __init__(self, address: Address, output: Output) -> None:
        self._address, self._output = address, output

    @cached_property
    def _cluster(self) -> ClusterClient:
        # Connected when it is first needed: what is wrong with a job file or a name is said first.
        return ClusterClient(self._address)

    def _warn_of_loss(self, why: str) -> None:
        self._output.warning(
            f"connection lost ({why}); retrying for up to {minutes(GIVE_UP_SECONDS)}"
        )

    # --- running --------------------------------------------------------------------------------

    def plan(self, job_file: Path, overrides: Sequence[str], measure: bool) -> PlannedJob:
        """Plan a job on the nodes of the cluster; `measure` trains a few steps of it first."""
        job = load_job(job_file, overrides)
        command = "raysft.entrypoints.plan job.yaml" + (" --measure" if measure else "")
        files = {"job.yaml": dump_job(job)}
        told = self._cluster.ask(command, files, "planned", self._warn_of_loss)
        return PlannedJob(told["document"], told["lines"])

    def submit(
        self, job_file: Path, overrides: Sequence[str], name: str | None, detach: bool
    ) -> None:
        """Run a job on the cluster, and follow it unless it is to be left alone."""
        job = load_job(job_file, overrides)
        name = name or new_name(job)
        # Before the cluster is asked: it is also the name of a folder there.
        Run.check_name(name)
        self._show_start(name, self._cluster.submit(job, name), detach)

    def resume(
        self, run: str, workers: Workers | None, overrides: Sequence[str], detach: bool
    ) -> None:
        """Resume a run that was stopped or crashed, from its directory in the cluster's storage.

        run: its name, or its directory there, which a cluster needs that does not know the run.
        """
        places = parse_places(overrides)
        name = run.rstrip("/").rpartition("/")[2]
        attempts = self._cluster.attempts(name)
        # A name has no slash, so that what has one is a folder or a URI.
        is_folder = "/" in run
        if not attempts and not is_folder:
            self._cluster.run(name)  # says that there is none
        if attempts:
            _refuse_going_on(attempts[0])
        if is_folder:
            refuse_storage(places)
            run_id = self._cluster.resume_folder(run, workers, places)
        else:
            job = _moved(self._job_of(name, attempts), places, workers)
            run_id = self._cluster.submit(job, name, True, places)
        self._show_start(name, run_id, detach)

    def _job_of(self, name: str, attempts: Sequence[ClusterRun]) -> Job:
        """The job that a run has told; an attempt that found no data, say, has told none."""
        for attempt in attempts:
            job = summarize(self._cluster.messages(attempt)).job
            if job is not None:
                return load_text(job, name)
        raise UserError(
            name,
            "ended before it began to train, so there is nothing to resume",
            "submit it again under another name, or give its directory if it began on another "
            "cluster",
        )

    def _show_start(self, name: str, run_id: str, detach: bool) -> None:
        if detach:
            self._output.line(name)
            return
        self._output.line(
            f"run      {name} on the cluster at {self._cluster.address}; it keeps running without "
            "this terminal"
        )
        self._follow(name, run_id)

    def _follow(self, name: str, run_id: str) -> None:
        """Show a run as it goes on, until it has ended; raises what it ended with."""
        seen = RunSummary()
        try:
            with Watcher(self._output, seen.metric) as watcher:
                watcher.starting()
                for line in self._cluster.follow(run_id, self._warn_of_loss):
                    message = decode(line)
                    if message is not None:
                        seen.add(message)
                        _show_event(message, seen, watcher)
        except KeyboardInterrupt:
            self._output.warning(
                f"no longer following {name}, which keeps running: `raysft logs {name} --follow` "
                f"shows the rest, `raysft stop {name}` stops it"
            )
            raise
        self._show_end(name, run_id, seen)

    def _show_end(self, name: str, run_id: str, seen: RunSummary) -> None:
        if seen.errors:
            raise seen.errors[0] if len(seen.errors) == 1 else JobErrors(seen.errors)  # type: ignore[arg-type]
        if seen.results is not None:
            run = f"{name} --address {self._cluster.address}"
            show_outcome(seen.results, seen.folder, self._output, run)
            return
        if seen.status == "stopped" or self._cluster.exit_code(run_id) == 130:
            self._output.warning(f"stopped; `raysft resume {name}` resumes it")
            raise KeyboardInterrupt
        raise self._cluster.failure(run_id)

    # --- looking --------------------------------------------------------------------------------

    def runs(self, storage: str) -> list[RunRow]:
        """The runs that the cluster knows, oldest first, wherever their directories are."""
        return [
            {
                "run": run.name,
                "status": run.status,
                "started": _clock(run.started),
                "ended": _clock(run.ended),
            }
            for run in self._cluster.runs()
        ]

    def status(self, run: str) -> ClusterStatus:
        """How far a run is, by its events."""
        found = self._cluster.run(run)
        return _status_document(found, summarize(self._cluster.messages(found)))

    def watch(self, run: str) -> Iterator[ClusterStatus]:
        """What the events of a run come to, every second until it has ended."""
        found = self._cluster.run(run)
        follower = _Follower(self._cluster, found.id, self._warn_of_loss)
        follower.start()
        seen = follower.seen
        # Events are read by a thread: they may be silent for a minute, and the ages shown go on.
        while not follower.done.wait(REFRESH_SECONDS):
            with follower.lock:
                document = _status_document(found, seen)
            begun = "running" if seen.plan else "starting"
            document["status"] = seen.status or begun
            yield document
        if follower.error is not None:
            raise follower.error
        yield _status_document(self._cluster.run(run), seen)

    def results(self, run: str) -> ResultsDocument:
        """The results.json of a run, as it has told them."""
        found = self._cluster.run(run)
        results = summarize(self._cluster.messages(found)).results
        if results is None:
            raise UserError(
                run, f"has no results: its status is {found.status}", f"see `raysft status {run}`"
            )
        return results

    def logs(self, run: str, follow: bool) -> None:
        """What a run has written; `follow` shows the rest as it comes, and ends as the run does."""
        found = self._cluster.run(run)
        if follow:
            self._follow(run, found.id)
            return
        for line in self._cluster.log(found).rstrip("\n").split("\n"):
            self._output.line(_readable_line(line))

    # --- the rest -------------------------------------------------------------------------------

    def stop(self, run: str) -> None:
        """Stop a run; what it has trained stays, and it can be resumed."""
        if self._cluster.stop(self._cluster.run(run)):
            self._output.line(f"stopped {run}; `raysft resume {run}` resumes it")
        else:
            self._output.line(f"{run} has already ended: {self._cluster.run(run).status}")

    def predict(self, request: PredictionRequest, show_progress: bool) -> Predicted:
        """Predict a whole folder or data set, which the nodes reach."""
        with Watcher(self._output, "", shown=show_progress) as watcher:
            told = self._cluster.ask(
                "raysft.entrypoints.predict predict.json",
                {"predict.json": json.dumps(asdict(request))},
                "predicted",
                self._warn_of_loss,
                watcher.progress,
            )
        return Predicted(**told)

    def doctor(self, storage: str) -> list[Finding]:
        """Examine the nodes of the cluster."""
        # It becomes part of a shell's command line there.
        command = f"raysft.entrypoints.doctor {shlex.quote(storage)}"
        told = self._cluster.ask(command, {}, "doctor", self._warn_of_loss)
        return [Finding(**finding) for finding in told["findings"]]


def _refuse_going_on(latest: ClusterRun) -> None:
    """Raise UserError for a run that is not to be resumed."""
    name = latest.name
    if latest.status in ("starting", "running"):
        raise UserError(
            name, f"is {latest.status}", f"follow it with `raysft logs {name} --follow`"
        )
    if latest.status == "done":
        raise UserError(name, "is done", f"see `raysft results {name}`")


def _moved(job: Job, places: dict[str, str], workers: Workers | None) -> Job:
    """A job with other workers and storage.

    Storage is taken out of the places, of which the rest is looked up on the cluster.
    """
    storage = {key: places.pop(key) for key in ("storage",) if key in places}
    return with_places(with_workers(job, workers), storage, "--set")


def _show_event(message: Message, seen: RunSummary, watcher: Watcher) -> None:
    payload = message.payload
    if message.kind == "plan":
        watcher.metric = seen.metric
        for line in seen.plan:
            watcher.note(line)
    elif message.kind == "note":
        watcher.note(payload["text"])
    elif message.kind == "progress":
        watcher.progress(payload["what"], payload["done"], payload["total"])
    elif message.kind == "epochs":
        watcher.epochs(payload["done"], payload["total"], [])
    elif message.kind == "trial":
        record = seen.trials[payload["record"]["trial"]]
        watcher.trial_ended(record, payload["ended"], payload["total"])


def _status_document(run: ClusterRun, seen: RunSummary) -> ClusterStatus:
    """How far a run is by its events, in the form of a run directory's status."""
    trials: list[TrialDocument] = []
    for record in seen.trials.values():
        trial = record.document(seen.metric)
        trial.pop("trace", None)  # for those who look into the run, not for a table
        trials.append(trial)
    done, total = seen.epochs
    return {
        "run": run.name,
        "status": run.status,
        # Ray writes when a job was submitted from the first on.
        "started": _clock(run.started) or "",
        "ended": _clock(run.ended),
        "folder": seen.folder,
        "metric": seen.metric,
        "epochs": {"done": done, "total": total},
        "progress": seen.progress,
        "trials": trials,
        "errors": [str(error) for error in seen.errors],
    }


class _Follower(threading.Thread):
    """Reads the events of a run as they come; `lock` guards what is `seen`."""

    def __init__(self, cluster: ClusterClient, run_id: str, lost: Callable[[str], None]) -> None:
        super().__init__(name="follow", daemon=True)
        self.seen, self.lock = RunSummary(), threading.Lock()
        self.done = threading.Event()
        self.error: Exception | None = None
        self._cluster, self._run_id, self._lost = cluster, run_id, lost

    def run(self) -> None:
        """Read until the run has ended."""
        try:
            for line in self._cluster.follow(self._run_id, self._lost):
                message = decode(line)
                if message is not None:
                    with self.lock:
                        self.seen.add(message)
        except Exception as error:  # raised again where it is shown
            self.error = error
        finally:
            self.done.set()


def _readable_line(line: str) -> str:
    """A line of a log as a person reads it: an event in words, anything else as it is."""
    message = decode(line)
    if message is None:
        return line
    words = [
        f"{key}={value}"
        for key, value in message.payload.items()
        if not isinstance(value, (dict, list))
    ]
    return " ".join(["raysft:", message.kind, *words])


def _clock(seconds: float | None) -> str | None:
    if not seconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
