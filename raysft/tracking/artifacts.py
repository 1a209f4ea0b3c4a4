"""What a run hands to its trackers as files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from raysft.storage import StoragePath, local_copy

MODEL, REPORT = "model", "report.html"


@contextmanager
def delivered_files(run: StoragePath) -> Iterator[tuple[Path, Path | None]]:
    """The delivered model of a run as a folder on this machine's disk, and its report, if it has
    one.
    """
    if isinstance(run, Path):  # nothing to copy
        yield run / MODEL, run / REPORT if (run / REPORT).is_file() else None
        return
    with TemporaryDirectory(prefix="raysft-") as scratch:
        model = Path(scratch) / MODEL
        model.mkdir()
        for file in (run / MODEL).iterdir():
            _fetch(file, model)
        has_report = (run / REPORT).is_file()
        yield model, _fetch(run / REPORT, Path(scratch)) if has_report else None


def _fetch(file: StoragePath, folder: Path) -> Path:
    with local_copy(file) as copy:
        target = folder / file.name
        moved = shutil.move(copy, target)
        return Path(moved)
