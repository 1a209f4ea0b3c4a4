"""What the modules share that a cluster runs as Ray jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from raysft.cluster.messages import Reporter
from raysft.cluster.versions import check_versions
from raysft.errors import RaysftError, UserError

STORAGE_VARIABLE = "RAYSFT_STORAGE"
DATASETS = "datasets"


def answer_question(work: Callable[[Reporter], None], check: bool = True) -> int:
    """Connect to the cluster and do what was asked for; returns the exit status.

    What `work` raises on purpose is told as an event, and raised again where it was asked.
    check: refuse versions that do not fit, which the doctor reports in a row of its own.
    """
    reporter = Reporter(to_stream(sys.stdout))
    try:
        if check:
            check_versions()
        connect()
        work(reporter)
    except RaysftError as error:
        reporter.error(error)
        return error.exit_code
    return 0


def connect() -> None:
    """Connect this process to the cluster that runs it."""
    import ray

    # Workers would print into the events that this process tells.
    ray.init(address="auto", log_to_driver=False)


def to_stream(stream: TextIO) -> Callable[[str], None]:
    """A writer that leaves nothing in a buffer."""

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def shared_storage(storage: str, nodes: int) -> str:
    """Where runs go on a cluster: an absolute folder or URI as it is, anything else below
    $RAYSFT_STORAGE.

    Raises UserError where several nodes would each write to a folder of their own.
    """
    if "://" in storage or storage.startswith("/"):
        return storage
    # Set by whoever set up the cluster, so that one job file serves the laptop and the cluster.
    base = os.environ.get(STORAGE_VARIABLE)
    if base:
        return f"{base.rstrip('/')}/{storage}"
    if nodes == 1:
        # Not the current folder: a Ray job's is thrown away with it.
        return str(Path.home() / storage)
    raise UserError(
        f"storage: {storage}",
        "is a folder of one node, and the cluster has several",
        f"--set storage=s3://… or a folder that all share, or set {STORAGE_VARIABLE} on the head",
    )
