"""The run directory: job.yaml, run.json, trials/ID/trial.json, model/, results.json; each file
whole or not at all.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from raysft import interrupts
from raysft.errors import StorageFull, UserError
from raysft.job import Job, dump_job, load_text
from raysft.job.load import validate_job
from raysft.job.spec import sort_key
from raysft.records.owner import SILENT_SECONDS, Owner, beating, heard_ago
from raysft.records.relocation import find_files, weights_sha256, with_places
from raysft.records.revision import git_revision
from raysft.storage import (
    StoragePath,
    is_disk_full,
    make_folder,
    overwrite_json,
    remove_file,
    remove_folder,
    storage_path,
    write_json,
    write_text,
)
from raysft.storage import read_json as read_checked

JOB, INFO, TRIAL, RESULTS = "job.yaml", "run.json", "trial.json", "results.json"
PROGRESS = "progress.json"  # where a run stood a moment ago, for those who watch it
# what Ray and libraries print; beside a run on an object store it stays on the machine
LOG = "raysft.log"
CLOCK = "%Y-%m-%dT%H:%M:%S%z"  # of times in run.json
GOING_ON = ("pending", "running", "paused")  # the status of a trial that may still train
PACKAGES = ("raysft", "ray", "torch", "torchvision", "numpy", "pyarrow")


@dataclass
class TrialRecord:
    """One trial, as trial.json and the leaderboard show it."""

    trial: str
    config: dict[str, Any]
    status: str = "pending"
    history: list[dict[str, Any]] = field(default_factory=list)
    started: float | None = None
    seconds: float = 0.0
    error: str | None = None
    trace: str | None = None
    host: str | None = None
    """Address of the node that rank 0 of its team trained on last."""

    @property
    def ended(self) -> bool:
        """Whether the trial is over, however it ended."""
        return self.status not in GOING_ON

    def add(self, epoch: dict[str, Any], before: Sequence[dict[str, Any]] = ()) -> None:
        """Take in an epoch in place of any later ones; of those `before` it the ones that are not
        known yet.
        """
        known = (
            {m["epoch"]: m for m in before}
            | {m["epoch"]: m for m in self.history}
            | {epoch["epoch"]: epoch}
        )
        self.history = [known[number] for number in sorted(known) if number <= epoch["epoch"]]

    def best(self, metric: str) -> dict[str, Any] | None:
        """The epoch with the best metric."""
        if not self.history:
            return None
        return min(self.history, key=lambda m: sort_key(m, metric))

    def row(self, metric: str) -> dict[str, Any]:
        """The trial's entry in results.json."""
        best = self.best(metric) or dict.fromkeys(("val_accuracy", "val_loss", metric))
        return {
            "trial": self.trial,
            "status": self.status,
            "config": self.config,
            "epochs": len(self.history),
            **validation_metrics(best),
            "seconds": round(self.seconds, 2),
            "host": self.host,
            "error": self.error,
        }


def validation_metrics(epoch: dict[str, Any]) -> dict[str, Any]:
    """Of all that is known of an epoch its metrics on the validation split."""
    return {key: value for key, value in epoch.items() if key.startswith("val_")}


