"""What a person gives `raysft predict`: files, folders, patterns that the shell left as they are,
standard input.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysft.data.decoding import Decoding
from raysft.data.images import Decoded, decode
from raysft.data.names import readable
from raysft.data.walk import BROKEN_LINK, HIDDEN, FileCounts, FolderEntry, is_skipped, list_images
from raysft.errors import DataError, UserError

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class GivenImage:
    """One image to be predicted, under the name that its answer has; an error stands for one that
    is not there.
    """

    name: str
    source: Path | bytes | DataError

    def decode(self, how: Decoding = Decoding()) -> Decoded:
        """The image, RGB, upright, with what was noted; raises DataError that names it."""
        if isinstance(self.source, DataError):
            raise self.source
        if isinstance(self.source, bytes):
            return decode(self.source, self.name, how)
        try:
            content = self.source.read_bytes()  # of a pipe too, which Pillow could not go back in
        except OSError as error:
            raise DataError(
                readable(self.name), f"cannot be read ({error.strerror or error})"
            ) from None
        return decode(content, readable(self.name), how)


def find_given_images(words: Sequence[str]) -> tuple[list[GivenImage], list[FileCounts]]:
    """The images that words of the command line stand for, in their order, and what folders and
    patterns left out.

    What stands for no image is an error in its place. Raises DataError where a single word stands
    for none, and UserError for standard input that is asked for twice or is a terminal.
    """
    if words.count(STANDARD_INPUT) > 1:
        raise UserError("-", "is standard input, which holds one image", "give it once")
    given: list[GivenImage] = []
    counted: list[FileCounts] = []
    for word in words:
        try:
            given += _images_of(word, counted)
        except DataError as error:
            given.append(GivenImage(word, error))
    if len(given) == 1 and isinstance(given[0].source, DataError):
        raise given[0].source
    return given, counted


def _images_of(word: str, counted: list[FileCounts]) -> Iterator[GivenImage]:
    path = Path(word)
    if word == STANDARD_INPUT:
        yield GivenImage(word, _standard_input())
    elif path.is_dir():
        counts = FileCounts(readable(word))
        counted.append(counts)
        found = list_images(path, counts)
        yield from _or_error(found, counts, "holds no image")
    elif path.exists() or path.is_symlink() or not glob.has_magic(word):
        yield GivenImage(word, path)  # whatever it is called, and whether or not it is there
    else:
        counts = FileCounts(readable(word))
        counted.append(counts)
        yield from _or_error(_matching(word, counts), counts, "matches no image")


def _or_error(found: list[Path], counts: FileCounts, what: str) -> Iterator[GivenImage]:
    if not found:
        raise DataError(counts.folder, what + counts.held, "give images, or a folder of images")
    return (GivenImage(str(path), path) for path in found)


def _matching(pattern: str, counts: FileCounts) -> list[Path]:
    """The images that a pattern stands for, as a shell would expand it (** stands for any
    folders).
    """
    found: list[Path] = []
    named = Path(pattern).parts  # a hidden folder that the pattern itself names is meant
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.is_dir():
            found += [] if "**" in pattern else list_images(path, counts)
            continue
        hidden = any(is_skipped(part) for part in path.parts if part not in named)
        why = HIDDEN if hidden else _why_left_out(path)
        if why is not None:
            counts.leave_out(path, why)
        else:
            counts.use(path)
            found.append(path)
    return found


def _why_left_out(path: Path) -> str | None:
    try:
        return FolderEntry(path, path.stat()).reason_left_out()
    except OSError:
        return BROKEN_LINK


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "-", "is standard input, which is a terminal", "send an image: … - < cat.jpg"
        )
    content = sys.stdin.buffer.read()
    if not content:
        raise DataError("-", "nothing came on standard input", "send the bytes of one image")
    return content
