"""What is to be predicted, in chunks that can be read apart: image files of a folder, or rows of a data set."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raysft.data.images import EXTENSIONS, fit, open_rgb, stored_rgb
from raysft.data.shards import MANIFEST, ImageSpec, ShardFile, columns, read_manifest, read_table
from raysft.errors import DataError
from raysft.storage import Place

CHUNK_IMAGES = 512
MOST_CHUNKS = 10_000

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

    def items(self, height: int, width: int) -> Iterator[Item]:
        """The images in their order; raises DataError where they cannot be found at all."""


@dataclass(frozen=True)
class Source:
    """All images; `fingerprint` says whether they are still the same, `labelled` whether classes are known."""

    chunks: tuple[Chunk, ...]
    fingerprint: str
    labelled: bool

    @property
    def images(self) -> int:
        return sum(chunk.images for chunk in self.chunks)


@dataclass(frozen=True)
class Files:
    """Image files below a folder, by their paths relative to it."""

    folder: Place
    names: tuple[str, ...]

    @property
    def images(self) -> int:
        return len(self.names)

    def items(self, height: int, width: int) -> Iterator[Item]:
        for name in self.names:
            yield Item(name, None, functools.partial(self._decode, name, height, width))

    def _decode(self, name: str, height: int, width: int) -> np.ndarray:
        try:
            return fit(open_rgb((self.folder / name).read_bytes(), name), height, width)
        except OSError as error:
            raise DataError(name, f"cannot be read ({error.strerror or error})") from None


@dataclass(frozen=True)
class ShardRows:
    """Rows `start` to `stop` of a shard, named SPLIT/ID."""

    folder: Place
    split: str
    file: ShardFile
    spec: ImageSpec
    classes: tuple[str, ...]
    start: int
    stop: int

    @property
    def images(self) -> int:
        return self.stop - self.start

    def items(self, height: int, width: int) -> Iterator[Item]:
        table = _shard(self.folder, self.file).slice(self.start, self.images)
        ids, images, labels = columns(table, self.spec)
        for row, image, label in zip(ids, images, labels, strict=True):
            name = f"{self.split}/{row}"
            yield Item(name, self.classes[label], functools.partial(_decode_row, image, name, height, width))


@functools.lru_cache(maxsize=1)  # its other chunks come to the same process next
def _shard(folder: Place, file: ShardFile) -> pa.Table:
    return read_table(folder, file)


def _decode_row(image: Any, name: str, height: int, width: int) -> np.ndarray:
    return fit(stored_rgb(image, name), height, width)


def source_of(where: Place, split: str | None = None) -> Source:
    """The images of a folder and all folders below it, or of a data set (of one split of it); raises DataError."""
    if (where / MANIFEST).is_file():
        return _of_dataset(where, split)
    if split is not None:
        raise DataError(str(where), f"has no split {split}: it is not a data set")
    return _of_folder(where)


def _of_dataset(folder: Place, split: str | None) -> Source:
    manifest = read_manifest(folder)
    if split is not None and split not in manifest.splits:
        raise DataError(str(folder), f"has no split {split}", f"it has {', '.join(manifest.splits)}")
    chosen = {name: of for name, of in manifest.splits.items() if split in (None, name)}
    size = _chunk_size(sum(of.rows for of in chosen.values()))
    chunks: list[Chunk] = [
        ShardRows(folder, name, file, manifest.image, manifest.classes, start, min(start + size, file.rows))
        for name, of in chosen.items() for file in of.files for start in range(0, file.rows, size)]
    return Source(tuple(chunks), _digest([manifest.fingerprint, split]), labelled=True)


def _of_folder(folder: Place) -> Source:
    found = sorted(_walk(folder))
    if not found:
        raise DataError(str(folder), "holds no image", f"give a folder of {', '.join(sorted(EXTENSIONS))} files, or a "
                        "data set of shards")
    names, size = tuple(name for name, *_ in found), _chunk_size(len(found))
    chunks: list[Chunk] = [Files(folder, names[start:start + size]) for start in range(0, len(names), size)]
    return Source(tuple(chunks), _digest(found), labelled=False)


def _chunk_size(images: int) -> int:
    """Images of a chunk: a function of their number alone, so that an interrupted prediction finds its chunks again."""
    return max(CHUNK_IMAGES, math.ceil(images / MOST_CHUNKS))


def _walk(folder: Place) -> Iterator[tuple[str, int, int]]:
    """(relative path, size, time of change in ns) of each image file at or below a folder."""
    if isinstance(folder, Path):
        if not folder.is_dir():
            raise DataError(str(folder), "is not a folder", "give a folder of images, or a data set of shards")
        for below, folders, files in os.walk(folder):
            folders.sort()
            for name in files:
                path = Path(below, name)
                if path.suffix.lower() in EXTENSIONS and path.is_file():
                    stat = path.stat()
                    yield path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns
        return
    from pyarrow.fs import FileSelector

    for info in folder.fs.get_file_info(FileSelector(folder.key, recursive=True, allow_not_found=True)):
        if info.is_file and Path(info.base_name).suffix.lower() in EXTENSIONS:
            yield info.path.removeprefix(folder.key.rstrip("/") + "/"), info.size, info.mtime_ns


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
