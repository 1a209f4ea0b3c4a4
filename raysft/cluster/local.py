"""Ray on this machine: what the machine has, starting Ray for one run, ending every process of it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from raysft.job.plan import Node

_GRACE_SECONDS = 5.0
# Read by Ray when it is imported or started: no usage banner, no progress bars, no metrics of its own.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
          "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def this_node() -> Node:
    """CPUs this process may use and GPUs of this machine, without importing Ray."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
def local_ray(node: Node) -> Iterator[None]:
    """A Ray of our own on this machine; afterwards none of its processes is left."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    try:
        ray.init(address="local", num_cpus=int(node.cpus), num_gpus=int(node.gpus), log_to_driver=False,
                 logging_level=logging.WARNING, include_dashboard=True)
        yield
    finally:
        with _undisturbed():
            ours = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
            ray.shutdown()
            _end(ours)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep a second Ctrl-C from interrupting the clean-up of the first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(processes: list[psutil.Process]) -> None:
    """Wait for processes to end, then kill those that did not."""
    _, alive = psutil.wait_procs(processes, timeout=_GRACE_SECONDS)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=2.0)
