"""Runs on a cluster, from outside: submitted, followed and stopped through Ray's Jobs API.

What is sent is the job file and the raysft package (250 kB, so that client and cluster never
differ); nothing is pickled between the two, and nothing else of the current folder travels.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import raysft
from raysft.cluster.address import VARIABLE, Address
from raysft.cluster.client_errors import GONE, REFUSED, explained, http_status, refusal
from raysft.cluster.messages import Message, Payload, RunSummary, decode, messages
from raysft.cluster.versions import client_environment
from raysft.errors import RaysftError, RunError, UserError, describe_error
from raysft.job import Job, dump_job

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

T = TypeVar("T")
RUN_KEY = "raysft_run"
RECONNECT_SECONDS = 2.0
GIVE_UP_SECONDS = 300.0  # without an answer, after which nobody waits for a cluster any more
# For one answer of the dashboard; Ray's client would wait for it without end.
ANSWER_SECONDS = 120.0
CONNECT_SECONDS = 10.0  # for the first one
SILENT_SECONDS = 60.0  # of a log that is followed, after which it is asked whether the run goes on
STOP_SECONDS = 180.0
# The dashboard of a head answers some seconds before the agent that starts jobs there.
READY_SECONDS = 60.0
NO_AGENT = "No available agent"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_STATUS = {
    "PENDING": "starting",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


@dataclass(frozen=True)
class ClusterRun:
    """One run that the cluster knows; `id` is that of its latest Ray job."""

    name: str
    id: str
    status: str
    started: float | None
    ended: float | None


class ClusterClient:
    """A connection to the dashboard of a cluster; raises UserError when there is none that can be
    used.
    """

    def __init__(self, address: Address) -> None:
        self.given, self.address = address, address.url
        _use_token()
        from ray.job_submission import JobSubmissionClient

        # Ray's client tells of every upload and every closed socket.
        logging.disable(logging.WARNING)
        # Ray's client has no time-out for its first question.
        self._asked(lambda: _knock(self.address))
        with _without_ray_address():
            self._client = self._asked(lambda: JobSubmissionClient(self.address))

    # --- runs -----------------------------------------------------------------------------------

    def submit(
        self, job: Job, name: str, resume: bool = False, places: Mapping[str, str] | None = None
    ) -> str:
        """Start a run; returns the id of its Ray job. places: where its files are by now, where it
        is resumed.
        """
        earlier = self.attempts(name)
        if earlier and not resume:
            raise UserError(
                f"--name {name}", "is a run of this cluster already", "give another --name"
            )
        command = f"raysft.entrypoints.train job.yaml {shlex.quote(name)}" + (
            " --resume" if resume else ""
        )
        return self._start(
            command + _set(places or {}),
            {"job.yaml": dump_job(job)},
            _job_id(name, earlier),
            _about(name),
        )

    def resume_folder(
        self, folder: str, workers: int | list[int] | None, places: Mapping[str, str]
    ) -> str:
        """Resume a run from its folder, whether this cluster knows it or not; returns the id of its
        Ray job.
        """
        name = folder.rstrip("/").rpartition("/")[2]
        given = f" --workers {shlex.quote(json.dumps(workers))}" if workers else ""
        command = (
            f"raysft.entrypoints.train {shlex.quote(folder)} {shlex.quote(name)} --resume{given}"
        )
        return self._start(
            command + _set(places), {}, _job_id(name, self.attempts(name)), _about(name)
        )

    def ask(
        self,
        command: str,
        files: dict[str, str],
        kind: str,
        lost: Callable[[str], None],
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Payload:
        """Run a module of raysft there and return the payload of its event `kind`; raises what it
        sent instead.

        Interrupted, it is stopped there too.
        """
        run_id = self._start(command, files, None, {})
        found: Payload | None = None
        seen = RunSummary()
        try:
            for line in self.follow(run_id, lost):
                if (message := decode(line)) is not None:
                    seen.add(message)
                    found = message.payload if message.kind == kind else found
                    if message.kind == "progress" and progress is not None:
                        progress(
                            message.payload["what"],
                            message.payload["done"],
                            message.payload["total"],
                        )
        except KeyboardInterrupt:
            with suppress(UserError):  # it may be the cluster that is gone
                self._asked(lambda: self._client.stop_job(run_id))
            raise
        if found is None:
            raise seen.errors[0] if seen.errors else self.failure(run_id)
        return found

    def runs(self) -> list[ClusterRun]:
        """All runs of the cluster, oldest first, each with its latest attempt."""
        latest: dict[str, ClusterRun] = {}
        for job in sorted(self._jobs(), key=lambda j: j.start_time or 0):
            if job.metadata and RUN_KEY in job.metadata:
                run = _run_of(job)
                # Out and in again: a resumed run counts as young as its last attempt.
                latest.pop(run.name, None)
                latest[run.name] = run
        return list(latest.values())

    def attempts(self, name: str) -> list[ClusterRun]:
        """A run each time that it was started or resumed, the last first."""
        jobs = [job for job in self._jobs() if job.metadata and job.metadata.get(RUN_KEY) == name]
        return [
            _run_of(job) for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)
        ]

    def run(self, name: str) -> ClusterRun:
        """One run; raises UserError when the cluster has none of that name."""
        found = self.find(name)
        if found is None:
            raise UserError(name, f"is not a run of {self.given}", "see `raysft list --address …`")
        return found

    def find(self, name: str) -> ClusterRun | None:
        """One run, None when the cluster has none of that name."""
        return next((run for run in self.runs() if run.name == name), None)

    def log(self, run: ClusterRun) -> str:
        """All that the run has written so far, events and Ray's own lines."""
        return self._asked(lambda: self._client.get_job_logs(run.id))

    def messages(self, run: ClusterRun) -> list[Message]:
        """All events of a run so far."""
        return list(messages(self.log(run)))

    def stop(self, run: ClusterRun) -> bool:
        """Ask a run to stop, and wait until it has; False when it had ended already."""
        if not self._asked(lambda: self._client.stop_job(run.id)):
            return False
        deadline = time.monotonic() + STOP_SECONDS
        while self.run(run.name).status not in ("done", "failed", "stopped"):
            if time.monotonic() > deadline:
                raise RunError(
                    run.name,
                    f"was asked to stop and has not ended within {STOP_SECONDS:g} seconds",
                    f"see `raysft status {run.name}`",
                )
            time.sleep(0.5)
        return True

    # --- following ------------------------------------------------------------------------------

    def follow(self, run_id: str, lost: Callable[[str], None]) -> Iterator[str]:
        """The lines of a run until it has ended, whatever happens to the connection meanwhile.

        `lost` is called when the connection breaks; reading goes on behind what was read.
        Raises UserError where the cluster refuses this client or does not know the run any more,
        and RunError when it has not answered for GIVE_UP_SECONDS.
        """
        taken, warned = 0, False
        heard = time.monotonic()
        while True:
            rest = ""
            skip = taken
            try:
                for chunk in _chunks(self._client, run_id):
                    warned, heard = False, time.monotonic()
                    fresh = chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    *whole, rest = (rest + fresh).split("\n")
                    for line in whole:
                        # Whole lines alone: one that a break cut in two is read again.
                        taken += len(line) + 1
                        yield line
                state = _within(ANSWER_SECONDS, lambda: self._state(run_id))
                heard = time.monotonic()
                if state in ENDED:
                    log = _within(ANSWER_SECONDS, lambda: self._client.get_job_logs(run_id))
                    yield from log[taken:].split("\n")
                    return
            # aiohttp, requests and Ray raise kinds of their own for a broken connection
            except Exception as error:
                self._refuse_lasting(run_id, error)
                if time.monotonic() - heard > GIVE_UP_SECONDS:
                    raise RunError(
                        str(self.given),
                        f"has not answered for {minutes(GIVE_UP_SECONDS)} "
                        f"({describe_error(error)})",
                        f"if the cluster is up, {run_id} goes on without this "
                        "terminal; call again once it can be reached",
                    ) from None
                if not warned:
                    lost(describe_error(error))
                warned = True
            time.sleep(RECONNECT_SECONDS)

    def _refuse_lasting(self, run_id: str, error: Exception) -> None:
        """Raise what will be the same however often it is asked again."""
        status = http_status(error)
        if status in REFUSED:
            raise refusal(self.given) from None
        if status == GONE:
            raise UserError(
                run_id,
                f"is not known any more to {self.given}",
                "was the cluster started again? Its runs "
                "are in its storage, and `raysft list` shows those that it knows",
            ) from None

    def exit_code(self, run_id: str) -> int:
        """The exit status of a run that has ended."""
        info = self._asked(lambda: self._client.get_job_info(run_id))
        # Ray has none for a driver that it killed; 130 is what a shell says of Ctrl-C.
        if info.driver_exit_code is not None:
            return info.driver_exit_code if 0 <= info.driver_exit_code < 128 else 130
        return 0 if info.status == "SUCCEEDED" else 130 if info.status == "STOPPED" else 1

    def failure(self, run_id: str) -> RunError:
        """Why a run ended that could not tell so itself."""
        info = self._asked(lambda: self._client.get_job_info(run_id))
        return RunError(
            run_id, f"its driver ended ({info.message or info.status})", "see `raysft logs`"
        )

    # --- inside ---------------------------------------------------------------------------------

    def _start(
        self, command: str, files: dict[str, str], job_id: str | None, metadata: dict[str, str]
    ) -> str:
        with tempfile.TemporaryDirectory(prefix="raysft-") as folder:
            for name, text in files.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            # The package, so that client and cluster never differ; nothing else of the folder.
            shutil.copytree(
                Path(raysft.__file__).parent,
                Path(folder, "raysft"),
                ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
            )
            # Events are flushed; what others print would else come long after them.
            variables = {"PYTHONUNBUFFERED": "1"} | client_environment()
            environment = {"working_dir": folder, "env_vars": variables}
            return self._submit_when_ready(
                lambda: self._client.submit_job(
                    entrypoint=f"python -m {command}",
                    runtime_env=environment,
                    submission_id=job_id,
                    metadata=metadata,
                )
            )

    def _submit_when_ready(self, submit: Callable[[], str]) -> str:
        """Submit a job, also to a head that has only just started; returns its id."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                return self._asked(submit)
            except UserError as error:
                is_starting = NO_AGENT in error.what
                if not is_starting or time.monotonic() > deadline:
                    raise
            time.sleep(RECONNECT_SECONDS)

    def _state(self, run_id: str) -> str:
        return str(self._client.get_job_status(run_id).value)

    def _jobs(self) -> list[JobDetails]:
        return [job for job in self._asked(self._client.list_jobs) if job.submission_id]

    def _asked(self, question: Callable[[], T]) -> T:
        """The answer of the cluster, or one line on why there is none."""
        try:
            return _within(ANSWER_SECONDS, question)
        except RaysftError:
            raise
        except Exception as error:  # requests, ConnectionError and RuntimeError, by where it broke
            raise explained(self.given, error) from None


def _job_id(name: str, earlier: Sequence[ClusterRun]) -> str:
    return f"{name}-{len(earlier)}" if earlier else name


def _about(name: str) -> dict[str, str]:
    """What a Ray job says of the run that it is."""
    return {RUN_KEY: name, "raysft": raysft.__version__}


def _set(places: Mapping[str, str]) -> str:
    return "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in places.items())


def _knock(address: str) -> None:
    """Raise what requests raises where nobody answers in time, or not as a dashboard does."""
    import requests

    requests.get(f"{address}/api/version", timeout=CONNECT_SECONDS)


def _within(seconds: float, question: Callable[[], T]) -> T:
    """An answer, in time: Ray's client waits for a dashboard that is silent without end. Raises
    TimeoutError.
    """
    answers: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def ask() -> None:
        try:
            answers.put((question(), None))
        except Exception as error:  # raised again where it is waited for
            answers.put((None, error))

    # A daemon: a question that nobody answers must not keep the process.
    threading.Thread(target=ask, name="ask", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def minutes(seconds: float) -> str:
    """A time as a person says it."""
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"


@contextmanager
def _without_ray_address() -> Iterator[None]:
    """Hide the variables that Ray's client prefers to the address that it is given."""
    hidden = {
        name: os.environ.pop(name)
        for name in (VARIABLE, "RAY_API_SERVER_ADDRESS")
        if name in os.environ
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _use_token() -> None:
    """Send the cluster's token where this person has one. Ray's clients do not unless they are told
    to.
    """
    has_one = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if has_one or (Path.home() / ".ray/auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _chunks(client: JobSubmissionClient, run_id: str) -> Iterator[str]:
    """What `tail_job_logs` gives, as a plain iterator; it ends where nothing comes for
    SILENT_SECONDS.

    A connection whose other end is gone may stay open, and say nothing, for hours.
    """
    loop = asyncio.new_event_loop()
    # Ray calls it an iterator; it is a generator, which has to be closed for its connection to be.
    stream = cast("AsyncGenerator[str, None]", client.tail_job_logs(run_id))
    try:
        while True:
            try:
                yield loop.run_until_complete(asyncio.wait_for(stream.__anext__(), SILENT_SECONDS))
            except (StopAsyncIteration, asyncio.TimeoutError):
                return
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()


def _run_of(job: JobDetails) -> ClusterRun:
    # Only jobs with both are asked for: those that raysft has submitted.
    assert job.metadata is not None
    assert job.submission_id is not None
    return ClusterRun(
        name=job.metadata[RUN_KEY],
        id=job.submission_id,
        status=_STATUS[str(job.status.value)],
        started=_seconds(job.start_time),
        ended=_seconds(job.end_time),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
