"""The data set on disk: Parquet shards and their manifest, written whole or not at all.

Images of one size are `fixed_size_binary` columns of raw RGB bytes, which are read without a copy;
images of mixed sizes stay `binary`, encoded as they came.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysft.data.decoding import LEGACY_DECODING, Decoding, parse_decoding
from raysft.data.parquet import read_plain
from raysft.data.walk import FileCounts
from raysft.errors import DataError
from raysft.storage import StoragePath, read_json, sha256, write_bytes, write_json

DATASET_FORMAT = 3  # 2: dataset.json has a checksum of its own; 3: says how files were decoded
MANIFEST = "dataset.json"
COUNTS = ("folder", "seen", "used", "left_out", "examples", "unusual")


@dataclass(frozen=True)
class ImageSpec:
    """How the image column holds images: raw RGB bytes of one size, or encoded files of any
    size.
    """

    encoding: Literal["raw", "file"]
    height: int | None = None
    width: int | None = None
    channels: int = 3
    decoding: Decoding = field(default_factory=Decoding)
    """How files become 8-bit RGB, and raw images have become it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of raw images."""
        if self.height is None or self.width is None:
            raise ValueError("encoded images have no common shape")
        return self.height, self.width, self.channels

    @property
    def column(self) -> pa.DataType:
        return pa.binary(int(np.prod(self.shape))) if self.encoding == "raw" else pa.binary()


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file, its path relative to the data set."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of train, val or test, in order."""

    rows: int
    files: tuple[ShardFile, ...]


