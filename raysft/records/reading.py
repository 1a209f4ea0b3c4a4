"""Reading the directories of runs: where a run is, and what its files say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

from raysft.errors import UserError
from raysft.job import Job, load_text
from raysft.records.documents import (
    INFO,
    JOB,
    PROGRESS,
    RESULTS,
    TRIAL,
    ProgressDocument,
    ResultsDocument,
    RunDocument,
    StatusDocument,
    TrialDocument,
)
from raysft.records.liveness import run_status
from raysft.records.relocation import with_places
from raysft.storage import StoragePath, read_json, storage_path

Document = TypeVar("Document", bound=Mapping[str, object])


def find_run(name: str, storage: str = "runs") -> StoragePath:
    """The directory of a run given as a path or as a name below `storage`; raises UserError."""
    # A path first: tab completion gives runs/NAME, and must not be looked for in runs/ again.
    for folder in (storage_path(name), storage_path(storage) / name):
        if (folder / INFO).is_file():
            return folder
    raise UserError(
        name, "is not a run", f"give a run directory, or a name in {storage}/ (`raysft list`)"
    )


def list_runs(storage: str) -> list[RunDocument]:
    """The run.json of every run in a folder, oldest first."""
    folder = storage_path(storage)
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    infos = []
    for run in (folder / name for name in names):
        # A storage folder may hold other things, too, among them a run that is just being made.
        if (run / INFO).is_file():
            info = read_run_document(run)
            info["status"] = run_status(run, info)
            infos.append(info)
    return sorted(infos, key=lambda info: str(info.get("started")))


def read_status(name: str, known: Mapping[str, TrialDocument] | None = None) -> StatusDocument:
    """The run.json of a run with its trials and its progress; raises UserError.

    known: trials that are over, by their names; they are not read again.
    """
    folder = find_run(name)
    info = read_run_document(folder)
    info["status"] = run_status(folder, info)
    # A run of an older raysft has none, nor one that is starting.
    progress = None
    if (folder / PROGRESS).is_file():
        progress = _read(folder / PROGRESS, ProgressDocument)
    trials = read_trials(folder, known or {})
    for trial in trials:
        trial.pop("trace", None)  # pages of text that no table of trials has room for
    return {**info, "progress": progress, "trials": trials}


def read_run_document(folder: StoragePath) -> RunDocument:
    """The run.json of a run; raises UserError."""
    return _read(folder / INFO, RunDocument)


def read_results(name: str) -> ResultsDocument:
    """The results.json of a run; raises UserError while there is none."""
    folder = find_run(name)
    if not (folder / RESULTS).is_file():
        status = run_status(folder, read_run_document(folder))
        raise UserError(
            str(folder), f"has no results: its status is {status}", "see `raysft status`"
        )
    return _read(folder / RESULTS, ResultsDocument)


def read_trials(
    folder: StoragePath, known: Mapping[str, TrialDocument] | None = None
) -> list[TrialDocument]:
    """The trial.json of every trial of a run that has begun, in their order.

    known: trials that are over, by their names; they are not read again.
    """
    known = known or {}
    trials = folder / "trials"
    names = sorted(p.name for p in trials.iterdir()) if trials.exists() else []
    found = []
    for name in names:
        if name in known:
            found.append(known[name])
        elif (trials / name / TRIAL).is_file():  # else its folder was made, and nothing happened
            found.append(_read(trials / name / TRIAL, TrialDocument))
    return found


def read_job(folder: StoragePath, info: RunDocument) -> Job:
    """The job of a run; raises UserError where its file is not what the run began with."""
    file = folder / JOB
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(str(file), f"cannot be read ({error.strerror or error})") from None
    # All trials of a run have the same job: one that was edited would mix two of them.
    if hashlib.sha256(content).hexdigest() != info["job"]:
        raise UserError(
            str(file),
            "is not what the run began with: it was changed or is damaged",
            "submit a changed job as a run of its own",
        )
    job = load_text(content.decode(), str(file))
    return with_places(job, info.get("places", {}), str(folder / INFO))


def _read(path: StoragePath, kind: type[Document]) -> Document:
    """A JSON file of a run; raises UserError when it is missing or damaged."""
    # What the values are is not checked: a file whose checksum is right was written by a raysft.
    stored: Any
    try:
        stored = read_json(path)
    except FileNotFoundError:
        raise UserError(str(path), "does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read ({error})") from None
    document: Document = stored
    return document
