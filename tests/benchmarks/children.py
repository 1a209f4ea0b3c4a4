"""Ways that are programs of their own, run as a person would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent
RAYSFT = str(BIN / "raysft")
PEERS = Path(__file__).parent / "peers"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # one thread a process, as the workers of raysft have


def run(*words: object, cwd: Path | None = None) -> str:
    """Run a program to its end; returns what it printed, raises with its last words where it
    failed.
    """
    done = subprocess.run(
        [str(w) for w in words],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"{words[0]} ended with "
            f"{done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def peer(name: str, *words: object) -> str:
    """Run a script of `peers`."""
    return run(sys.executable, PEERS / f"{name}.py", *words)


def two_at_a_time(commands: Sequence[Sequence[object]]) -> list[str]:
    """Run peers, always two of them at once."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda words: peer(*map(str, words)), commands))


def job(path: Path, **sections: object) -> Path:
    """Write a job file."""
    path.write_text(yaml.safe_dump({"name": "bench", "storage": "runs", **sections}))
    return path
