"""Where labelled images come from. Each source lists its images as chunks; one chunk becomes one
shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from raysft.data import cifar
from raysft.data.decoding import ValueSpan
from raysft.data.folders import Folders, describe_files
from raysft.data.images import HEAD_BYTES, decode, read_size, read_span
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
MAX_NAMES_SHOWN = 5  # names of unreadable images
DIGITS_ROWS, DIGITS_TEST_ROWS = 1797, 360


@dataclass(frozen=True)
class ChunkRows:
    """The content of one shard: ids, images (as `ImageSpec` says), labels, and the files that could
    not be read.
    """

    ids: np.ndarray
    images: np.ndarray | list[bytes]
    labels: np.ndarray
    bad: tuple[tuple[str, str], ...] = ()
    """(file, what is wrong with it) of those that could not be read."""
    pixel_sum: tuple[float, ...] | None = None
    pixel_square_sum: tuple[float, ...] | None = None
    decoded: dict[str, int] = field(default_factory=dict)
    """How many images were special in what way; see `raysft.data.images.QUIRKS`."""


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
    """A source before it is read: classes, chunks a split, how images will be stored, and what
    identifies it.
    """

    classes: tuple[str, ...]
    image: ImageSpec
    chunks: dict[str, tuple[SourceChunk, ...]]
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
        return Outline(
            tuple(map(str, range(10))), train_rows, DIGITS_TEST_ROWS, "scikit-learn's digits"
        )
    if data.source == "cifar10":
        return Outline(cifar.CLASSES, 50_000, 10_000, str(cifar.locate(data.path, cache)))
    folders = Folders.find(Path(data.path or ""), Path(data.test_path) if data.test_path else None)
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
    """What a plan has to know of a data set; raises DataError where it does not have what a run
    needs.
    """
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
    names = [name for each in manifest.counts for name in each.examples.get(UNREADABLE, [])][
        :MAX_NAMES_SHOWN
    ]
    named = f": {', '.join(names)}" if names else ""
    more = (
        f" and {manifest.skipped - len(names):,} more"
        if names and manifest.skipped > len(names)
        else ""
    )
    return f"{manifest.skipped:,} unreadable images were left out of {manifest.source}{named}{more}"


def list_source(kind: str, path: str | None, test: str | None, cache: Path) -> Listing:
    """The listing of `digits`, `cifar10` or `imagefolder`; raises DataError."""
    if kind == "digits":
        return list_digits()
    if kind == "cifar10":
        return list_cifar10(cifar.locate(path, cache))
    if path is None:
        raise DataError(kind, "needs the path of a folder")
    return list_imagefolder(Path(path), Path(test) if test else None)


# --- digits ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ArrayChunk(SourceChunk):
    """Rows that are in memory already."""

    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def read(self, spec: ImageSpec) -> ChunkRows:
        return ChunkRows(self.ids, self.images, self.labels)


def list_digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits (UCI, 8×8 grey) as 32×32 RGB, every fifth of a class
    held out.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)[..., None], 3, axis=3)
    labels = digits.target.astype(np.int32)
    order = stratified_order(labels, seed=0)
    cut = DIGITS_ROWS - DIGITS_TEST_ROWS
    chunks: dict[str, tuple[SourceChunk, ...]] = {}
    for split, chosen in (("train", np.sort(order[:cut])), ("test", np.sort(order[cut:]))):
        chunks[split] = (ArrayChunk(np.arange(len(chosen)), images[chosen], labels[chosen]),)
    fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Listing(
        tuple(map(str, range(10))),
        ImageSpec("raw", 32, 32),
        chunks,
        {"train": cut, "test": len(labels) - cut},
        "scikit-learn's digits",
        fingerprint,
    )


# --- CIFAR-10 ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CifarChunk(SourceChunk):
    """One batch of the official archive."""

    place: Path
    member: str
    first_id: int

    def read(self, spec: ImageSpec) -> ChunkRows:
        images, labels = cifar.read_member(self.place, self.member)
        return ChunkRows(np.arange(len(labels)) + self.first_id, images, labels)


def list_cifar10(place: Path) -> Listing:
    """CIFAR-10's 50,000 + 10,000 images of 32×32 in ten classes, from its archive or folder."""
    chunks: dict[str, tuple[SourceChunk, ...]] = {}
    rows = {}
    for split, members in (("train", cifar.TRAIN_MEMBERS), ("test", cifar.TEST_MEMBERS)):
        chunks[split] = tuple(
            CifarChunk(place, m, i * cifar.ROWS_PER_MEMBER) for i, m in enumerate(members)
        )
        rows[split] = len(members) * cifar.ROWS_PER_MEMBER
    stat = place.stat()
    fingerprint = hashlib.sha256(
        f"{place.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()
    ).hexdigest()
    return Listing(cifar.CLASSES, ImageSpec("raw", 32, 32), chunks, rows, str(place), fingerprint)


