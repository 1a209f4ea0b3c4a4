"""Where the checkpoints of a trial lie; known without torch."""

from __future__ import annotations

from raysft.storage import Place, remove

STATE = "state.json"


def checkpoint_path(folder: Place, epoch: int) -> Place:
    """Where the checkpoint after `epoch` epochs lies."""
    return folder / f"epoch-{epoch:04d}"


def last_checkpoint(folder: Place) -> Place | None:
    """The newest complete checkpoint."""
    newest_first = sorted(_checkpoints(folder), key=lambda p: p.name, reverse=True)
    return next((p for p in newest_first if (p / STATE).is_file()), None)


def prune(folder: Place, keep: set[int]) -> None:
    """Remove all checkpoints but those of the epochs in `keep`."""
    kept = {checkpoint_path(folder, epoch).name for epoch in keep}
    for path in _checkpoints(folder):
        if path.name not in kept:
            remove(path)


def _checkpoints(folder: Place) -> list[Place]:
    if not folder.exists():
        return []
    return [p for p in folder.iterdir() if p.name.startswith("epoch-") and not p.name.endswith(".tmp")]
