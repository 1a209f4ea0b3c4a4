"""Files below a folder, each either an image or left out for a reason that is counted.

Contents decide, not endings: an ending only spares the look into files that have one of the usual
endings of images.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from raysft.data.formats import HEAD_BYTES, IMAGE_EXTENSIONS, missing_decoder, sniff_format
from raysft.data.kinds import format_counts
from raysft.data.names import readable
from raysft.errors import DataError

MAX_EXAMPLES = 5  # names that are kept of each kind of files left out

HIDDEN = "hidden or system files"
BROKEN_LINK = "broken links"
READ_ALREADY = "links to folders that are read already"
USED_ALREADY = "links to images that are used already"
OUTSIDE = "outside of the class folders"
UNREADABLE = "unreadable images"

# What Windows, macOS, NAS systems, notebooks and version control leave in folders. Names that begin
# with a dot, among them the ._NAME of macOS archives, .DS_Store, .ipynb_checkpoints and
# .thumbnails, are left out anyway.
_SYSTEM = frozenset(
    {
        "__macosx",
        "@eadir",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "#recycle",
        "@recycle",
        "@recently-snapshot",
        "#snapshot",
        "system volume information",
        "lost+found",
        "__pycache__",
    }
)
_USUAL = IMAGE_EXTENSIONS | {".avif", ".heic", ".heif"}


@dataclass
class FileCounts:
    """What became of the files of a folder: `seen` is `used` and the sum of `left_out`, by kind."""

    folder: str
    seen: int = 0
    used: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Some names of each kind that was left out."""
    unusual: dict[str, int] = field(default_factory=dict)
    """Images that were used though their names have no usual ending of images, by ending."""

    def use(self, path: PurePath) -> None:
        """Count an image."""
        self.seen += 1
        self.used += 1
        if path.suffix.lower() not in _USUAL:
            ending = _ending(path)
            self.unusual[ending] = self.unusual.get(ending, 0) + 1

    def leave_out(self, path: PurePath, kind: str) -> None:
        """Count a file that is not used."""
        self.seen += 1
        self._note(path, kind)

    def unreadable(self, path: PurePath) -> None:
        """Count an image as left out after all: it turned out to be damaged."""
        self.used -= 1
        self._note(path, UNREADABLE)

    @property
    def held(self) -> str:
        """What files there are where none is an image, to be put behind "holds no image"."""
        if not self.seen:
            return ""
        return f": its {self.seen:,} files are {format_counts(self.left_out)}"

    def _note(self, path: PurePath, kind: str) -> None:
        self.left_out[kind] = self.left_out.get(kind, 0) + 1
        known = self.examples.setdefault(kind, [])
        if len(known) < MAX_EXAMPLES:
            known.append(readable(path))


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name is hidden or a system's own."""
    is_hidden = name.startswith(".")
    # Whatever its case: the disks of Windows and macOS keep it as somebody wrote it.
    return is_hidden or name.casefold() in _SYSTEM


@dataclass(frozen=True)
class FolderEntry:
    """A name in a folder and what it stands for, links followed."""

    path: Path
    status: os.stat_result | None
    """None for a link to nothing."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or a link to one."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    @property
    def identity(self) -> tuple[int, int]:
        """What two names of the same file or folder have in common."""
        if self.status is None:
            return 0, 0
        return self.status.st_dev, self.status.st_ino

    def reason_left_out(self) -> str | None:
        """Of a file: None for an image, whole or damaged; else the kind of file that it is."""
        if is_skipped(self.path.name):
            return HIDDEN
        if self.status is None:
            return BROKEN_LINK
        if not stat.S_ISREG(self.status.st_mode):
            return "sockets, pipes or devices"
        if self.path.suffix.lower() in IMAGE_EXTENSIONS:
            # What claims to be an image and is none is an unreadable image: the person decides.
            return None
        try:
            with self.path.open("rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError:
            return f"files that cannot be read ({_ending(self.path)})"
        return explain_not_image(sniff_format(head), self.path)


def list_entries(folder: Path) -> list[FolderEntry]:
    """What is in a folder, in the order of the names; raises DataError where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            # The order of a disk is its own, and that of the rows must be the same everywhere.
            ordered = sorted(found, key=lambda each: each.name)
            return [FolderEntry(Path(each.path), _status(each)) for each in ordered]
    except OSError as error:
        raise DataError(
            readable(folder), f"cannot be read ({error.strerror})", "give yourself the right to"
        ) from None


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def list_images(folder: Path, counts: FileCounts) -> list[Path]:
    """The images at or below a folder, in the order of their paths; counts all files.

    Links are followed. Raises DataError for a folder that cannot be read.
    """
    found = []
    # An image with a second name there, by a link, would count twice, and could be in two splits.
    used: set[tuple[int, int]] = set()
    for entry, why in walk_files(folder):
        if why is not None:
            counts.leave_out(entry.path, why)
        elif entry.identity in used:
            counts.leave_out(entry.path, USED_ALREADY)
        else:
            used.add(entry.identity)
            counts.use(entry.path)
            found.append(entry.path)
    return sorted(found, key=str)


