"""`make bench` runs all benchmarks, `make bench BENCH=name` one; each prints a table, all go to one JSON file."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from tests.benchmarks.compare import show

NAMES = ("ingest", "loop")
RESULT = Path("runs/benchmarks.json")


def main(wanted: list[str]) -> None:
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    found = []
    for name in wanted or NAMES:
        found.append(importlib.import_module(f"tests.benchmarks.{name}").measure())
        show(found[-1])
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1))
    print(f"written to {RESULT}")


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the Ray of a benchmark is gone by now, and Ray's own exit would look for it
