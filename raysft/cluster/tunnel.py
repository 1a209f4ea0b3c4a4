"""The SSH tunnel to a cluster's dashboard, which listens on the head's loopback alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysft.errors import RunError, UserError

DASHBOARD_PORT = 8265
OPEN_SECONDS = 60.0


@contextmanager
def tunnel(cluster_file: Path, port: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """(address, a function that waits until the tunnel ends); closed on leaving.

    Raises UserError when there is no such file or the port is taken, RunError when the tunnel does
    not open or breaks.
    """
    if not cluster_file.is_file():
        raise UserError(
            str(cluster_file), "no such cluster file", "give the file that `ray up` was given"
        )
    if _answers(port):
        raise UserError(f"--port {port}", "is in use on this machine", "give another --port")
    command = [
        # Ray's own: it knows the SSH user, key and proxy of every provider.
        _ray_command(),
        "dashboard",
        str(cluster_file),
        f"--port={port}",
        f"--remote-port={DASHBOARD_PORT}",
    ]
    # In a session of its own: Ctrl-C reaches this process alone, which then ends both.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + OPEN_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                output = process.stdout.read() if process.stdout else ""
                reason = (
                    ["no answer"] + [line.strip() for line in output.splitlines() if line.strip()]
                )[-1]
                raise RunError(
                    str(cluster_file),
                    f"no tunnel could be opened ({reason})",
                    "is the cluster up (`ray up`), and does SSH reach its head?",
                )
            time.sleep(0.2)

        def wait() -> None:
            process.wait()
            raise RunError(
                str(cluster_file), "the tunnel closed", "open it again with `raysft connect`"
            )

        yield f"http://127.0.0.1:{port}", wait
    finally:
        _end(process)


def _ray_command() -> str:
    """Ray's own command, of this Python where it has one."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("ray", path=folders)
    if found is None:
        raise UserError("ray", "its command is not installed", "pip install 'ray[default]'")
    return found


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _end(process: subprocess.Popen[str]) -> None:
    """End the command and the ssh that it started."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        family = [
            *psutil.Process(process.pid).children(recursive=True),
            psutil.Process(process.pid),
        ]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        psutil.wait_procs(family, timeout=5.0)
