"""`raysft data show`: what a data set holds, or how a folder of images would be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from raysft.console import Output, make_table
from raysft.data.folders import Folders, describe_files
from raysft.data.kinds import format_counts
from raysft.data.names import clipped, first_names, readable
from raysft.data.shards import MANIFEST, read_manifest
from raysft.data.walk import FileCounts
from raysft.errors import UserError
from raysft.storage import RemotePath, StoragePath, storage_path

SHOWN = 3  # names of files of a kind
MOST_ROWS = 20  # of a table of folders


def show_data(folder: str, test: str | None, as_json: bool, output: Output) -> None:
    """What a data set of shards holds, or how a folder of images would be read; raises
    DataError.
    """
    where = storage_path(folder)
    if test is None and (
        isinstance(where, RemotePath) or (where / MANIFEST).is_file() or not _has_folders(where)
    ):
        show_dataset(folder, as_json, output)
        return
    if isinstance(where, RemotePath):
        raise UserError(
            f"--test {test}", "is for a folder of images, which is on a disk", "leave it out"
        )
    show_folder(where, Path(test) if test else None, as_json, output)


def show_dataset(folder: str, as_json: bool, output: Output) -> None:
    """What a data set of shards holds, as a table or a document."""
    manifest = read_manifest(storage_path(folder))
    splits = [
        {"split": name, "images": split.rows, "shards": len(split.files)}
        for name, split in manifest.splits.items()
    ]
    if as_json:
        output.json(
            {
                "path": str(folder),
                "classes": manifest.classes,
                "splits": splits,
                "mean": manifest.mean,
                "std": manifest.std,
                "skipped": manifest.skipped,
                "encoding": manifest.image.encoding,
                "fingerprint": manifest.fingerprint,
                "format": manifest.format,
                "notes": manifest.notes,
                "files": [asdict(each) for each in manifest.counts],
            }
        )
        return
    size = (
        f"{manifest.image.width}×{manifest.image.height} pixels"
        if manifest.image.width
        else "mixed sizes"
    )
    skipped = f", {manifest.skipped} unreadable images left out" if manifest.skipped else ""
    names = first_names(manifest.classes)
    output.line(f"{readable(folder)}: {len(manifest.classes)} classes ({names}), {size}{skipped}")
    for line in (*manifest.notes, *describe_files(manifest.counts)):
        output.line(line)
    output.show(make_table(splits, ("split", "images", "shards"), _number))
    _show_left_out(manifest.counts, output)


def show_folder(folder: Path, test: Path | None, as_json: bool, output: Output) -> None:
    """How a folder of images would be read: classes, splits, and every kind of file that is left
    out.
    """
    found = Folders.find(folder, test)
    rows = {
        split: np.bincount([label for _, label in files], minlength=len(found.classes))
        for split, files in found.splits.items()
    }
    by_class = [
        {"class": name, **{split: int(n[label]) for split, n in rows.items()}}
        for label, name in enumerate(found.classes)
    ]
    if as_json:
        output.json(
            {
                "path": str(folder),
                "classes": found.classes,
                "images": by_class,
                "notes": found.notes,
                "splits": [
                    {"split": split, "images": len(files)} for split, files in found.splits.items()
                ],
                "files": [asdict(each) for each in found.counts],
            }
        )
        return
    output.line(f"{readable(folder)}: {len(found.classes)} classes ({first_names(found.classes)})")
    for line in (*found.notes, *describe_files(found.counts)):
        output.line(line)
    output.line()
    shown = [row | {"class": clipped(str(row["class"]))} for row in by_class[:MOST_ROWS]]
    output.show(make_table(shown, ("class", *rows), _number))
    if len(by_class) > MOST_ROWS:
        output.line(f"… and {len(by_class) - MOST_ROWS:,} more; --json has all")
    _show_left_out(found.counts, output)


def _has_folders(where: StoragePath) -> bool:
    return isinstance(where, Path) and where.is_dir()


def _show_left_out(counts: Sequence[FileCounts], output: Output) -> None:
    """The folders of which files are left out, by kind, and some of those files."""
    some = [each for each in counts if each.left_out]
    if not some:
        return
    rows = [
        {
            "folder": each.folder,
            "files": each.seen,
            "used": each.used,
            "left out": format_counts(each.left_out),
        }
        for each in some
    ]
    output.line()
    output.show(make_table(rows[:MOST_ROWS], ("folder", "files", "used", "left out"), _number))
    if len(rows) > MOST_ROWS:
        output.line(f"… and {len(rows) - MOST_ROWS:,} more folders; --json has all")
    output.line("left out, for example:")
    for kind in sorted({kind for each in some for kind in each.left_out}):
        names = [name for each in some for name in each.examples.get(kind, [])][:SHOWN]
        more = sum(each.left_out.get(kind, 0) for each in some) - len(names)
        output.line(f"  {kind}: {', '.join(names)}" + (f" and {more:,} more" if more else ""))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
