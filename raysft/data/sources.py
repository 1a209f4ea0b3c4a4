"""Where labelled images come from: a source lists them as chunks, and a chunk becomes one shard."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from raysft.data import cifar
from raysft.data.decoding import WHITE, Colour, ValueSpan
from raysft.data.folders import Folders, Labelled, describe_files
from raysft.data.formats import HEAD_BYTES
from raysft.data.images import Decoded, decode, read_size, read_span
from raysft.data.names import as_utf8
from raysft.data.order import stratified_order
from raysft.data.samples import needs_range
from raysft.data.shards import ImageSpec, Manifest, read_manifest
from raysft.data.walk import UNREADABLE, FileCounts
from raysft.errors import DataError
from raysft.job.plan import Outline
from raysft.job.spec import Data
from raysft.storage import StoragePath, storage_path

# Raw pixels are worth their space while images are small; larger ones of one size stay encoded.
RAW_PIXELS = 128 * 128
SHARD_BYTES = 16_000_000
SHARD_ROWS = 4096
ENCODED_BYTES = 20_000  # of an encoded file, as a guess that spares asking for the size of each
SIZES_AT_ONCE = 512  # files whose headers are read before it is looked whether they differ
MAX_NAMES_SHOWN = 5  # names of unreadable images
DIGITS_ROWS, DIGITS_TEST_ROWS = 1797, 360
DIGITS_CLASSES = tuple("0123456789")
DIGITS = "scikit-learn's digits"

BadFile = tuple[str, str]
"""A file and what is wrong with it."""


@dataclass(frozen=True)
class Source:
    """What is imported."""

    kind: str
    """digits | cifar10 | imagefolder"""
    path: str | None = None
    test: str | None = None
    """The folder of test images, where it is another one."""
    background: Colour = WHITE
    """What is behind transparent pixels."""


@dataclass(frozen=True)
class ChunkRows:
    """The content of one shard, images as `ImageSpec` says, and the files that cannot be read."""

    ids: np.ndarray
    images: np.ndarray | list[bytes]
    labels: np.ndarray
    bad: tuple[BadFile, ...] = ()
    pixel_sum: list[float] | None = None
    pixel_square_sum: list[float] | None = None
    decoded: dict[str, int] = field(default_factory=dict)
    """How many images had each of `raysft.data.images.QUIRKS`."""


class SourceChunk(ABC):
    """Rows that become one shard; picklable and small, read where it is written."""

    @abstractmethod
    def read(self, spec: ImageSpec) -> ChunkRows:
        """The rows, with whatever cannot be read listed in `bad`."""

    def files_to_range(self) -> list[str]:
        """The image files that may hold values whose range has to be known before any is read."""
        return []


@dataclass(frozen=True)
class Listing:
    """A source before it is read: what there is, how it will be stored, and what identifies it."""

    classes: tuple[str, ...]
    image: ImageSpec
    chunks: dict[str, tuple[SourceChunk, ...]]
    """Of each split."""
    rows: dict[str, int]
    where: str
    fingerprint: str
    everywhere: bool = False
    """Whether every node can read the chunks, or only this one."""
    counts: tuple[FileCounts, ...] = ()
    """What became of the files of each folder."""
    notes: tuple[str, ...] = ()
    """How the folders were read, a fact each."""
    labels: dict[str, frozenset[int]] = field(default_factory=dict)
    """The classes of which each split has an image, where that is known before they are read."""


def outline_source(data: Data, cache: Path) -> Outline:
    """Classes and rows of the data a job names, without reading images; raises DataError."""
    if data.source == "shards":
        folder = storage_path(data.path or "")
        return outline_dataset(folder, read_manifest(folder))
    if data.source == "digits":
        train_rows = DIGITS_ROWS - DIGITS_TEST_ROWS
        return Outline(DIGITS_CLASSES, train_rows, DIGITS_TEST_ROWS, DIGITS)
    if data.source == "cifar10":
        # Known without the archive, which need not be here yet.
        return Outline(cifar.CLASSES, 50_000, 10_000, str(cifar.locate(data.path, cache)))
    test = Path(data.test_path) if data.test_path else None
    folders = Folders.find(Path(data.path or ""), test)
    val = folders.splits.get("val")
    return Outline(
        folders.classes,
        len(folders.train),
        len(folders.test),
        folders.where,
        None if val is None else len(val),
        (*folders.notes, *describe_files(folders.counts)),
    )


def outline_dataset(folder: StoragePath, manifest: Manifest) -> Outline:
    """What a plan has to know of a data set; raises DataError where a split is missing."""
    missing = {"train", "test"} - manifest.splits.keys()
    if missing:
        raise DataError(
            str(folder), f"has no {' and no '.join(sorted(missing))} split", "import it with --test"
        )
    val = manifest.splits.get("val")
    return Outline(
        manifest.classes,
        manifest.splits["train"].rows,
        manifest.splits["test"].rows,
        str(folder),
        None if val is None else val.rows,
        (*manifest.notes, *describe_files(manifest.counts)),
    )


def describe_unreadable(manifest: Manifest) -> str:
    """How many unreadable images were left out of a data set, and some of their names."""
    text = f"{manifest.skipped:,} unreadable images were left out of {manifest.source}"
    names: list[str] = []
    for each in manifest.counts:
        names += each.examples.get(UNREADABLE, [])
    # A data set of an older raysft has no names.
    if not names:
        return text
    shown = names[:MAX_NAMES_SHOWN]
    more = manifest.skipped - len(shown)
    rest = f" and {more:,} more" if more > 0 else ""
    return f"{text}: {', '.join(shown)}{rest}"


def list_source(source: Source, cache: Path) -> Listing:
    """The listing of `digits`, `cifar10` or `imagefolder`; raises DataError."""
    if source.kind == "digits":
        return list_digits()
    if source.kind == "cifar10":
        return list_cifar10(cifar.locate(source.path, cache))
    if source.path is None:
        raise DataError(source.kind, "needs the path of a folder")
    test = Path(source.test) if source.test else None
    return list_imagefolder(Path(source.path), test)


# --- digits ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ArrayChunk(SourceChunk):
    """Rows that are in memory already."""

    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def read(self, spec: ImageSpec) -> ChunkRows:
        """Nothing of it can be unreadable."""
        return ChunkRows(self.ids, self.images, self.labels)


def list_digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits (UCI, 8×8 grey) as 32×32 RGB, a fifth as test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # From 0 to 16 to 0 to 255; each pixel becomes a square of 4 by 4, in three equal channels.
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    enlarged = grey.repeat(4, axis=1).repeat(4, axis=2)
    images = enlarged[..., None].repeat(3, axis=3)
    labels = digits.target.astype(np.int32)
    order = stratified_order(labels, seed=0)
    cut = DIGITS_ROWS - DIGITS_TEST_ROWS
    chunks: dict[str, tuple[SourceChunk, ...]] = {}
    for split, rows in (("train", order[:cut]), ("test", order[cut:])):
        chosen = np.sort(rows)
        chunks[split] = (ArrayChunk(np.arange(len(chosen)), images[chosen], labels[chosen]),)
    fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Listing(
        DIGITS_CLASSES,
        ImageSpec("raw", 32, 32),
        chunks,
        {"train": cut, "test": len(labels) - cut},
        DIGITS,
        fingerprint,
    )


# --- CIFAR-10 ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CifarChunk(SourceChunk):
    """One batch of the official archive."""

    archive: Path
    member: str
    first_id: int

    def read(self, spec: ImageSpec) -> ChunkRows:
        """A batch is read whole or refused: DataError ends the import."""
        images, labels = cifar.read_member(self.archive, self.member)
        ids = np.arange(len(labels)) + self.first_id
        return ChunkRows(ids, images, labels)


def list_cifar10(archive: Path) -> Listing:
    """CIFAR-10's 50,000 + 10,000 images of 32×32 in ten classes, from its archive or folder."""
    chunks: dict[str, tuple[SourceChunk, ...]] = {}
    rows = {}
    for split, members in (("train", cifar.TRAIN_MEMBERS), ("test", cifar.TEST_MEMBERS)):
        batches = []
        for number, member in enumerate(members):
            batches.append(CifarChunk(archive, member, number * cifar.ROWS_PER_MEMBER))
        chunks[split] = tuple(batches)
        rows[split] = len(members) * cifar.ROWS_PER_MEMBER
    # Not its content, whose checksum is looked at when it is downloaded.
    stat = archive.stat()
    identity = f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return Listing(cifar.CLASSES, ImageSpec("raw", 32, 32), chunks, rows, str(archive), fingerprint)


