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
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from raysft.cluster import processes
from raysft.cluster.address import VARIABLE
from raysft.cluster.processes import kill_all, lives, marked
from raysft.errors import UserError
from raysft.gc_pause import gc_paused
from raysft.interrupts import ignoring_interrupts
from raysft.job.plan import Node
from raysft.search_path import empty_current_folder

_MARK = "RAYSFT_LOCAL_RAY"  # in the environment of every process that this Ray starts
# Read by Ray when it is imported or started: no usage banner, no progress bars, no metrics of its
# own, no watch for the end of a spot machine.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A tenth of two busy cores went into these, which nobody sees without Ray's dashboard.
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
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
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


@contextmanager
def _without_attendants() -> Iterator[None]:
    """Have Ray start without its dashboard's server, autoscaler and log monitor, which a Ray of one
    run has no use for.

    They took a tenth of the CPU of a run's start, and Ray waits a second for the server. What is
    replaced is internal to Ray, and to be looked at with every new series of it.
    """
    from ray._private import parameter, services

    inside: tuple[Any, Any] = parameter, services
    given = inside[0].RayParams, inside[1].start_api_server
    inside[0].RayParams = partial(given[0], no_monitor=True, include_log_monitor=False)
    inside[1].start_api_server = lambda *args, **kwargs: ("", None)
    try:
        yield
    finally:
        inside[0].RayParams, inside[1].start_api_server = given


@contextmanager
def local_ray(node: Node) -> Iterator[Path]:
    """A Ray of our own on this machine, for a process that ends afterwards: then none of Ray's
    processes is left.

    Yields the folder that Ray keeps its files in, where the run may put its own; it is removed, but
    kept with Ray's logs where something went wrong that is no mistake of the person. Ray's
    processes are killed and not asked: `ray.shutdown` takes seconds, and it crashes this process
    where other threads are still inside Ray, as they are when a run is interrupted.
    """
    # When it cannot talk to its raylet any more, Ray's library asks whether that has died, by this
    # variable, else by whether its own parent is process 1, as it may be in a container; and then
    # it ends this process with status 1, results or not. Ray sets it for workers itself; the driver
    # outlives its raylet on purpose, below.
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with gc_paused():
        import ray

        from raysft.ray_calls import set_log_folder

    os.environ.pop(
        VARIABLE, None
    )  # it says local, or nothing; Ray's processes would take it for the address of theirs
    mark = os.environ[_MARK] = f"{os.getpid()}-{time.time_ns()}"
    folder = Path(
        tempfile.mkdtemp(prefix="raysft-", dir="/tmp")
    )  # sockets lie in it, and their paths must be short
    set_log_folder(folder)
    # Were this process killed, Ray would stay, and the folder: that one sees its standard input
    # end, and cleans up.
    subprocess.Popen(
        [sys.executable, "-m", processes.__name__, str(folder), _MARK, mark],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    keep = False
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        with _without_attendants(), empty_current_folder(folder / "cwd"):
            ray.init(
                address="local",
                num_cpus=int(node.cpus),
                num_gpus=int(node.gpus),
                log_to_driver=False,
                logging_level=logging.WARNING,
                include_dashboard=False,
                _temp_dir=str(folder),
            )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray's own ends the process without a clean-up
        yield folder
    except Exception as error:
        keep = not isinstance(error, UserError)
        if keep:
            logging.getLogger(__name__).warning("Ray's own logs are kept in %s", folder)
        raise
    finally:
        with ignoring_interrupts():
            # Those of Ray that give themselves a title overwrite their environment, mark and all:
            # they are known as children of a raylet that still lives. When it is dead they are no
            # one's, and take a minute to notice.
            family = psutil.Process().children(recursive=True)
            kill_all(lambda: [*filter(lives, family), *marked(_MARK, mark)])
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
