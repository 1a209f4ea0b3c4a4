"""Whether the process of a run is still alive, as far as can be known from here."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

import psutil

from raysft.errors import UserError
from raysft.records.documents import CLOCK, INFO, RunFacts
from raysft.records.owner import SILENT_SECONDS, Owner, seconds_since_sign
from raysft.storage import StoragePath


def is_going_on(info: Mapping[str, object]) -> bool:
    """Whether the status of a run, in its run.json or in what is shown of it, is not final."""
    return info["status"] in ("starting", "running")


def run_status(folder: StoragePath, info: RunFacts) -> str:
    """What run.json says, or "lost" where its process died without writing how it ended."""
    if not is_going_on(info):
        return info["status"]
    # Of a run that an older raysft started on another host nothing more can be known.
    can_be_known = Owner.from_document(info) is not None or info.get("host") == platform.node()
    if can_be_known and not is_alive(folder, info):
        return "lost"
    return info["status"]


def is_alive(folder: StoragePath, info: RunFacts) -> bool:
    """Whether a run is going on, here or anywhere else that writes to its folder."""
    if not is_going_on(info):
        return False
    owner = Owner.from_document(info)
    if owner is None:
        return _may_be_alive(info)
    if owner.is_here:
        return owner.is_alive
    # Looked at without writing: a status may be asked of storage that cannot be written.
    silent = seconds_since_sign(folder, INFO)
    return silent is not None and silent < SILENT_SECONDS


def refuse_running(folder: StoragePath, info: RunFacts) -> None:
    """Raise UserError where a run is going on, or may be for all that can be known here."""
    owner = Owner.from_document(info)
    if not is_going_on(info) or owner == Owner.current():
        return
    if owner is None:
        _refuse_without_owner(folder, info)
    elif owner.is_here:
        if owner.is_alive:
            raise UserError(
                str(folder), f"is still running as {owner}", "stop it first with `raysft stop`"
            )
    else:
        _refuse_recent_sign(folder, owner)


def _refuse_without_owner(folder: StoragePath, info: RunFacts) -> None:
    if _may_be_alive(info):
        raise UserError(
            str(folder),
            f"may still be running as process {info['pid']} of this machine",
            "end that process first; the run was started by an older raysft, which did not "
            "record more about it",
        )


def _refuse_recent_sign(folder: StoragePath, owner: Owner) -> None:
    # By the clock of the storage: this machine's may differ from the owner's by minutes, and a
    # second process in the same folder would destroy what the first one writes.
    silent = seconds_since_sign(folder, INFO, exact=True)
    if silent is not None and silent < SILENT_SECONDS:
        raise UserError(
            str(folder),
            f"was running {silent:.0f} s ago, as {owner}, another machine or container",
            "stop it there with `raysft stop`; if it is dead, try again in "
            f"{SILENT_SECONDS - silent:.0f} s",
        )


def _may_be_alive(info: RunFacts) -> bool:
    """Whether the process that an older raysft wrote down, by number and host alone, may live."""
    if info.get("host") != platform.node() or info.get("pid") == os.getpid():
        return False
    with suppress(psutil.Error, KeyError, ValueError):
        last_start = [info["started"], *info.get("resumed", [])][-1]
        process = psutil.Process(info["pid"])
        # The number may be another process's by now. The run's own began before the run was
        # written down, which may take a moment and has whole seconds.
        if process.create_time() >= datetime.strptime(last_start, CLOCK).timestamp() + 2:
            return False
        return any("raysft" in word for word in process.cmdline())
    return False