# --- folders of images -------------------------------------------------------------------------


def pixel_sums(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Sums over images of each channel's mean and mean square, of values from 0 to 1.

    images: (n, height, width, 3) uint8.
    """
    flat = images.reshape(-1, 3)
    pixels = max(1, int(np.prod(images.shape[1:3])))
    levels = np.arange(256, dtype=np.int64)
    sums = []
    squares = []
    for channel in range(3):
        # Sums of a histogram are of integers, hence exact, and need no copy of the image as floats.
        histogram = np.bincount(flat[:, channel], minlength=256)
        sums.append(int((histogram * levels).sum()) / 255 / pixels)
        squares.append(int((histogram * levels**2).sum()) / 255**2 / pixels)
    return sums, squares


@dataclass(frozen=True)
class FileChunk(SourceChunk):
    """Image files with their row ids and labels."""

    files: tuple[str, ...]
    ids: tuple[int, ...]
    labels: tuple[int, ...]

    def read(self, spec: ImageSpec) -> ChunkRows:
        """Decodes every file, whichever way it is stored: what cannot be read is known here."""
        kept: list[int] = []
        bad: list[BadFile] = []
        quirks: Counter[str] = Counter()
        images: list[np.ndarray] = []
        encoded: list[bytes] = []
        total = np.zeros(3)
        squares = np.zeros(3)
        for index, file in enumerate(self.files):
            try:
                content = Path(file).read_bytes()
                decoded = _decode_checked(content, file, spec)
            except DataError as error:
                bad.append((file, error.what))
                continue
            except OSError as error:
                bad.append((file, f"cannot be read ({error.strerror})"))
                continue
            kept.append(index)
            quirks.update(decoded.quirks)
            pixels = np.asarray(decoded.image)
            if spec.encoding == "raw":
                images.append(pixels)
                continue
            # The pixels are not kept, so their sums are taken now.
            encoded.append(content)
            image_sum, image_squares = pixel_sums(pixels[None])
            total += image_sum
            squares += image_squares
        rows = ChunkRows(
            np.asarray(self.ids, np.int64)[kept],
            encoded,
            np.asarray(self.labels, np.int32)[kept],
            tuple(bad),
            decoded=dict(quirks),
        )
        if spec.encoding == "raw":
            stacked = np.stack(images) if images else np.empty((0, *spec.shape), np.uint8)
            return replace(rows, images=stacked)
        return replace(rows, pixel_sum=total.tolist(), pixel_square_sum=squares.tolist())

    def files_to_range(self) -> list[str]:
        """By the first bytes of each file."""
        return [file for file in self.files if _may_need_range(file)]


def _decode_checked(content: bytes, file: str, spec: ImageSpec) -> Decoded:
    """Raises DataError for an image that is damaged or not of the size of the others."""
    decoded = decode(content, file, spec.decoding)
    width, height = decoded.image.size
    if spec.encoding == "raw" and (height, width) != spec.shape[:2]:
        raise DataError(file, f"is {width}×{height} pixels, its header said otherwise")
    return decoded


def _may_need_range(file: str) -> bool:
    try:
        with open(file, "rb", buffering=0) as content:
            return needs_range(content.read(HEAD_BYTES))
    except OSError:
        return False  # named when it is decoded


def read_spans(files: Sequence[str]) -> list[ValueSpan]:
    """The values of each image that has more than 8 bits a sample."""
    found: list[ValueSpan] = []
    for file in files:
        try:
            span = read_span(Path(file).read_bytes(), file)
        except OSError:
            continue  # named when it is decoded
        if span is not None:
            found.append(replace(span, file=as_utf8(file)))
    return found


def list_imagefolder(root: Path, test: Path | None) -> Listing:
    """Images in one folder a class; stored raw when all have one small size, else as they are."""
    folders = Folders.find(root, test)
    everything: list[str] = []
    for files in folders.splits.values():
        everything += [file for file, _ in files]
    spec = _common_size(everything)
    chunks: dict[str, tuple[SourceChunk, ...]] = {}
    rows: dict[str, int] = {}
    labels: dict[str, frozenset[int]] = {}
    digest = hashlib.sha256()
    for split, files in folders.splits.items():
        chunks[split] = tuple(_cut_into_chunks(files, spec))
        rows[split] = len(files)
        labels[split] = frozenset(label for _, label in files)
        for file, label in files:
            # By size and time, for reading every image to know whether it changed would take as
            # long as importing it.
            stat = os.stat(file)
            identity = [split, file, label, stat.st_size, stat.st_mtime_ns]
            digest.update(json.dumps(identity).encode())
    return Listing(
        folders.classes,
        spec,
        chunks,
        rows,
        folders.where,
        digest.hexdigest(),
        everywhere=True,
        counts=folders.counts,
        notes=folders.notes,
        labels=labels,
    )


def _cut_into_chunks(files: Labelled, spec: ImageSpec) -> Iterator[FileChunk]:
    """Chunks of shards of some 16 MB: large enough to read quickly, small enough to shuffle."""
    row_bytes = spec.nbytes if spec.encoding == "raw" else ENCODED_BYTES
    step = max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))
    for start in range(0, len(files), step):
        part = files[start : start + step]
        names, labels = zip(*part, strict=True)
        ids = tuple(range(start, start + len(part)))
        yield FileChunk(names, ids, labels)


def _common_size(files: list[str]) -> ImageSpec:
    """Raw with the one size that all readable images have, if it is small; else encoded files."""
    common: tuple[int, int] | None = None
    for size in _read_sizes(files):
        common = common or size
        if size != common or size[0] * size[1] > RAW_PIXELS:
            return ImageSpec("file")
    return ImageSpec("raw", *common) if common else ImageSpec("file")


def _read_sizes(files: list[str]) -> Iterator[tuple[int, int]]:
    """(height, width) of all images that can be read."""
    # Threads, for on a network disk nearly all of the time is waiting.
    with ThreadPoolExecutor(8) as pool:
        # Not all at once, so that mixed sizes end the reading early.
        for start in range(0, len(files), SIZES_AT_ONCE):
            for size in pool.map(_size_or_none, files[start : start + SIZES_AT_ONCE]):
                if size is not None:
                    yield size


def _size_or_none(file: str) -> tuple[int, int] | None:
    try:
        return read_size(Path(file))
    except DataError:
        return None  # named when it is decoded