class Run:
    """A run directory that is being written."""

    def __init__(self, folder: StoragePath, job: Job) -> None:
        self.folder, self.job = folder, job
        self.log = (
            folder / LOG
            if isinstance(folder, Path)
            else Path(tempfile.gettempdir()) / f"{folder.name}.log"
        )
        self.metric = job.search.metric if job.search else "val_accuracy"
        self.known: dict[str, TrialRecord] = {}
        self.info: dict[str, Any] = {
            "run": folder.name,
            "status": "starting",
            "started": _now(),
            "ended": None,
            "versions": versions(),
            "git": git_revision(),
            "metric": self.metric,
            "host": platform.node(),
            "owner": Owner.this().document(),
            "folder": str(folder),
            "cwd": os.getcwd(),
        }
        self.is_new = True
        self.notes: tuple[str, ...] = ()
        """What a person has to know of where its files were found."""

    @staticmethod
    def check_name(name: str) -> None:
        """Raise UserError unless `name` can be that of a folder."""
        if Path(name).name != name or name in (".", ".."):
            raise UserError(f"--name {name}", "is not a plain name", "give a name without slashes")

    @classmethod
    def create(cls, job: Job, name: str | None) -> Run:
        """A new directory below the job's storage; raises UserError when it is there already or
        cannot be made.
        """
        name = name or new_name(job)
        cls.check_name(name)
        storage = storage_path(job.storage)
        folder = storage / name
        try:
            make_folder(folder)
        except FileExistsError:
            raise UserError(str(folder), "is there already", "give another --name") from None
        except OSError as error:
            raise _unwritable(storage, error) from None
        try:
            run = cls(folder, job)
            text = dump_job(job)
            write_text(folder / JOB, text)
            run.save(
                job=hashlib.sha256(text.encode()).hexdigest(), weights_sha256=weights_sha256(job)
            )
        except BaseException as error:
            remove_folder(folder)
            if isinstance(error, OSError):
                raise _unwritable(storage, error) from None
            raise
        return run

    @classmethod
    def reopen(
        cls,
        folder: StoragePath,
        workers: int | list[int] | None = None,
        places: Mapping[str, str] | None = None,
    ) -> Run:
        """A run that has stopped or failed, with what its trials had come to; raises UserError for
        any other.

        workers: resources.workers from now on, where they are to be others. places: where its data
        and its weights are by now, as `places_of` gives them; what is not said and not where it was
        is looked for beside the run.
        """
        info = read_json(folder / INFO)
        if info["status"] == "done":
            raise UserError(str(folder), "is done", "see `raysft results`")
        refuse_living(folder, info)
        found = find_files(job_of(folder, info), folder, info, places or {})
        run = cls(folder, with_workers(found.job, workers))
        run.is_new, run.notes = False, found.notes
        for row in read_trials(folder):
            record = TrialRecord(
                row["trial"],
                row["config"],
                row["status"],
                row["history"],
                None,
                row["seconds"],
                row["error"],
                row["trace"],
                row["host"],
            )
            if not record.ended:
                record.status = "pending"
            run.known[record.trial] = record
        run.info |= {
            key: info[key] for key in ("data", "job", "weights", "weights_sha256") if key in info
        }
        run.info["places"] = info.get("places", {}) | found.places
        run.info |= {"started": info["started"], "resumed": [*info.get("resumed", []), _now()]}
        return run

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Give signs of life, and write down how the run ended when something ends it early.

        A new one that never began leaves nothing behind.
        """
        if not self.is_new:
            refuse_living(
                self.folder, read_json(self.folder / INFO)
            )  # another may have resumed it meanwhile
            self.save()  # whose it is from now on
        with beating(self.folder), self._told():
            yield

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            if self.is_new and not self.known:
                self.discard()  # nothing was trained
            else:
                self._save_end("failed")
            raise
        except KeyboardInterrupt:
            interrupts.acknowledge()
            self._save_end("stopped")
            raise
        except BaseException:
            self._save_end("failed")
            raise

    def _save_end(self, status: str) -> None:
        """Write down that the run ended early; on a full disk in the room of what can be done
        without.

        Where even that is too small, run.json stays as it was, and the run can be resumed all the
        same.
        """
        with suppress(StorageFull):
            self.save(status=status)
            return
        file = self.folder / INFO
        with suppress(OSError):
            remove_file(self.folder / PROGRESS)
        with suppress(StorageFull):
            self.save(status=status)
            return
        if isinstance(file, Path):
            with suppress(OSError):
                overwrite_json(file, self.info)

    def discard(self) -> None:
        """Remove a run that never began."""
        remove_folder(self.folder)
        if isinstance(self.folder, Path):
            with suppress(OSError):  # the storage folder, where it holds nothing else
                self.folder.parent.rmdir()

    def trial_folder(self, trial: str) -> StoragePath:
        """Where a trial keeps its record and its checkpoints."""
        return self.folder / "trials" / trial

    def save(self, **info: Any) -> None:
        """Write run.json with `info` added."""
        self.info |= info
        if self.info["status"] in ("done", "failed", "stopped"):
            self.info["ended"] = self.info["ended"] or _now()
        self._write(INFO, self.info)

    def save_trial(self, record: TrialRecord) -> None:
        """Write a trial's trial.json."""
        self._write(
            f"trials/{record.trial}/{TRIAL}",
            record.row(self.metric) | {"history": record.history, "trace": record.trace},
        )

    def save_progress(self, document: dict[str, Any]) -> None:
        """Write progress.json."""
        self._write(PROGRESS, document)

    def save_results(self, results: dict[str, Any]) -> None:
        """Write results.json."""
        self._write(RESULTS, results)

    def _write(self, name: str, document: dict[str, Any]) -> None:
        file = self.folder / name
        try:
            if isinstance(file, Path):
                file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, document)
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull(str(file)) from None
            raise


