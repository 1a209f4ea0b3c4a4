"""Where the data and the weights of a run are when it is resumed: where they were, beside the run
that was moved with them, or where a person says. What a run learns of it stays in its run.json; its
job.yaml is as it was submitted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysft.errors import UserError
from raysft.job import Job
from raysft.job.load import validate_job
from raysft.records.documents import RunFacts
from raysft.storage import StoragePath, sha256, storage_path

FILES = ("data.path", "data.test_path", "model.weights")
PLACES = (*FILES, "storage")


def parse_places(overrides: Sequence[str]) -> dict[str, str]:
    """The places that `raysft resume --set KEY=VALUE` gives; raises UserError for what a run cannot
    change any more.
    """
    found = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not text:
            raise UserError(
                f"--set {override}", "is not KEY=VALUE", "for example --set data.path=/new/place"
            )
        if key not in PLACES:
            raise UserError(
                f"--set {override}",
                "cannot be changed in a run that has begun, only where it finds its "
                f"files: {', '.join(PLACES)}",
                "submit a changed job as a run of its own",
            )
        found[key] = text
    return found


def refuse_storage(places: Mapping[str, str]) -> None:
    """Raise UserError where storage is given for a run that is given by its directory."""
    if "storage" in places:
        raise UserError(
            f"--set storage={places['storage']}",
            "is given by the directory of the run",
            "give the run by the path of its directory, and no storage",
        )


def absolute_places(places: Mapping[str, str]) -> dict[str, str]:
    """The same places, wherever they are read from later."""
    return {
        key: value if "://" in value else str(Path(value).expanduser().resolve())
        for key, value in places.items()
    }


def with_places(job: Job, places: Mapping[str, str], where: str) -> Job:
    """A job with its files elsewhere; raises UserError where it cannot have them there."""
    if not places:
        return job
    # Validated as a whole once more: a place may not suit the source or the model.
    tree = job.model_dump()
    for key, value in places.items():
        *sections, last = key.split(".")
        section = tree[sections[0]] if sections else tree
        section[last] = value
    return validate_job(tree, where)


def job_value(job: Job, key: str) -> str | None:
    """What a job says for one of FILES."""
    section, _, last = key.partition(".")
    value: str | None = getattr(getattr(job, section), last)
    return value


@dataclass(frozen=True)
class RelocatedJob:
    """Where the files of a run are that are not where its job says; the job says so already."""

    job: Job
    places: dict[str, str]
    notes: tuple[str, ...]


def find_files(
    job: Job, folder: StoragePath, info: RunFacts, given: Mapping[str, str]
) -> RelocatedJob:
    """Look for the files that a run in `folder` with this run.json needs.

    given: the places that a person has said. Raises UserError for what is not there, with how to
    say where it is, and for weights that are not those that the run began with.
    """
    places, notes = dict(given), []
    for key in FILES:
        value = job_value(job, key)
        if key in given:
            _check_given(key, given[key], value)
        elif value is not None and _is_missing(key, value):
            there = _first_existing(candidate_paths(folder, info, value))
            if there is None:
                raise UserError(
                    f"{key}: {value}",
                    "does not exist any more, and is not beside the run",
                    f"`raysft resume {folder} --set {key}=PATH` says where it is",
                )
            places[key] = str(there)
            # Said, because a file of the same name need not be the same file.
            notes.append(f"{key}: {value} does not exist any more; using {there}")
    moved = with_places(job, places, "--set")
    _check_weights(moved.model.weights, info)
    if "model.weights" in places and "weights_sha256" not in info:
        notes.append(
            f"model.weights: {moved.model.weights} cannot be compared with the file that the run "
            "began with: its run.json was written by an older raysft"
        )
    return RelocatedJob(moved, places, tuple(notes))


def _is_missing(key: str, value: str) -> bool:
    # What is no file name (an address, a name of weights) is not looked for.
    return is_file_name(key, value) and not Path(value).expanduser().exists()


def _first_existing(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _check_given(key: str, place: str, value: str | None) -> None:
    """Raise UserError where what a person has said is not there, or no place of this run."""
    if value is None or not (is_file_name(key, value) or "://" in value):
        raise UserError(
            f"--set {key}={place}",
            f"cannot be changed: the job of the run has {value or 'none'} there",
            "submit a changed job as a run of its own",
        )
    if key == "model.weights" and not is_file_name(key, place):
        raise UserError(
            f"--set {key}={place}", "is not a file", "give the file that the run began with"
        )
    if "://" not in place and not Path(place).expanduser().exists():
        raise UserError(f"--set {key}={place}", "does not exist")


def is_file_name(key: str, value: str) -> bool:
    """Whether a value of a job names a file or folder of this machine, not a web address or a name
    of a library.
    """
    if "://" in value:
        return False
    # Weights may be a name (DEFAULT, IMAGENET1K_V2), which has neither a folder nor an ending.
    return key != "model.weights" or "/" in value or Path(value).suffix != ""


def candidate_paths(folder: StoragePath, info: RunFacts, value: str) -> Iterator[Path]:
    """Where a file may be that the run with this run.json has known as `value`, the likeliest
    first.

    It lies from the run as it did when the run was begun, or near it under its own name.
    """
    # Relative to where the run was started, which an older raysft did not write down.
    old = Path(info["cwd"], value) if "cwd" in info else Path(value)
    yield old
    if not isinstance(folder, Path):
        return
    if "folder" in info and "://" not in info["folder"]:
        # The whole tree was moved: runs and data lie to each other as they did.
        yield Path(os.path.normpath(folder / os.path.relpath(old, info["folder"])))
    # Only a few folders up: what is farther away was hardly moved with the run.
    for parent in (folder, *folder.parents[:3]):
        yield parent / old.name


def locate(folder: StoragePath, info: RunFacts, value: str) -> StoragePath:
    """Where something is that the run.json of a run in `folder` calls `value`; that itself, where
    it is not found.
    """
    known = storage_path(value)
    if not isinstance(known, Path) or known.exists():
        return known
    # Where it was, if it is nowhere: the message of whoever reads it names that place.
    return _first_existing(candidate_paths(folder, info, value)) or known


def weights_sha256(job: Job) -> str | None:
    """The hash of the weights file that a job names; None where it names none on this machine."""
    value = job.model.weights
    file = Path(value).expanduser()
    # Weights that are downloaded by name have a checksum of their own.
    if not is_file_name("model.weights", value) or not file.is_file():
        return None
    return sha256(file)


def _check_weights(value: str, info: RunFacts) -> None:
    """Raise UserError where a weights file is not the one that the run began with, as far as that
    is known.
    """
    known = info.get("weights_sha256")
    # By content: a copy has another time, and other weights of a network have the same size.
    if known is not None and sha256(Path(value).expanduser()) != known:
        raise UserError(
            f"model.weights: {value}",
            "is not the file that the run began with (another SHA-256)",
            "restore it, or submit a run of its own",
        )
