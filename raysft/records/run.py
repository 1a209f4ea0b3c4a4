"""A run directory as it is written: job.yaml, run.json, trials/ID/trial.json, results.json."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from raysft import interrupts
from raysft.errors import StorageFullError, UserError
from raysft.job import Job, dump_job
from raysft.job.load import validate_job
from raysft.records.documents import (
    CLOCK,
    INFO,
    JOB,
    PROGRESS,
    RESULTS,
    TRIAL,
    ProgressDocument,
    ResultsDocument,
    RunChanges,
    RunDocument,
)
from raysft.records.frame import trials_frame
from raysft.records.liveness import refuse_running
from raysft.records.owner import Owner, heartbeat
from raysft.records.reading import read_job, read_run_document, read_trials
from raysft.records.relocation import find_files, weights_sha256
from raysft.records.revision import git_revision
from raysft.records.trial import TrialRecord
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

if TYPE_CHECKING:
    import pandas

# what Ray and libraries print; beside a run on an object store it stays on the machine
LOG = "raysft.log"
PACKAGES = ("raysft", "ray", "torch", "torchvision", "numpy", "pyarrow")


class Run:
    """A run directory that is being written."""

    def __init__(self, folder: StoragePath, job: Job) -> None:
        self.folder, self.job = folder, job
        if isinstance(folder, Path):
            self.log = folder / LOG
        else:
            # Libraries print line by line, which an object store has no way to append.
            self.log = Path(tempfile.gettempdir()) / f"{folder.name}.log"
        self.metric = job.search.metric if job.search else "val_accuracy"
        self.known: dict[str, TrialRecord] = {}
        self.info: RunDocument = {
            "run": folder.name,
            "status": "starting",
            "started": _now(),
            "ended": None,
            "versions": versions(),
            "git": git_revision(),
            "metric": self.metric,
            "host": platform.node(),
            "owner": Owner.current().document(),
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
        """A new directory below the job's storage; raises UserError when it already exists
        or cannot be made.
        """
        name = name or new_name(job)
        cls.check_name(name)
        storage = storage_path(job.storage)
        folder = storage / name
        try:
            make_folder(folder)
        except FileExistsError:
            raise UserError(str(folder), "already exists", "give another --name") from None
        except OSError as error:
            raise _unwritable(storage, error) from None
        try:
            run = cls(folder, job)
            text = dump_job(job)
            write_text(folder / JOB, text)
            # Checksums: a resumed run must not go on with what somebody changed.
            run.save(
                job=hashlib.sha256(text.encode()).hexdigest(), weights_sha256=weights_sha256(job)
            )
        # Also on Ctrl-C: half a run directory would be listed, and refuse its name.
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
        and its weights are by now, as `parse_places` gives them; what is not said and not where it
        was is looked for beside the run.
        """
        info = read_run_document(folder)
        if info["status"] == "done":
            raise UserError(str(folder), "is done", "see `raysft results`")
        refuse_running(folder, info)
        found = find_files(read_job(folder, info), folder, info, places or {})
        run = cls(folder, with_workers(found.job, workers))
        run.is_new, run.notes = False, found.notes
        for stored in read_trials(folder):
            record = TrialRecord.from_document(stored)
            run.known[record.trial] = record
        run._keep(info)
        # Kept for the next resume, which need not be told again.
        run.info["places"] = info.get("places", {}) | found.places
        return run

    def _keep(self, before: RunDocument) -> None:
        """Keep of an earlier run.json what the run must not lose when it is resumed."""
        if "data" in before:
            self.info["data"] = before["data"]
        self.info["job"] = before["job"]
        if "weights" in before:
            self.info["weights"] = before["weights"]
        # Absent in runs of an older raysft; None where the job names no weights file.
        if "weights_sha256" in before:
            self.info["weights_sha256"] = before["weights_sha256"]
        self.info["started"] = before["started"]
        self.info["resumed"] = [*before.get("resumed", []), _now()]

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Give signs of life, and write down how the run ended when something ends it early.

        A new one that never began leaves nothing behind.
        """
        if not self.is_new:
            # Another process may have resumed it since it was opened.
            refuse_running(self.folder, read_run_document(self.folder))
            self.save()  # from now on the run belongs to this process
        with heartbeat(self.folder), self._end_recorded():
            yield

    @contextmanager
    def _end_recorded(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            # Refused before anything was trained: nothing worth a directory.
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
        with suppress(StorageFullError):
            self.save(status=status)
            return
        file = self.folder / INFO
        # Nobody needs the progress of a run that ended.
        with suppress(OSError):
            remove_file(self.folder / PROGRESS)
        with suppress(StorageFullError):
            self.save(status=status)
            return
        # Writing beside the file and renaming needs room for a second copy; over it, none.
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

    @property
    def trials(self) -> pandas.DataFrame:
        """The trials that have begun, a row each, the best first (`raysft.records.frame`)."""
        return trials_frame(read_trials(self.folder), self.metric)

    def save(self, **changes: Unpack[RunChanges]) -> None:
        """Write run.json with `changes`."""
        # Notes of weights and data come in while the run goes on, each in a write of its own.
        self.info = {**self.info, **changes}
        if self.info["status"] in ("done", "failed", "stopped"):
            self.info["ended"] = self.info["ended"] or _now()
        self._write(INFO, self.info)

    def save_trial(self, record: TrialRecord) -> None:
        """Write a trial's trial.json."""
        self._write(f"trials/{record.trial}/{TRIAL}", record.document(self.metric))

    def save_progress(self, document: ProgressDocument) -> None:
        """Write progress.json."""
        self._write(PROGRESS, document)

    def save_results(self, results: ResultsDocument) -> None:
        """Write results.json."""
        self._write(RESULTS, results)

    def _write(self, name: str, document: Mapping[str, object]) -> None:
        file = self.folder / name
        try:
            # An object store has no folders to be made.
            if isinstance(file, Path):
                file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, document)
        except OSError as error:
            # An error of its own: it says to make room, and that the run can be resumed then.
            if is_disk_full(error):
                raise StorageFullError(str(file)) from None
            raise


def _unwritable(storage: StoragePath, error: OSError) -> UserError:
    # Object stores add identifiers of a request to what they say, which help nobody here.
    reason = error.strerror or str(error).partition(" (Request ID")[0]
    return UserError(
        f"storage: {storage}", f"cannot be written ({reason})", "give a folder or bucket that can"
    )


def new_name(job: Job) -> str:
    """A name for a run of a job: the job's and the time."""
    return f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def with_workers(job: Job, workers: int | list[int] | None) -> Job:
    """A job with other resources.workers; raises UserError where it cannot have them."""
    if workers is None:
        return job
    tree = job.model_dump()
    tree["resources"]["workers"] = workers
    return validate_job(tree, "--workers")


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
