"""What the commands do that work against a cluster: submit, follow, list, look, stop, resume."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raysft.cluster.address import Address
from raysft.cluster.jobs import GIVE_UP_SECONDS, ClusterClient, ClusterRun, minutes
from raysft.cluster.messages import Message, RunSummary, decode, summarize
from raysft.console import Output, Watcher
from raysft.display.results import show_outcome
from raysft.errors import JobErrors, UserError
from raysft.job import Job, dump_job, load_job, load_text
from raysft.records.relocation import places_of, refuse_storage, with_places
from raysft.records.run import Run, new_name, with_workers

REFRESH_SECONDS = 1.0


def submit_to(
    address: Address,
    job_file: Path,
    overrides: Sequence[str],
    name: str | None,
    detach: bool,
    output: Output,
) -> None:
    """Run a job on a cluster, and follow it unless told not to."""
    job = load_job(job_file, overrides)
    name = name or new_name(job)
    Run.check_name(name)
    cluster = ClusterClient(address)
    run_id = cluster.submit(job, name)
    _go(cluster, name, run_id, detach, output)


def resume_on(
    address: Address,
    name: str,
    workers: int | list[int] | None,
    overrides: Sequence[str],
    detach: bool,
    output: Output,
) -> None:
    """Resume a run that stopped or failed, from its directory in the cluster's storage.

    name: of the run, or its directory there, which a cluster needs that does not know the run.
    overrides: where its files are by now.
    """
    places = places_of(overrides)
    cluster = ClusterClient(address)
    folder, name = name, name.rstrip("/").rpartition("/")[2]
    attempts = cluster.attempts(name)
    if not attempts and "/" not in folder:
        cluster.run(name)  # says that there is none
    if attempts and attempts[0].status in ("starting", "running"):
        raise UserError(
            name, f"is {attempts[0].status}", f"follow it with `raysft logs {name} --follow`"
        )
    if attempts and attempts[0].status == "done":
        raise UserError(name, "is done", f"see `raysft results {name}`")
    if "/" in folder:
        refuse_storage(places)
        run_id = cluster.resume_folder(folder, workers, places)
    else:
        run_id = cluster.submit(
            _moved(_job_of(cluster, name, attempts), places, workers), name, True, places
        )
    _go(cluster, name, run_id, detach, output)


def _job_of(cluster: ClusterClient, name: str, attempts: Sequence[ClusterRun]) -> Job:
    """The job that a run has told; an attempt that found no data, say, has told none."""
    for attempt in attempts:
        if (job := summarize(cluster.messages(attempt)).job) is not None:
            return load_text(job, name)
    raise UserError(
        name,
        "had not begun, there is nothing to resume",
        "submit it again under another name, or give "
        "its directory, where it had begun on another cluster",
    )


def _moved(job: Job, places: dict[str, str], workers: int | list[int] | None) -> Job:
    """A job with other workers and storage; the latter is taken out of the places that are left to
    say there.
    """
    storage = {key: places.pop(key) for key in ("storage",) if key in places}
    return with_places(with_workers(job, workers), storage, "--set")


def _go(cluster: ClusterClient, name: str, run_id: str, detach: bool, output: Output) -> None:
    if detach:
        output.line(name)
        return
    output.line(
        f"run      {name} on the cluster at {cluster.address}; it goes on without this terminal"
    )
    follow(cluster, name, run_id, output)


def follow(cluster: ClusterClient, name: str, run_id: str, output: Output) -> None:
    """Show a run as it goes on, until it has ended; raises what it ended with."""
    seen = RunSummary()
    try:
        with Watcher(output, "val_accuracy") as watcher:
            watcher.starting()
            for line in cluster.follow(run_id, losses(output)):
                if (message := decode(line)) is not None:
                    seen.add(message)
                    _show(message, seen, watcher)
    except KeyboardInterrupt:
        output.warning(
            f"no longer following {name}, which goes on: `raysft logs {name} --follow` shows the "
            "rest, "
            f"`raysft stop {name}` ends it"
        )
        raise
    _end(cluster, name, run_id, seen, output)


def losses(output: Output) -> Callable[[str], None]:
    """What says that a connection broke."""
    return lambda why: output.warning(
        f"connection lost ({why}); trying again for up to {minutes(GIVE_UP_SECONDS)}"
    )


def _show(message: Message, seen: RunSummary, watcher: Watcher) -> None:
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
        watcher.trial_ended(
            seen.trials[payload["record"]["trial"]], payload["ended"], payload["total"]
        )


def _end(cluster: ClusterClient, name: str, run_id: str, seen: RunSummary, output: Output) -> None:
    if seen.errors:
        raise seen.errors[0] if len(seen.errors) == 1 else JobErrors(seen.errors)  # type: ignore[arg-type]
    if seen.results is not None:
        folder = seen.folder
        show_outcome(seen.results, folder, output, f"{name} --address {cluster.address}")
        return
    if seen.status == "stopped" or cluster.exit_code(run_id) == 130:
        output.warning(f"stopped: `raysft resume {name}` takes it up again")
        raise KeyboardInterrupt
    raise cluster.failure(run_id)


# --- looking -----------------------------------------------------------------------------------


def run_rows(address: Address) -> list[dict[str, Any]]:
    """The runs of a cluster, oldest first."""
    return [
        {
            "run": run.name,
            "status": run.status,
            "started": _clock(run.started),
            "ended": _clock(run.ended),
        }
        for run in ClusterClient(address).runs()
    ]


def run_status(address: Address, name: str) -> dict[str, Any]:
    """How far a run of a cluster is, with its trials."""
    cluster = ClusterClient(address)
    run = cluster.run(name)
    return status_document(run, summarize(cluster.messages(run)))


def status_document(run: ClusterRun, seen: RunSummary) -> dict[str, Any]:
    """How far a run is by its events, in the form of a run directory's status."""
    trials = [
        record.row(seen.metric) | {"history": record.history} for record in seen.trials.values()
    ]
    done, total = seen.epochs
    return {
        "run": run.name,
        "status": run.status,
        "started": _clock(run.started),
        "ended": _clock(run.ended),
        "folder": seen.folder,
        "metric": seen.metric,
        "epochs": {"done": done, "total": total},
        "progress": seen.progress,
        "trials": trials,
        "errors": [str(error) for error in seen.errors],
    }


