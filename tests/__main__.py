"""All tests: `python -m tests`, which is what `make test` runs.

Those with a Ray leave a third of two cores idle, while processes start and answers are awaited. So
those without one run beside them, at the lowest priority, where nobody notices them; what they have
printed is shown in one piece when they are done.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

PYTEST = [sys.executable, "-m", "pytest"]
WITHOUT_RAY = [
    "nice",
    "-n",
    "19",
    *PYTEST,
    "-n",
    "2",
    "--dist",
    "worksteal",
    "-m",
    "not ray",
    "--durations=20",
]
WITH_RAY = [*PYTEST, "-m", "ray and not long", "--durations=40"]
FAILED = 1


def main() -> int:
    """Run both; returns 0 where all have passed."""
    with tempfile.TemporaryFile("w+") as output:
        beside = subprocess.Popen(
            WITHOUT_RAY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        _give_way(beside)
        shower = threading.Thread(target=_show, args=(beside, output))
        shower.start()
        try:
            with_ray = subprocess.call(WITH_RAY)
        except KeyboardInterrupt:
            os.killpg(beside.pid, signal.SIGTERM)
            raise
        shower.join()
    return FAILED if with_ray or beside.returncode else 0


def _give_way(beside: subprocess.Popen[bytes]) -> None:
    """Lower the priority of a session: where Linux shares processors among sessions, that of a
    process counts only within its own.
    """
    with suppress(OSError):  # not every system has that
        Path(f"/proc/{beside.pid}/autogroup").write_text("19")


def _show(beside: subprocess.Popen[bytes], output: IO[str]) -> None:
    """Print what a process has printed, once it has ended."""
    beside.wait()
    output.seek(0)
    print(
        "\n--- tests without a Ray", output.read(), "--- the rest, with a Ray", sep="\n", flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
