"""Runs on a cluster, from outside: submitted, followed and stopped through Ray's Jobs API.

What is sent is the job file and the raysft package (250 kB, so that client and cluster never differ); nothing is
pickled between the two, and nothing else of the current folder travels.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raysft
from raysft.cluster.wire import Message, Seen, decode, messages
from raysft.errors import RaysftError, RunError, UserError, in_words
from raysft.job import Job, dump_job

RUN_KEY = "raysft_run"
RECONNECT_SECONDS = 2.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_STATUS = {"PENDING": "starting", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}


@dataclass(frozen=True)
class ClusterRun:
    """One run that the cluster knows; `id` is that of its latest Ray job."""

    name: str
    id: str
    status: str
    started: float | None
    ended: float | None


class Cluster:
    """A connection to the dashboard of a cluster; raises UserError when there is none that can be used."""

    def __init__(self, address: str) -> None:
        self.address = address if "://" in address else f"http://{address}"
        if not self.address.startswith(("http://", "https://")):
            raise UserError(address, "is not the address of a dashboard",
                            "give http://HOST:8265; `raysft connect cluster/gpu.yaml` opens a tunnel and prints one")
        _use_token()
        from ray.job_submission import JobSubmissionClient

        logging.disable(logging.WARNING)  # Ray's client tells of every upload and every closed socket

        self._client = self._asked(lambda: JobSubmissionClient(self.address))

    # --- runs ---

    def submit(self, job: Job, name: str, resume: bool = False) -> str:
        """Start a run; returns the id of its Ray job."""
        earlier = [run for run in self._jobs() if run.metadata and run.metadata.get(RUN_KEY) == name]
        if earlier and not resume:
            raise UserError(f"--name {name}", "is a run of this cluster already", "give another --name")
        command = f"raysft.cluster.entry job.yaml {shlex.quote(name)}" + (" --resume" if resume else "")
        return self._start(command, {"job.yaml": dump_job(job)}, f"{name}-{len(earlier)}" if earlier else name,
                           {RUN_KEY: name, "raysft": raysft.__version__})

    def ask(self, command: str, files: dict[str, str], kind: str,
            progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
        """Run a module of raysft there and return the payload of its event `kind`; raises what it told instead.

        Interrupted, it is stopped there too.
        """
        run_id = self._start(command, files, None, {})
        found: dict[str, Any] | None = None
        seen = Seen()
        try:
            for line in self.follow(run_id, lambda why: None):
                if (message := decode(line)) is not None:
                    seen.take(message)
                    found = message.payload if message.kind == kind else found
                    if message.kind == "progress" and progress is not None:
                        progress(message.payload["what"], message.payload["done"], message.payload["total"])
        except KeyboardInterrupt:
            self._client.stop_job(run_id)
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
                latest.pop(run.name, None)
                latest[run.name] = run
        return list(latest.values())

    def run(self, name: str) -> ClusterRun:
        """One run; raises UserError when the cluster has none of that name."""
        found = [run for run in self.runs() if run.name == name]
        if not found:
            raise UserError(name, f"is not a run of {self.address}", "see `raysft list --address …`")
        return found[0]

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
        while self.run(run.name).status not in ("done", "failed", "stopped"):
            time.sleep(0.5)
        return True

    # --- following ---

    def follow(self, run_id: str, lost: Callable[[str], None]) -> Iterator[str]:
        """The lines of a run until it has ended, whatever happens to the connection meanwhile.

        `lost` is told when the connection broke; reading goes on after the last line that was read.
        """
        taken, told = 0, False
        while True:
            rest = ""
            skip = taken
            try:
                for chunk in _chunks(self._client, run_id):
                    told = False
                    fresh = chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    *whole, rest = (rest + fresh).split("\n")
                    for line in whole:
                        taken += len(line) + 1
                        yield line
                if self._state(run_id) in ENDED:
                    yield from self._client.get_job_logs(run_id)[taken:].split("\n")
                    return
            except Exception as error:  # aiohttp, requests and Ray raise kinds of their own for a broken connection
                if not told:
                    lost(in_words(error))
                told = True
            time.sleep(RECONNECT_SECONDS)

    def exit_code(self, run_id: str) -> int:
        """The exit status of a run that has ended."""
        info = self._asked(lambda: self._client.get_job_info(run_id))
        if info.driver_exit_code is not None:
            return info.driver_exit_code if 0 <= info.driver_exit_code < 128 else 130
        return 0 if info.status == "SUCCEEDED" else 130 if info.status == "STOPPED" else 1

    def failure(self, run_id: str) -> RunError:
        """Why a run ended that could not tell so itself."""
        info = self._asked(lambda: self._client.get_job_info(run_id))
        return RunError(run_id, f"its driver ended ({info.message or info.status})", "see `raysft logs`")

    # --- inside ---

    def _start(self, command: str, files: dict[str, str], job_id: str | None, metadata: dict[str, str]) -> str:
        with tempfile.TemporaryDirectory(prefix="raysft-") as folder:
            for name, text in files.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            shutil.copytree(Path(raysft.__file__).parent, Path(folder, "raysft"),
                            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            environment = {"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1"}}
            return self._asked(lambda: self._client.submit_job(
                entrypoint=f"python -m {command}", runtime_env=environment, submission_id=job_id, metadata=metadata))

    def _state(self, run_id: str) -> str:
        return str(self._client.get_job_status(run_id).value)

    def _jobs(self) -> list[Any]:
        return [job for job in self._asked(self._client.list_jobs) if job.submission_id]

    def _asked(self, question: Callable[[], Any]) -> Any:
        """The answer of the cluster, or one line on why there is none."""
        try:
            return question()
        except RaysftError:
            raise
        except Exception as error:  # requests, ConnectionError and RuntimeError, by where it broke
            raise _explained(self.address, error) from None


def _explained(address: str, error: Exception) -> UserError:
    text = str(error)
    if "401" in text or "403" in text or "uthentication" in text or "Unauthorized" in text:
        return UserError(address, "refuses this client: the cluster's token is missing here, or another one",
                         "copy ~/.ray/auth_token from the head to the same place here")
    if isinstance(error, ConnectionError) or "onnect" in text:
        return UserError(address, "cannot be reached", "is the cluster up, and the tunnel (`raysft connect`) open?")
    return UserError(address, f"did not do what it was asked ({in_words(error)})")


def _use_token() -> None:
    """Send the cluster's token where this person has one. Ray's clients do not unless they are told to."""
    has_one = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if has_one or (Path.home() / ".ray/auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _chunks(client: Any, run_id: str) -> Iterator[str]:
    """What `tail_job_logs` gives, as a plain iterator."""
    loop = asyncio.new_event_loop()
    try:
        stream = client.tail_job_logs(run_id)
        while True:
            try:
                yield loop.run_until_complete(stream.__anext__())
            except StopAsyncIteration:
                return
    finally:
        loop.close()


def _run_of(job: Any) -> ClusterRun:
    return ClusterRun(job.metadata[RUN_KEY], job.submission_id, _STATUS[str(job.status.value)],
                      job.start_time / 1000 if job.start_time else None, job.end_time / 1000 if job.end_time else None)