@dataclass(frozen=True)
class Manifest:
    """What `dataset.json` says."""

    classes: tuple[str, ...]
    image: ImageSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    splits: dict[str, Split]
    skipped: int = 0
    source: str = ""
    counts: tuple[FileCounts, ...] = ()
    """What became of the files of each folder that was imported."""
    notes: tuple[str, ...] = ()
    """How the folders were read, a fact each."""
    decoded: dict[str, int] = field(default_factory=dict)
    """How many images were special in what way; see `raysft.data.images.QUIRKS`."""
    format: int = field(default=DATASET_FORMAT)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the classes and the checksums of all shards: the same data, the same
        fingerprint.
        """
        sums = [f.sha256 for name in sorted(self.splits) for f in self.splits[name].files]
        how = self.image.decoding
        of_files = (
            [how.document()]
            if self.image.encoding == "file" and how not in (Decoding(), LEGACY_DECODING)
            else []
        )
        return hashlib.sha256(json.dumps([self.classes, sums, *of_files]).encode()).hexdigest()


def write_manifest(folder: StoragePath, manifest: Manifest) -> None:
    """Write `dataset.json`, whole or not at all."""
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: StoragePath) -> Manifest:
    """The manifest of a data set; raises DataError when there is none or it cannot be
    understood.
    """
    path = folder / MANIFEST
    try:
        stored = read_json(path)
    except FileNotFoundError:
        raise DataError(
            str(folder),
            f"is not a data set: it has no {MANIFEST}",
            "make one with `raysft data import`",
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            str(path), f"cannot be read ({error})", "import the data set again"
        ) from None
    try:
        if stored["format"] > DATASET_FORMAT:
            raise DataError(
                str(path),
                f"has format {stored['format']}, this raysft reads up to {DATASET_FORMAT}",
                "use a newer raysft, or import the data set again",
            )
        return _manifest(stored)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            str(path), f"is not a manifest ({error!r})", "import the data set again"
        ) from None


def _manifest(stored: dict[str, Any]) -> Manifest:
    splits = {
        name: Split(
            s["rows"], tuple(ShardFile(f["path"], f["rows"], f["sha256"]) for f in s["files"])
        )
        for name, s in stored["splits"].items()
    }
    for name, split in splits.items():
        if not split.files or split.rows < 1:
            raise ValueError(f"the split {name} is empty")
    spec = {key: stored["image"].get(key) for key in ("encoding", "height", "width")}
    red, green, blue = stored["mean"]
    s_red, s_green, s_blue = stored["std"]
    counts = tuple(
        FileCounts(**{key: each[key] for key in COUNTS if key in each})
        for each in stored.get("counts", ())
    )
    image = ImageSpec(**spec, decoding=parse_decoding(stored["image"].get("decoding")))
    return Manifest(
        tuple(stored["classes"]),
        image,
        (red, green, blue),
        (s_red, s_green, s_blue),
        splits,
        stored.get("skipped", 0),
        stored.get("source", ""),
        counts,
        tuple(stored.get("notes", ())),
        stored.get("decoded", {}),
        stored["format"],
    )


def verify_checksums(folder: StoragePath, manifest: Manifest) -> None:
    """Compare every shard with its checksum; raises DataError that names the first that differs."""
    for split in manifest.splits.values():
        for file in split.files:
            path = folder / file.path
            if not path.is_file():
                raise DataError(
                    str(path), "is missing from its data set", "import the data set again"
                )
            if sha256(path) != file.sha256:
                raise _changed(path)


def write_shard(
    path: StoragePath,
    spec: ImageSpec,
    ids: np.ndarray,
    images: np.ndarray | Sequence[bytes],
    labels: np.ndarray,
) -> ShardFile:
    """Write one shard into a folder that is there, whole or not at all.

    ids: (n,) int64; images: (n, height, width, 3) uint8 for raw, n encoded files otherwise; labels:
    (n,) int32.
    """
    if isinstance(images, np.ndarray):
        flat = np.ascontiguousarray(images, dtype=np.uint8)
        column = pa.Array.from_buffers(spec.column, len(flat), [None, pa.py_buffer(flat)])
    else:
        column = pa.array(list(images), type=spec.column)
    table = pa.table(
        {"id": pa.array(ids, pa.int64()), "image": column, "label": pa.array(labels, pa.int32())}
    )
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=max(1, len(table)), use_dictionary=False)
    write_bytes(path, content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    return ShardFile(f"{path.parent.name}/{path.name}", len(table), digest)


def read_table(folder: StoragePath, file: ShardFile, columns: list[str] | None = None) -> pa.Table:
    """A whole shard, compared with its checksum, or some columns of it, which are not.

    Raises DataError where it is missing or not what was written.
    """
    path = folder / file.path
    try:
        if columns is None:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise _changed(path)
            return read_plain(pa.BufferReader(content))
        if isinstance(path, Path):
            return read_plain(path, columns=columns)
        return read_plain(path.key, columns=columns, filesystem=path.fs)
    except FileNotFoundError:
        raise DataError(
            str(path), "is missing from its data set", "import the data set again"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise _changed(path, f" ({str(error).splitlines()[0]})") from None


def _changed(path: StoragePath, why: str = "") -> DataError:
    return DataError(
        str(path),
        f"does not have the checksum of its manifest: it was changed or torn{why}",
        "import the data set again",
    )


def unpack_rows(
    table: pa.Table, spec: ImageSpec
) -> tuple[np.ndarray, np.ndarray | list[bytes], np.ndarray]:
    """(ids, images, labels) of a table of shard rows; raw images are (n, height, width, 3),
    read-only, not copied.
    """
    ids, labels = table["id"].to_numpy(), table["label"].to_numpy()
    if spec.encoding == "file":
        return ids, table["image"].to_pylist(), labels
    width = int(np.prod(spec.shape))
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[
            chunk.offset * width : (chunk.offset + len(chunk)) * width
        ]
        for chunk in table["image"].chunks
        if len(chunk)
    ]
    flat = (
        parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.uint8)
    )
    return ids, flat.reshape(-1, *spec.shape), labels


def read_labels(folder: StoragePath, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels) of a split in the order of its shards, read without the images."""
    tables = [read_table(folder, file, ["id", "label"]) for file in split.files]
    both = pa.concat_tables(tables)
    return both["id"].to_numpy(), both["label"].to_numpy().astype(np.int64)


def iter_tables(folder: StoragePath, split: Split) -> Iterator[pa.Table]:
    """The shards of a split, one table each."""
    for file in split.files:
        yield read_table(folder, file)