def images_directly_in(folder: Path) -> Iterator[Path]:
    """The images in a folder, without those of folders below it."""
    for entry in list_entries(folder):
        if not entry.is_folder and entry.reason_left_out() is None:
            yield entry.path


def count_beside(folder: Path, taken: Collection[Path]) -> Iterator[FileCounts]:
    """Count the files below a folder that lie in none of the folders `taken`, folder by folder."""
    counts = FileCounts(readable(folder))
    for entry in list_entries(folder):
        path = entry.path
        if path in taken:
            continue
        if is_skipped(path.name):
            for each in _hidden_below(entry):
                counts.leave_out(each.path, HIDDEN)
        elif not entry.is_folder:
            counts.leave_out(path, entry.reason_left_out() or OUTSIDE)
        elif any(each.is_relative_to(path) for each in taken):
            # A class lies somewhere below it; what is beside that class is counted apart.
            yield from count_beside(path, taken)
        else:
            yield _all_outside(path)
    yield counts


def _all_outside(folder: Path) -> FileCounts:
    counts = FileCounts(readable(folder))
    for entry, why in walk_files(folder):
        counts.leave_out(entry.path, why or OUTSIDE)
    return counts


def walk_files(folder: Path) -> Iterator[tuple[FolderEntry, str | None]]:
    """All files at or below a folder, each with None for an image or why it is left out.

    Raises DataError. A folder that is reached a second time through a link is read once.
    """
    # A link to a folder that holds `folder` would lead here again, for ever.
    around = [folder, *folder.resolve().parents]
    read = {FolderEntry(each, each.stat()).identity for each in around}
    yield from _walk(folder, read)


def _walk(folder: Path, read: set[tuple[int, int]]) -> Iterator[tuple[FolderEntry, str | None]]:
    for entry in list_entries(folder):
        if is_skipped(entry.path.name):
            for each in _hidden_below(entry):
                yield each, HIDDEN
        elif not entry.is_folder:
            yield entry, entry.reason_left_out()
        elif entry.identity in read:
            yield entry, READ_ALREADY
        else:
            read.add(entry.identity)
            yield from _walk(entry.path, read)


def _hidden_below(entry: FolderEntry) -> Iterator[FolderEntry]:
    """A hidden file, or all files below a hidden folder; links in there are not followed."""
    if not entry.is_folder or entry.path.is_symlink():
        yield entry
        return
    for below, folders, files in os.walk(entry.path):
        links = [name for name in folders if Path(below, name).is_symlink()]
        for name in (*files, *links):
            yield FolderEntry(Path(below, name), None)


def explain_not_image(format: str | None, path: PurePath) -> str | None:
    """As for a file without a usual ending of images, whose first bytes are of `format`."""
    if format is None:
        return f"not images ({_ending(path)})"
    missing = missing_decoder(format)
    if missing is not None:
        return f"{format} images ({missing})"
    # Raw photos (.nef, .dng) and slides (.svs) are TIFF files that begin with a thumbnail, which
    # would be taken for the image.
    if format == "TIFF" and path.suffix:
        return f"not images ({_ending(path)})"
    return None


def _ending(path: PurePath) -> str:
    return readable(path.suffix.lower()) or "no ending"
