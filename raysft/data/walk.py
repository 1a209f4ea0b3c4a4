"""Files below a folder, each either an image or left out for a reason that is counted.

Contents decide, not endings: an ending only spares the look into files that have one of the usual endings of images.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from raysft.data.images import EXTENSIONS, can_decode, sniff
from raysft.errors import DataError

EXAMPLES = 5  # names that are kept of each kind of files left out

HIDDEN = "hidden or system files"
BROKEN_LINK = "broken links"
READ_ALREADY = "links to folders that are read already"
USED_ALREADY = "links to images that are used already"
OUTSIDE = "outside of the class folders"
UNREADABLE = "unreadable images"

# What Windows, macOS, NAS systems, notebooks and version control leave in folders. Names that begin with a dot, among
# them the ._NAME of macOS archives, .DS_Store, .ipynb_checkpoints and .thumbnails, are left out anyway.
_SYSTEM = frozenset({"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r",
                     "$recycle.bin", "#recycle", "@recycle", "@recently-snapshot", "#snapshot",
                     "system volume information", "lost+found", "__pycache__"})
HEAD_BYTES = 64  # that `sniff` looks at
_USUAL = EXTENSIONS | {".avif", ".heic", ".heif"}


@dataclass
class Counts:
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
            self.unusual[_ending(path)] = self.unusual.get(_ending(path), 0) + 1

    def leave_out(self, path: PurePath, kind: str) -> None:
        """Count a file that is not used."""
        self.seen += 1
        self._note(path, kind)

    def unreadable(self, path: PurePath) -> None:
        """Count an image as left out after all: it turned out to be damaged."""
        self.used -= 1
        self._note(path, UNREADABLE)

    def _note(self, path: PurePath, kind: str) -> None:
        self.left_out[kind] = self.left_out.get(kind, 0) + 1
        known = self.examples.setdefault(kind, [])
        if len(known) < EXAMPLES:
            known.append(readable(path))


def readable(name: str | PurePath) -> str:
    r"""A file name as text that can stand anywhere: bytes that are not UTF-8 as \xe9, control characters escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name is hidden or a system's own."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def image_files(folder: Path, counts: Counts) -> list[Path]:
    """The images in a folder and all folders below it, in the order of their paths, links followed; counts all files.

    An image that has a second name there, by a link, is used once.

    Raises DataError for a folder that cannot be read.
    """
    found = []
    used: set[tuple[int, int]] = set()
    for path, kind in walk(folder):
        if kind is not None:
            counts.leave_out(path, kind)
        elif (identity := identity_of(path)) in used:
            counts.leave_out(path, USED_ALREADY)
        else:
            used.add(identity)
            counts.use(path)
            found.append(path)
    return sorted(found)


def images_directly_in(folder: Path) -> Iterator[Path]:
    """The images in a folder, without those of folders below it."""
    for path in _entries(folder):
        if not path.is_dir() and _why_left_out(path) is None:
            yield path


def count_beside(folder: Path, taken: Collection[Path]) -> Iterator[Counts]:
    """Count the files below a folder that lie in none of the folders `taken`, a record for each folder that has any."""
    counts = Counts(readable(folder))
    for path in _entries(folder):
        if path in taken:
            continue
        if is_skipped(path.name):
            for file in _files_below(path):
                counts.leave_out(file, HIDDEN)
        elif not path.is_dir():
            counts.leave_out(path, _why_left_out(path) or OUTSIDE)
        elif any(each.is_relative_to(path) for each in taken):
            yield from count_beside(path, taken)
        else:
            yield _all_outside(path)
    yield counts


def _all_outside(folder: Path) -> Counts:
    counts = Counts(readable(folder))
    for path, why in walk(folder):
        counts.leave_out(path, why or OUTSIDE)
    return counts


def walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """(file, None for an image or why it is left out) of all files at or below a folder; raises DataError.

    A folder that is reached a second time through a link is read once, and one that holds `folder` not at all.
    """
    around = [folder, *folder.resolve().parents]
    yield from _walk(folder, {identity_of(each) for each in around})


def _walk(folder: Path, read: set[tuple[int, int]]) -> Iterator[tuple[Path, str | None]]:
    for path in _entries(folder):
        if is_skipped(path.name):
            yield from ((file, HIDDEN) for file in _files_below(path))
        elif not path.is_dir():
            yield path, _why_left_out(path)
        elif (identity := identity_of(path)) in read:
            yield path, READ_ALREADY
        else:
            read.add(identity)
            yield from _walk(path, read)


def _files_below(path: Path) -> Iterator[Path]:
    """A hidden file, or all files below a hidden folder; links in there are not followed."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for below, folders, files in os.walk(path):
        yield from (Path(below, name) for name in files)
        yield from (Path(below, name) for name in folders if Path(below, name).is_symlink())


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(readable(folder), f"cannot be read ({error.strerror})", "give yourself the right to") from None


def identity_of(path: Path) -> tuple[int, int]:
    """What two names of the same file or folder have in common."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _why_left_out(path: Path) -> str | None:
    """None for an image, whole or damaged; else the kind of file that it is."""
    if is_skipped(path.name):
        return HIDDEN
    if not path.exists():
        return BROKEN_LINK
    if not path.is_file():
        return "sockets, pipes or devices"
    ending = path.suffix.lower()
    if ending in EXTENSIONS:
        return None  # what claims to be an image and is none is an unreadable image, which is the person's to decide
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return f"files that cannot be read ({_ending(path)})"
    return why_no_image(sniff(head), path)


def why_no_image(format: str | None, path: PurePath) -> str | None:
    """As for a file without a usual ending of images, whose first bytes are of `format`."""
    if format is None:
        return f"not images ({_ending(path)})"
    missing = can_decode(format)
    if missing is not None:
        return f"{format} images ({missing})"
    # Raw photos and slides are TIFF files that begin with a thumbnail.
    return f"not images ({_ending(path)})" if format == "TIFF" and path.suffix else None


def _ending(path: PurePath) -> str:
    return readable(path.suffix.lower()) or "no ending"
