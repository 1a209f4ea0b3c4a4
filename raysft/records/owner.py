"""Whose a run is: the process that runs it, known so that no other is ever taken for it, and a sign
that it lives.

A process number alone says little: in containers every run is process 1, and a number is given
again once it is free. The owner is a number with the moment that process began, the boot it began
in, and the namespace that counts it. Where all of these are this machine's own, whether it lives is
known; from anywhere else (another host, another container) it is told by a file in the run's folder
that its owner touches every few seconds.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from raysft.records.documents import OwnerDocument, RunFacts
from raysft.storage import StoragePath, modified_at, remove_file, storage_time, touch

HEARTBEAT = "alive"
BEAT_SECONDS, REMOTE_BEAT_SECONDS = 10.0, 30.0
# A few beats, and what a network disk may take to show a change to another host.
SILENT_SECONDS = 120.0


@dataclass(frozen=True)
class Owner:
    """One process, of all that any machine has ever had."""

    host: str
    boot: str | None
    """What Linux calls this run of the machine; None elsewhere."""
    namespace: str | None
    """Where its number counts: containers on one machine have one each."""
    pid: int
    began: float
    """When it started: clock ticks since the boot on Linux, where no clock change moves them; else
    seconds of the epoch.
    """

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return cls(*_machine(), os.getpid(), _began(os.getpid()) or 0.0)

    @classmethod
    def from_document(cls, info: RunFacts) -> Owner | None:
        """The owner in a run.json; None where an older raysft has written it."""
        # A newer raysft may write more about an owner, of which this one knows nothing.
        with suppress(KeyError, TypeError):
            return cls(**info["owner"])
        return None

    def document(self) -> OwnerDocument:
        """As run.json has it."""
        return {
            "host": self.host,
            "boot": self.boot,
            "namespace": self.namespace,
            "pid": self.pid,
            "began": self.began,
        }

    @property
    def is_here(self) -> bool:
        """Whether its number means something here: the same machine since the same boot, the same
        container.
        """
        return (self.host, self.boot, self.namespace) == _machine()

    @property
    def is_alive(self) -> bool:
        """Whether it is still there; to be asked only where it `is_here`."""
        return _began(self.pid) == self.began and not _is_dead(self.pid)

    def signal(self, number: int) -> bool:
        """Send a signal to this process and surely to no other; returns whether it was there to be
        sent one.
        """
        if not self.is_here:
            return False
        with suppress(OSError), _held(self.pid) as send:
            # Asked only now, when the number cannot go to another process any more.
            if self.is_alive:
                send(number)
                return True
        return False

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"


@contextmanager
def _held(pid: int) -> Iterator[Callable[[int], None]]:
    """A way to signal one process that cannot reach a later one of the same number, where the
    system has one.
    """
    if not hasattr(os, "pidfd_open"):
        # macOS and old kernels: the moment between the look and the signal stays open.
        yield lambda number: os.kill(pid, number)
        return
    descriptor = os.pidfd_open(pid)
    try:
        yield lambda number: signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def _machine() -> tuple[str, str | None, str | None]:
    boot = namespace = None
    # Only Linux has these files; elsewhere host and start time have to do.
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return platform.node(), boot, namespace


def _began(pid: int) -> float | None:
    """When a process started; None where there is none of that number."""
    try:
        # The name, in brackets, may hold anything; the start is the 20th word after it, in ticks
        # since the boot.
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return float(stat.rpartition(")")[2].split()[19])
    except OSError:
        # With /proc there is no such process; without it psutil asks the system in its own way.
        if Path("/proc/self/stat").exists():
            return None
        with suppress(psutil.Error):
            created: float = psutil.Process(pid).create_time()
            return created
    return None


def _is_dead(pid: int) -> bool:
    """Whether a process has ended and only was not waited for."""
    try:
        # In a container without an init nobody waits for the processes that a killed run leaves.
        status: str = psutil.Process(pid).status()
        return status == str(psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# --- from elsewhere ----------------------------------------------------------------------------


def seconds_since_sign(folder: StoragePath, record: str, exact: bool = False) -> float | None:
    """Seconds since the owner of a run gave its last sign of life; None where it never did.

    record: the file of the folder that the owner writes first; that counts, too.
    exact: by the clock of the storage itself, which has to be written to for it, and not by this
    machine's.
    """
    times = [modified_at(folder / file) for file in (HEARTBEAT, record)]
    signs = [at for at in times if at is not None]
    if not signs:
        return None
    now = storage_time(folder) if exact else time.time()
    # The clock of another host may be ahead of this one's.
    return max(0.0, now - max(signs))


@contextmanager
def heartbeat(folder: StoragePath) -> Iterator[None]:
    """Give signs of life in the folder of a run while this lasts."""
    over = threading.Event()
    # Every beat on an object store is a request that is paid for.
    pause = BEAT_SECONDS if isinstance(folder, Path) else REMOTE_BEAT_SECONDS

    def beat() -> None:
        while not over.wait(pause):
            _beat(folder)

    _beat(folder)
    # A daemon: a run that hangs in its end must not keep its process alive by beating.
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)
        # A sign that stays behind is harmless: the status of the run says that it ended.
        with suppress(OSError):
            remove_file(folder / HEARTBEAT)


def _beat(folder: StoragePath) -> None:
    # Storage may be away for a moment; whoever asks meanwhile learns for how long.
    with suppress(OSError):
        touch(folder / HEARTBEAT)
