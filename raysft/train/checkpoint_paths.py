"""Where the checkpoints of a trial lie; known without torch."""

from __future__ import annotations

import shutil
from pathlib import Path

STATE = "state.json"


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint after `epoch` epochs lies."""
    return folder / f"epoch-{epoch:04d}"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = sorted(p for p in folder.glob("epoch-*") if p.suffix != ".tmp" and (p / STATE).is_file())
    return found[-1] if found else None


def prune(folder: Path, keep: set[int]) -> None:
    """Remove all checkpoints but those of the epochs in `keep`."""
    kept = {checkpoint_path(folder, epoch).name for epoch in keep}
    for path in folder.glob("epoch-*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
