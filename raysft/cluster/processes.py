"""Finding and killing every process of a Ray, also those that have lost their parent, their name
and their environment.

    python -m raysft.cluster.processes FOLDER NAME VALUE

waits until its standard input ends, then does so for the Ray that keeps its files in FOLDER and
whose processes have NAME=VALUE in their environment.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

from raysft.ray_shortcuts import is_worker_title

KILL_SECONDS = 10.0


def kill_all(find: Callable[[], Sequence[psutil.Process]]) -> None:
    """Kill what `find` finds until it finds nothing, and with that what was still started
    meanwhile.
    """
    # A process that waits for a dead disk cannot be killed.
    deadline = time.monotonic() + KILL_SECONDS
    while (alive := find()) and time.monotonic() < deadline:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        # No longer: to psutil, one that is dead and not waited for still runs.
        psutil.wait_procs(alive, timeout=0.05)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process is neither gone nor dead and only not waited for."""
    with suppress(psutil.Error):
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    return False


def marked(name: str, value: str) -> list[psutil.Process]:
    """Every other process that inherited an environment variable, also of a parent that is dead."""
    return _others(lambda process: process.environ().get(name) == value)


def using(folder: str, name: str, value: str) -> list[psutil.Process]:
    """Every other process of the Ray of a folder: that has a file of it open, or names it in its
    command.
    """
    below = folder.rstrip("/") + "/"

    def uses(process: psutil.Process) -> bool:
        if not any(below in word for word in process.cmdline()) and not any(
            file.path.startswith(below) for file in process.open_files()
        ):
            return False
        # A person who looks at a log there has it open, too, and is left alone: Ray's processes
        # have the variable, or have overwritten it with the title of a worker.
        return is_worker_title(process.cmdline()[0]) or process.environ().get(name) == value

    return _others(uses)


def _others(wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and wanted(process) and is_alive(process):
                found.append(process)
    return found


def main(folder: str, name: str, value: str) -> None:
    """Outlive the process that started this one, and clean up after it."""
    # The other end is closed by the kernel, also when that process is killed.
    sys.stdin.buffer.read()
    kill_all(lambda: [*using(folder, name, value), *marked(name, value)])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
