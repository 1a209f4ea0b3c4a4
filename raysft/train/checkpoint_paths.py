"""Where the checkpoints of a trial lie; known without torch."""

from __future__ import annotations

from collections.abc import Collection

from raysft.storage import StoragePath, remove_folder

STATE = "state.json"


def checkpoint_path(folder: StoragePath, epoch: int, step: int = 0) -> StoragePath:
    """Where the checkpoint after `epoch` epochs and `step` steps of the next one lies."""
    return folder / (f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else ""))


def newest_first(folder: StoragePath) -> list[StoragePath]:
    """All checkpoints that were written to their end."""
    return [
        path
        for path in sorted(_checkpoints(folder), key=lambda p: p.name, reverse=True)
        if (path / STATE).is_file()
    ]


def prune(folder: StoragePath, keep: Collection[StoragePath]) -> None:
    """Remove all checkpoints but those in `keep`."""
    kept = {path.name for path in keep}
    for path in _checkpoints(folder):
        if path.name not in kept:
            remove_folder(path)


def _checkpoints(folder: StoragePath) -> list[StoragePath]:
    if not folder.exists():
        return []
    return [
        p for p in folder.iterdir() if p.name.startswith("epoch-") and not p.name.endswith(".tmp")
    ]
