"""Ray on this machine: what the machine has, starting Ray for one run, ending every process of
it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from raysft.cluster import processes
from raysft.cluster.address import VARIABLE
from raysft.cluster.processes import is_alive, kill_all, marked
from raysft.errors import UserError
from raysft.gc_pause import gc_paused
from raysft.interrupts import ignoring_interrupts
from raysft.job.plan import Node
from raysft.ray_shortcuts import (
    outlive_raylet,
    quiet_settings,
    ray_init_in,
    without_attendants,
)
from raysft.search_path import empty_current_folder

_MARK = "RAYSFT_LOCAL_RAY"  # in the environment of every process that this Ray starts
# Read by Ray when it is imported or started: no usage banner, no progress bars, no watch for the
# end of a spot machine.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def this_node() -> Node:
    """CPUs this process may use and GPUs of this machine, without importing Ray."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return Node(min(allowed, _cgroup_cpus()), _gpus())


def _cgroup_cpus() -> int:
    """Whole CPUs of a container's quota (cgroup v2), a large number without one."""
    try:
        # The affinity knows nothing of a container's quota; too many workers would start.
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() not in ("", "-1")])
    # torch.cuda would take seconds to import, and hold memory on the first GPU.
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


@contextmanager
def local_ray(node: Node) -> Iterator[Path]:
    """A Ray of our own on this machine, for a process that ends afterwards: then none of Ray's
    processes is left.

    Yields the folder that Ray keeps its files in, where the run may put its own; it is removed, but
    kept with Ray's logs where something went wrong that is no mistake of the person.
    """
    mark = os.environ[_MARK] = f"{os.getpid()}-{time.time_ns()}"
    # Sockets lie in it, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="raysft-", dir="/tmp"))
    _start_watchdog(folder, mark)
    keep = False
    try:
        survives = _start_ray(node, folder)
        yield folder
        if not survives:
            import ray

            ray.shutdown()
    except Exception as error:
        keep = not isinstance(error, UserError)
        if keep:
            # To the log of the run: a person who looks for the cause looks there.
            logging.getLogger(__name__).warning("Ray's own logs are kept in %s", folder)
        raise
    finally:
        # A second Ctrl-C would leave half of the processes.
        with ignoring_interrupts():
            # Killed and not asked: ray.shutdown takes seconds, and it crashes this process where
            # other threads are still inside Ray, as they are when a run is interrupted.
            _kill_family(mark)
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def _start_ray(node: Node, folder: Path) -> bool:
    """Start Ray and connect to it; whether this process goes on when its raylet is killed."""
    for name, value in (_QUIET | quiet_settings()).items():
        # A person's own setting goes before ours.
        os.environ.setdefault(name, value)
    with gc_paused():
        import ray

        from raysft.ray_calls import set_log_folder

    survives = outlive_raylet()
    # It says local, or nothing; Ray's processes would take it for the address of theirs.
    os.environ.pop(VARIABLE, None)
    on_term = signal.getsignal(signal.SIGTERM)
    init_there = ray_init_in(folder)
    if init_there is not None:
        set_log_folder(folder)
    init = init_there or ray.init
    with without_attendants(), empty_current_folder(folder / "cwd"):
        init(
            address="local",
            num_cpus=int(node.cpus),
            num_gpus=int(node.gpus),
            log_to_driver=False,
            logging_level=logging.WARNING,
            # Nobody looks at it; with its like it took a tenth of a start's CPU time.
            include_dashboard=False,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray's own ends the process without a clean-up
    return survives


def _start_watchdog(folder: Path, mark: str) -> None:
    """Were this process killed, Ray would stay, and the folder: that one sees its standard input
    end, and cleans up.
    """
    subprocess.Popen(
        [sys.executable, "-m", processes.__name__, str(folder), _MARK, mark],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill_family(mark: str) -> None:
    # Those of Ray that give themselves a title overwrite their environment, mark and all: they are
    # known as children of a raylet that still lives. When it is dead they are no one's, and take a
    # minute to notice.
    family = psutil.Process().children(recursive=True)
    kill_all(lambda: [*filter(is_alive, family), *marked(_MARK, mark)])
