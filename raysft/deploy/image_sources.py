"""What is to be predicted, in chunks that can be read apart: image files of a folder, or rows of a
data set.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import pyarrow as pa

from raysft.data.decoding import find_conflict
from raysft.data.formats import HEAD_BYTES, IMAGE_EXTENSIONS, sniff_format
from raysft.data.images import fit, open_rgb, stored_rgb
from raysft.data.names import readable
from raysft.data.shards import (
    MANIFEST,
    ImageSpec,
    ShardFile,
    read_manifest,
    read_table,
    unpack_rows,
)
from raysft.data.walk import (
    BROKEN_LINK,
    HIDDEN,
    FileCounts,
    explain_not_image,
    is_skipped,
    walk_files,
)
from raysft.errors import DataError
from raysft.results.model import ModelCard
from raysft.storage import RemotePath, StoragePath

CHUNK_IMAGES = 512  # what an interruption costs an actor at most
MOST_CHUNKS = 10_000  # each is a file and a row of Ray Data

Decode = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Item:
    """One image: its name, its class where it is known, and what decodes it.

    `decode` gives (height, width, 3) uint8; it raises DataError for a bad image.
    """

    name: str
    label: str | None
    decode: Decode


class Chunk(Protocol):
    """Some of the images, small enough to be sent around."""

    @property
    def images(self) -> int:
        """How many there are."""

    def items(self, card: ModelCard) -> Iterator[Item]:
        """For a model, the images in their order; raises DataError where they cannot be found at
        all.
        """


@dataclass(frozen=True)
class Source:
    """All images; `fingerprint` says whether they are still the same, `labelled` whether classes
    are known.
    """

    chunks: tuple[Chunk, ...]
    fingerprint: str
    labelled: bool
    left_out: dict[str, int] = field(default_factory=dict)
    """Files that are no images, by kind."""

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(chunk.images for chunk in self.chunks)


@dataclass(frozen=True)
class Files:
    """Image files below a folder, by their paths relative to it."""

    folder: StoragePath
    names: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.names)

    def items(self, card: ModelCard) -> Iterator[Item]:
        """As `Chunk` has them."""
        for name in self.names:
            yield Item(name, None, functools.partial(self._decode, name, card))

    def _decode(self, name: str, card: ModelCard) -> np.ndarray:
        try:
            # A file may have gone since the folder was listed: a bad image, not the end.
            image = open_rgb((self.folder / name).read_bytes(), name, card.decoding)
        except OSError as error:
            raise DataError(name, f"cannot be read ({error.strerror or error})") from None
        return fit(image, card.height, card.width, card.resampling)


@dataclass(frozen=True)
class ShardRows:
    """Rows `start` to `stop` of a shard, named SPLIT/ID."""

    folder: StoragePath
    split: str
    file: ShardFile
    spec: ImageSpec
    classes: tuple[str, ...]
    start: int
    stop: int

    @property
    def images(self) -> int:
        """How many there are."""
        return self.stop - self.start

    def items(self, card: ModelCard) -> Iterator[Item]:
        """As `Chunk` has them."""
        # Encoded images are decoded as the model says; pixels are what the import made of them.
        why = (
            find_conflict(self.spec.decoding, card.decoding)
            if self.spec.encoding == "raw"
            else None
        )
        if why is not None:
            raise DataError(
                str(self.folder),
                f"holds images that were scaled otherwise than those of the model: {why}",
                "give the folder of the original images",
            )
        table = _shard(self.folder, self.file).slice(self.start, self.images)
        ids, images, labels = unpack_rows(table, self.spec)
        for row, image, label in zip(ids, images, labels, strict=True):
            name = f"{self.split}/{row}"
            yield Item(name, self.classes[label], functools.partial(_decode_row, image, name, card))


@functools.lru_cache(maxsize=1)  # its other chunks come to the same process next
def _shard(folder: StoragePath, file: ShardFile) -> pa.Table:
    return read_table(folder, file)


def _decode_row(image: bytes | np.ndarray, name: str, card: ModelCard) -> np.ndarray:
    return fit(stored_rgb(image, name, card.decoding), card.height, card.width, card.resampling)


def list_source(where: StoragePath, split: str | None = None) -> Source:
    """The images of a folder and all folders below it, or of a data set (of one split of it);
    raises DataError.
    """
    # A data set of shards is a folder as well, of Parquet files in place of images.
    if (where / MANIFEST).is_file():
        return _of_dataset(where, split)
    if split is not None:
        raise DataError(str(where), f"has no split {split}: it is not a data set")
    return _of_folder(where)


def _of_dataset(folder: StoragePath, split: str | None) -> Source:
    manifest = read_manifest(folder)
    if split is not None and split not in manifest.splits:
        raise DataError(
            str(folder), f"has no split {split}", f"it has {', '.join(manifest.splits)}"
        )
    chosen = {name: of for name, of in manifest.splits.items() if split in (None, name)}
    size = _chunk_size(sum(of.rows for of in chosen.values()))
    chunks: list[Chunk] = [
        ShardRows(
            folder,
            name,
            file,
            manifest.image,
            manifest.classes,
            start,
            min(start + size, file.rows),
        )
        for name, of in chosen.items()
        for file in of.files
        # Never across two shards, so that an actor has one shard in memory.
        for start in range(0, file.rows, size)
    ]
    return Source(tuple(chunks), _digest([manifest.fingerprint, split]), labelled=True)


def _of_folder(folder: StoragePath) -> Source:
    counts = FileCounts(str(folder))
    # Sorted: the order of a directory differs between disks, and with it would the chunks.
    found = sorted(_local(folder, counts) if isinstance(folder, Path) else _remote(folder, counts))
    if not found:
        raise DataError(
            readable(str(folder)),
            f"holds no image{counts.held}",
            "give a folder of images, or a data set of shards",
        )
    names, size = tuple(name for name, *_ in found), _chunk_size(len(found))
    chunks: list[Chunk] = [
        Files(folder, names[start : start + size]) for start in range(0, len(names), size)
    ]
    return Source(tuple(chunks), _digest(found), labelled=False, left_out=counts.left_out)


def _chunk_size(images: int) -> int:
    """Images of a chunk."""
    # By their number alone, and not by the CPUs there are: an interrupted prediction finds its
    # chunks again, also on other nodes.
    return max(CHUNK_IMAGES, math.ceil(images / MOST_CHUNKS))


Found = Iterator[tuple[str, int, int]]  # relative path, size in bytes, time of change in ns


def _local(folder: Path, counts: FileCounts) -> Found:
    """The images at or below a folder; counts all files. A folder that has two names is read once,
    a file for each.
    """
    if not folder.is_dir():
        raise DataError(
            readable(folder), "is not a folder", "give a folder of images, or a data set of shards"
        )
    for entry, why in walk_files(folder):
        if why is not None or entry.status is None:
            counts.leave_out(entry.path, why or BROKEN_LINK)
            continue
        counts.use(entry.path)
        yield (
            entry.path.relative_to(folder).as_posix(),
            entry.status.st_size,
            entry.status.st_mtime_ns,
        )


def _remote(folder: RemotePath, counts: FileCounts) -> Found:
    """As `_local`, of an object store."""
    from pyarrow.fs import FileSelector

    root = folder.key.rstrip("/") + "/"
    for info in folder.fs.get_file_info(
        # One listing of everything: an object store charges for each request.
        FileSelector(folder.key, recursive=True, allow_not_found=True)
    ):
        if not info.is_file:
            continue
        name = info.path.removeprefix(root)
        why = _why_left_out(folder, name)
        if why is not None:
            counts.leave_out(Path(name), why)
            continue
        counts.use(Path(name))
        # With size and time, so that a file that changed makes it another prediction.
        yield name, info.size, info.mtime_ns


def _why_left_out(folder: RemotePath, name: str) -> str | None:
    """None for an image of an object store; else the kind of file that it is."""
    path = PurePosixPath(name)
    if any(is_skipped(part) for part in path.parts):
        return HIDDEN
    if path.suffix.lower() in IMAGE_EXTENSIONS:
        return None
    with folder.fs.open_input_stream((folder / name).key) as stream:
        # Its first bytes alone: the ending did not say what it is, and it may be a video.
        head = stream.read(HEAD_BYTES)
    return explain_not_image(sniff_format(head), path)


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
