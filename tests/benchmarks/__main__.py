"""`make bench` runs all benchmarks, `make bench BENCH=name` one; each prints its tables and adds to
one JSON file.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.compare import show, show_machine

NAMES = (
    "ingest",
    "augment",
    "loop",
    "workers",
    "startup",
    "overhead",
    "search",
    "asha",
    "schedulers",
    "streaming",
    "rows",
    "predict",
    "serve",
)
RESULT = Path("runs/benchmarks.json")


def main(wanted: list[str]) -> int:
    """Run benchmarks, each in a process of its own: what one leaves behind would disturb the
    next.
    """
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if len(wanted) == 1:
        _measure(wanted[0])
        return 0
    failed = [
        name
        for name in wanted or NAMES
        if subprocess.run([sys.executable, "-m", "tests.benchmarks", name], check=False).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _measure(name: str) -> None:
    show_machine()
    found = importlib.import_module(f"tests.benchmarks.{name}").measure()
    show(found)
    RESULT.parent.mkdir(exist_ok=True)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(
        json.dumps((known if isinstance(known, dict) else {}) | {name: found}, indent=1)
    )
    print(f"written to {RESULT}")


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # the Ray of a benchmark is gone by now, and Ray's own exit would look for it