def plan_on(
    address: Address, job_file: Path, overrides: Sequence[str], timed: bool, output: Output
) -> dict[str, Any]:
    """What a job would run on a cluster: its plan as a document and as lines."""
    job = load_job(job_file, overrides)
    command = "raysft.entrypoints.plan job.yaml" + (" --measure" if timed else "")
    return ClusterClient(address).ask(
        command, {"job.yaml": dump_job(job)}, "planned", losses(output)
    )


def examine(address: Address, storage: str, output: Output) -> list[dict[str, Any]]:
    """What the doctor finds on a cluster."""
    command = f"raysft.entrypoints.doctor {shlex.quote(storage)}"
    return ClusterClient(address).ask(command, {}, "doctor", losses(output))["findings"]


def predict_on(
    address: Address,
    model: str,
    source: str,
    out: str,
    split: str | None,
    shares: bool,
    trust_code: bool,
    shown: bool,
    output: Output,
) -> Any:
    """Predict a whole folder or data set on a cluster; all paths are those of its nodes. Returns a
    `Predicted`.
    """
    from raysft.deploy.bulk import Predicted

    request = {
        "model": model,
        "source": source,
        "out": out,
        "split": split,
        "probabilities": shares,
        "trust_code": trust_code,
    }
    with Watcher(output, "", shown=shown) as watcher:
        return Predicted(
            **ClusterClient(address).ask(
                "raysft.entrypoints.predict predict.json",
                {"predict.json": json.dumps(request)},
                "predicted",
                losses(output),
                watcher.progress,
            )
        )


def run_results(address: Address, name: str) -> dict[str, Any]:
    """The results.json of a run of a cluster; raises UserError while there is none."""
    cluster = ClusterClient(address)
    run = cluster.run(name)
    results = summarize(cluster.messages(run)).results
    if results is None:
        raise UserError(
            name, f"has no results: its status is {run.status}", f"see `raysft status {name}`"
        )
    return results


def show_logs(address: Address, name: str, following: bool, output: Output) -> None:
    """What a run of a cluster has written; `following` shows the rest as it comes, and ends as the
    run does.
    """
    cluster = ClusterClient(address)
    run = cluster.run(name)
    if following:
        follow(cluster, name, run.id, output)
        return
    for line in cluster.log(run).rstrip("\n").split("\n"):
        output.line(_told(line))


def stop_run(address: Address, name: str, output: Output) -> None:
    """Stop a run of a cluster; what it has trained stays, and it can be resumed."""
    cluster = ClusterClient(address)
    run = cluster.run(name)
    if cluster.stop(run):
        output.line(f"stopped {name}: `raysft resume {name}` takes it up again")
    else:
        output.line(f"{name} had ended already: {cluster.run(name).status}")


def _told(line: str) -> str:
    """A line of a log as a person reads it: an event in words, anything else as it is."""
    message = decode(line)
    if message is None:
        return line
    words = " ".join(
        f"{key}={value}"
        for key, value in message.payload.items()
        if not isinstance(value, (dict, list))
    )
    return f"raysft: {message.kind} {words}".rstrip()


def _clock(seconds: float | None) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds)) if seconds else None


def on_cluster(address: Address, name: str, output: Output) -> Iterator[dict[str, Any]]:
    """What the events of a run of a cluster come to, every second until it has ended.

    Raises UserError, and RunError where the cluster does not answer any more.
    """
    cluster = ClusterClient(address)
    run = cluster.run(name)
    follower = _Follower(cluster, run.id, seen := RunSummary(), losses(output))
    follower.start()
    while not follower.done.wait(REFRESH_SECONDS):
        with follower.lock:
            document = status_document(run, seen)
        yield document | {"status": seen.status or ("running" if seen.plan else "starting")}
    if follower.error is not None:
        raise follower.error
    yield status_document(cluster.run(name), seen)


class _Follower(threading.Thread):
    """Reads the events of a run as they come."""

    def __init__(self, cluster: Any, run_id: str, seen: Any, lost: Callable[[str], None]) -> None:
        super().__init__(name="follow", daemon=True)
        self.cluster, self.run_id, self.seen, self.lost = cluster, run_id, seen, lost
        self.lock, self.done = threading.Lock(), threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for line in self.cluster.follow(self.run_id, self.lost):
                if (message := decode(line)) is not None:
                    with self.lock:
                        self.seen.add(message)
        except Exception as error:  # raised again where it is shown
            self.error = error
        finally:
            self.done.set()