# --- folders of images -------------------------------------------------------------------------


def pixel_sums(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Sums over images (n, height, width, 3) uint8 of each channel's mean and mean square, of
    values 0 to 1.
    """
    flat = images.reshape(-1, 3)
    pixels = max(1, int(np.prod(images.shape[1:3])))
    histograms = [np.bincount(flat[:, c], minlength=256) for c in range(3)]
    levels = np.arange(256, dtype=np.int64)
    return (
        [int((h * levels).sum()) / 255 / pixels for h in histograms],
        [int((h * levels**2).sum()) / 255**2 / pixels for h in histograms],
    )


@dataclass(frozen=True)
class FileChunk(SourceChunk):
    """Image files with their row ids and labels."""

    files: tuple[str, ...]
    ids: tuple[int, ...]
    labels: tuple[int, ...]

    def read(self, spec: ImageSpec) -> ChunkRows:
        kept: list[int] = []
        images: list[np.ndarray] = []
        encoded: list[bytes] = []
        bad: list[tuple[str, str]] = []
        total, squares = np.zeros(3), np.zeros(3)
        special: Counter[str] = Counter()
        for i, file in enumerate(self.files):
            try:
                raw = Path(file).read_bytes()
                decoded = decode(raw, file, spec.decoding)
                pixels = np.asarray(decoded.image)
                if spec.encoding == "raw" and pixels.shape != spec.shape:
                    raise DataError(
                        file,
                        f"is {pixels.shape[1]}×{pixels.shape[0]} pixels, its header said otherwise",
                    )
            except (DataError, OSError) as error:
                bad.append(
                    (
                        file,
                        error.what
                        if isinstance(error, DataError)
                        else f"cannot be read ({error.strerror})",
                    )
                )
                continue
            kept.append(i)
            special.update(decoded.quirks)
            if spec.encoding == "raw":
                images.append(pixels)
            else:
                encoded.append(raw)
                sums = pixel_sums(pixels[None])
                total += sums[0]
                squares += sums[1]
        ids, labels = np.asarray(self.ids, np.int64)[kept], np.asarray(self.labels, np.int32)[kept]
        if spec.encoding == "raw":
            stacked = np.stack(images) if images else np.empty((0, *spec.shape), np.uint8)
            return ChunkRows(ids, stacked, labels, tuple(bad), decoded=dict(special))
        return ChunkRows(
            ids,
            encoded,
            labels,
            tuple(bad),
            tuple(total.tolist()),
            tuple(squares.tolist()),
            dict(special),
        )

    def files_to_range(self) -> list[str]:
        return [file for file in self.files if _may_need_range(file)]


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
    """Images in one folder a class; stored raw when all have one small size, as they are
    otherwise.
    """
    folders = Folders.find(root, test)
    spec = _common_size([f for files in folders.splits.values() for f, _ in files])
    per_row = int(np.prod(spec.shape)) if spec.encoding == "raw" else 20_000
    step = max(1, min(SHARD_ROWS, SHARD_BYTES // per_row))
    chunks: dict[str, tuple[SourceChunk, ...]] = {}
    digest = hashlib.sha256()
    for split, files in folders.splits.items():
        cuts = range(0, len(files), step)
        chunks[split] = tuple(_file_chunk(files[i : i + step], i) for i in cuts)
        for file, label in files:
            stat = os.stat(file)
            digest.update(json.dumps([split, file, label, stat.st_size, stat.st_mtime_ns]).encode())
    rows = {str(split): len(files) for split, files in folders.splits.items()}
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
        labels={
            split: frozenset(label for _, label in files) for split, files in folders.splits.items()
        },
    )


def _file_chunk(files: tuple[tuple[str, int], ...], first_id: int) -> FileChunk:
    names, labels = zip(*files, strict=True)
    return FileChunk(names, tuple(range(first_id, first_id + len(files))), labels)


def _common_size(files: list[str]) -> ImageSpec:
    """Raw with the one size that all readable images have, if it is small; encoded files
    otherwise.
    """
    common: tuple[int, int] | None = None
    with ThreadPoolExecutor(8) as pool:
        for start in range(
            0, len(files), 512
        ):  # in batches, so that mixed sizes end the reading early
            for size in pool.map(_size_or_none, files[start : start + 512]):
                if size is None:
                    continue  # unreadable: found and named when it is decoded
                common = common or size
                if size != common or size[0] * size[1] > RAW_PIXELS:
                    return ImageSpec("file")
    return ImageSpec("raw", *common) if common else ImageSpec("file")


def _size_or_none(file: str) -> tuple[int, int] | None:
    try:
        return read_size(Path(file))
    except DataError:
        return None