def _unwritable(storage: StoragePath, error: OSError) -> UserError:
    reason = error.strerror or str(error).partition(" (Request ID")[0]
    return UserError(
        f"storage: {storage}", f"cannot be written ({reason})", "give a folder or bucket that can"
    )


def new_name(job: Job) -> str:
    """A name for a run of a job: the job's and the time."""
    return f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def leaderboard(records: list[TrialRecord], metric: str) -> list[TrialRecord]:
    """Trials from best to worst; those without a finished epoch last."""

    def key(record: TrialRecord) -> tuple[float, ...]:
        best = record.best(metric)
        return sort_key(best, metric) if best else (math.inf,)

    return sorted(records, key=key)


def find_run(name: str, storage: str = "runs") -> StoragePath:
    """The directory of a run given as a path or as a name below `storage`; raises UserError."""
    for folder in (storage_path(name), storage_path(storage) / name):
        if (folder / INFO).is_file():
            return folder
    raise UserError(
        name, "is not a run", f"give a run directory, or a name in {storage}/ (`raysft list`)"
    )


def status_of(name: str, known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The run.json of a run with its trials and where it stands; raises UserError.

    known: trials that are over, by their names; they are not read again.
    """
    folder = find_run(name)
    info = read_json(folder / INFO)
    info["status"] = standing(folder, info)
    progress = read_json(folder / PROGRESS) if (folder / PROGRESS).is_file() else None
    return info | {
        "progress": progress,
        "trials": [
            {k: v for k, v in t.items() if k != "trace"} for t in read_trials(folder, known or {})
        ],
    }


def is_going_on(info: Mapping[str, Any]) -> bool:
    """Whether the status of a run says that more may happen."""
    return info["status"] in ("starting", "running")


def results_of(name: str) -> dict[str, Any]:
    """The results.json of a run; raises UserError while there is none."""
    folder = find_run(name)
    if not (folder / RESULTS).is_file():
        raise UserError(
            str(folder),
            f"has no results: its status is {status_of(name)['status']}",
            "see `raysft status`",
        )
    return read_json(folder / RESULTS)


def standing(folder: StoragePath, info: Mapping[str, Any]) -> str:
    """The status of a run: what its run.json says, or "lost" where its process died without a word.

    Of one that an older raysft runs on another host nothing more can be known.
    """
    known = Owner.of(info) is not None or info.get("host") == platform.node()
    return (
        "lost"
        if known and is_going_on(info) and not is_alive(folder, info)
        else str(info["status"])
    )


def is_alive(folder: StoragePath, info: Mapping[str, Any]) -> bool:
    """Whether a run is going on, here or anywhere else that writes to its folder."""
    if not is_going_on(info):
        return False
    owner = Owner.of(info)
    if owner is None:
        return _perhaps_alive(info)
    if owner.is_here:
        return owner.lives
    heard = heard_ago(folder, INFO)
    return heard is not None and heard < SILENT_SECONDS


def refuse_living(folder: StoragePath, info: Mapping[str, Any]) -> None:
    """Raise UserError where a run is going on, or may be for all that can be known here."""
    owner = Owner.of(info)
    if not is_going_on(info) or owner == Owner.this():
        return
    if owner is None:
        if _perhaps_alive(info):
            raise UserError(
                str(folder),
                f"may still be running as process {info['pid']} of this machine",
                "end that "
                "process first; its run.json is of an older raysft, which did not tell more of it",
            )
    elif owner.is_here:
        if owner.lives:
            raise UserError(
                str(folder), f"is still running as {owner}", "stop it first with `raysft stop`"
            )
    elif (heard := heard_ago(folder, INFO, exact=True)) is not None and heard < SILENT_SECONDS:
        raise UserError(
            str(folder),
            f"was running {heard:.0f} s ago, as {owner}, another machine or container",
            "stop it there with `raysft stop`; if it is dead, call again in "
            f"{SILENT_SECONDS - heard:.0f} s",
        )


def _perhaps_alive(info: Mapping[str, Any]) -> bool:
    """Whether the process of a run may live that an older raysft has written down, by its number
    and host alone.
    """
    if info.get("host") != platform.node() or info.get("pid") == os.getpid():
        return False
    with suppress(psutil.Error, KeyError, ValueError):
        began = datetime.strptime(
            [info["started"], *info.get("resumed", [])][-1], CLOCK
        ).timestamp()
        process = psutil.Process(info["pid"])
        return process.create_time() < began + 2 and any(
            "raysft" in word for word in process.cmdline()
        )
    return False


def job_of(folder: StoragePath, info: dict[str, Any]) -> Job:
    """The job of a run with the run.json `info`; raises UserError where its file is not what was
    written.
    """
    file = folder / JOB
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(str(file), f"cannot be read ({error.strerror or error})") from None
    if hashlib.sha256(content).hexdigest() != info["job"]:
        raise UserError(
            str(file),
            "is not what the run began with: it was changed or torn",
            "submit a changed job as a run of its own",
        )
    return with_places(
        load_text(content.decode(), str(file)), info.get("places", {}), str(folder / INFO)
    )


def with_workers(job: Job, workers: int | list[int] | None) -> Job:
    """A job with other resources.workers; raises UserError where it cannot have them."""
    if workers is None:
        return job
    tree = job.model_dump()
    tree["resources"]["workers"] = workers
    return validate_job(tree, "--workers")


def all_runs(storage: str) -> list[dict[str, Any]]:
    """The run.json of every run in a folder, oldest first."""
    folder = storage_path(storage)
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    folders = [folder / name for name in names if (folder / name / INFO).is_file()]
    infos = [(info := read_json(run / INFO)) | {"status": standing(run, info)} for run in folders]
    return sorted(infos, key=lambda info: str(info.get("started")))


def read_trials(
    folder: StoragePath, known: Mapping[str, dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The trial.json of every trial of a run that has begun, in their order; those `known` are not
    read again.
    """
    trials, known = folder / "trials", known or {}
    names = sorted(p.name for p in trials.iterdir()) if trials.exists() else []
    return [
        known.get(name) or read_json(trials / name / TRIAL)
        for name in names
        if name in known or (trials / name / TRIAL).is_file()
    ]


def read_json(path: StoragePath) -> dict[str, Any]:
    """A JSON file of a run; raises UserError when it is not there, changed or torn."""
    try:
        return read_checked(path)
    except FileNotFoundError:
        raise UserError(str(path), "does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read ({error})") from None


def versions() -> dict[str, str]:
    """Versions of Python and of what shapes a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return time.strftime(CLOCK)
