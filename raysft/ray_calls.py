"""Ray's processes may not start at all, and Ray then goes on trying without a word: limits, and
what its logs say.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import GetTimeoutError

from raysft.errors import RunError

T = TypeVar("T")

# until a process of Ray runs what it is given; Ray Train's own limit for its part is a minute
START_SECONDS = 180.0
LINES = 3

_logs = [Path("/tmp/ray/session_latest/logs")]


def set_log_folder(folder: Path) -> None:
    """Say where a Ray of our own has its files."""
    _logs[0] = folder / "session_latest/logs"


def first_result(reference: ray.ObjectRef[T]) -> T:
    """The result of the first call to a process of Ray; raises RunError where that does not
    start.
    """
    try:
        result: T = ray.get(reference, timeout=START_SECONDS)
        return result
    except GetTimeoutError:
        raise RunError(
            "Ray",
            f"has started no process that answers within {START_SECONDS:g} seconds"
            f"{last_worker_output()}",
            f"see the logs in {_logs[0]}",
        ) from None


def check_processes_start() -> None:
    """Raise RunError where no process of Ray starts; Ray Data would wait for one without end."""
    first_result(ray.remote(num_cpus=0)(_nothing).remote())


def _nothing() -> None:
    pass


def last_worker_output() -> str:
    """What Ray's youngest worker with something to say has said last, to be put at the end of a
    sentence.
    """
    with suppress(OSError):
        files = sorted(_logs[0].glob("worker-*.err"), key=lambda file: file.stat().st_mtime)
        for file in reversed(files):
            lines = [
                line.strip()
                for line in file.read_text(errors="replace").splitlines()
                if line.strip()
            ]
            if lines:
                return f"; {file.name} ends: {' | '.join(lines[-LINES:])}"
    return ""
