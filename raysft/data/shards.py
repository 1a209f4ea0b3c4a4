"""The data set on disk: Parquet shards and their manifest, written whole or not at all.

Images of one size are `fixed_size_binary` columns of raw RGB bytes, which are read without a copy;
images of mixed sizes stay `binary`, encoded as they came.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class ImageSpec:
    """How the image column holds images: raw RGB bytes of one size, or files of any size."""

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
    def nbytes(self) -> int:
        """Size of one raw image."""
        return int(np.prod(self.shape))

    @property
    def arrow_type(self) -> pa.DataType:
        """Of the image column; of a fixed size it is read without a copy."""
        if self.encoding == "raw":
            # 800,000 rows a second, against 7,000 to 44,000 for Ray's and Arrow's tensor types.
            return pa.binary(self.nbytes)
        return pa.binary()


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
    """What `dataset.json` says; the names of the fields are its keys."""

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
    """How many images had each of `raysft.data.images.QUIRKS`."""
    format: int = field(default=DATASET_FORMAT)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the classes and the checksums of all shards."""
        checksums = []
        for name in sorted(self.splits):
            checksums += [file.sha256 for file in self.splits[name].files]
        content: list[object] = [self.classes, checksums]
        decoding = self.image.decoding
        # The bytes of encoded files do not say how they are decoded. The usual ways are left out:
        # data sets keep the fingerprint that they had before there was a choice.
        usual = decoding in (Decoding(), LEGACY_DECODING)
        if self.image.encoding == "file" and not usual:
            content.append(decoding.document())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_manifest(folder: StoragePath, manifest: Manifest) -> None:
    """Write `dataset.json`, whole or not at all."""
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: StoragePath) -> Manifest:
    """The manifest of a data set; raises DataError where there is none or it cannot be read."""
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
        return _parse_manifest(stored)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            str(path), f"is not a manifest ({error!r})", "import the data set again"
        ) from None


def _parse_manifest(stored: Mapping[str, Any]) -> Manifest:
    """Keys that came with later formats may be absent; keys that are not known are ignored."""
    splits = {name: _parse_split(name, split) for name, split in stored["splits"].items()}
    image = stored["image"]
    spec = ImageSpec(
        encoding=image.get("encoding"),
        height=image.get("height"),
        width=image.get("width"),
        decoding=parse_decoding(image.get("decoding")),
    )
    # Unpacked to raise ValueError where there are not three.
    red, green, blue = stored["mean"]
    std_red, std_green, std_blue = stored["std"]
    return Manifest(
        classes=tuple(stored["classes"]),
        image=spec,
        mean=(red, green, blue),
        std=(std_red, std_green, std_blue),
        splits=splits,
        skipped=stored.get("skipped", 0),
        source=stored.get("source", ""),
        counts=tuple(_parse_counts(each) for each in stored.get("counts", ())),
        notes=tuple(stored.get("notes", ())),
        decoded=stored.get("decoded", {}),
        format=stored["format"],
    )


def _parse_split(name: str, stored: Mapping[str, Any]) -> Split:
    files = []
    for file in stored["files"]:
        files.append(ShardFile(file["path"], file["rows"], file["sha256"]))
    # What reads a split divides by its rows.
    if not files or stored["rows"] < 1:
        raise ValueError(f"the split {name} is empty")
    return Split(stored["rows"], tuple(files))


def _parse_counts(stored: Mapping[str, Any]) -> FileCounts:
    known = {key: stored[key] for key in FileCounts.__dataclass_fields__ if key in stored}
    return FileCounts(**known)


def verify_checksums(folder: StoragePath, manifest: Manifest) -> None:
    """Compare every shard with its checksum; raises DataError that names the first that differs."""
    for split in manifest.splits.values():
        for file in split.files:
            path = folder / file.path
            if not path.is_file():
                raise _missing(path)
            if sha256(path) != file.sha256:
                raise _damaged(path)


def write_shard(
    path: StoragePath,
    spec: ImageSpec,
    ids: np.ndarray,
    images: np.ndarray | Sequence[bytes],
    labels: np.ndarray,
) -> ShardFile:
    """Write one shard into an existing folder, whole or not at all.

    ids: (n,) int64; images: (n, height, width, 3) uint8 for raw, n encoded files otherwise; labels:
    (n,) int32.
    """
    columns = {
        "id": pa.array(ids, pa.int64()),
        "image": _image_column(spec, images),
        "label": pa.array(labels, pa.int32()),
    }
    table = pa.table(columns)
    content = io.BytesIO()
    # One row group, so that a shard is one chunk and its images one array; no dictionary, for which
    # Parquet would compare images that are all different.
    pq.write_table(table, content, row_group_size=max(1, len(table)), use_dictionary=False)
    write_bytes(path, content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    return ShardFile(f"{path.parent.name}/{path.name}", len(table), digest)


def _image_column(spec: ImageSpec, images: np.ndarray | Sequence[bytes]) -> pa.Array:
    if not isinstance(images, np.ndarray):
        return pa.array(list(images), type=spec.arrow_type)
    flat = np.ascontiguousarray(images, dtype=np.uint8)
    # The pixels are the buffer of the column as they lie in memory: no bytes object an image.
    return pa.Array.from_buffers(spec.arrow_type, len(flat), [None, pa.py_buffer(flat)])


def read_table(folder: StoragePath, file: ShardFile, columns: list[str] | None = None) -> pa.Table:
    """A whole shard, compared with its checksum, or some columns of it, which are not.

    Raises DataError where it is missing or not what was written.
    """
    path = folder / file.path
    try:
        if columns is None:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise _damaged(path)
            return read_plain(pa.BufferReader(content))
        # Without the images, little is read; a checksum would need every byte.
        if isinstance(path, Path):
            return read_plain(path, columns=columns)
        return read_plain(path.key, columns=columns, filesystem=path.fs)
    except FileNotFoundError:
        raise _missing(path) from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, f" ({str(error).splitlines()[0]})") from None


def _missing(path: StoragePath) -> DataError:
    return DataError(str(path), "is missing from its data set", "import the data set again")


def _damaged(path: StoragePath, why: str = "") -> DataError:
    return DataError(
        str(path),
        f"does not have the checksum in {MANIFEST}: it was changed or is damaged{why}",
        "import the data set again",
    )


def unpack_rows(
    table: pa.Table, spec: ImageSpec
) -> tuple[np.ndarray, np.ndarray | list[bytes], np.ndarray]:
    """(ids, images, labels) of shard rows; raw images (n, height, width, 3) are not copied.

    Raw images are read-only.
    """
    ids = table["id"].to_numpy()
    labels = table["label"].to_numpy()
    if spec.encoding == "file":
        return ids, table["image"].to_pylist(), labels
    size = spec.nbytes
    parts = []
    for chunk in table["image"].chunks:
        if len(chunk):
            pixels = np.frombuffer(chunk.buffers()[1], np.uint8)
            # A chunk may be a slice of a larger buffer (after `filter` or `take`).
            parts.append(pixels[chunk.offset * size : (chunk.offset + len(chunk)) * size])
    flat = _joined(parts)
    return ids, flat.reshape(-1, *spec.shape), labels


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if not parts:
        return np.empty(0, np.uint8)
    # np.concatenate copies a single array, too.
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_labels(folder: StoragePath, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels) of a split in the order of its shards, read without the images."""
    tables = [read_table(folder, file, ["id", "label"]) for file in split.files]
    rows = pa.concat_tables(tables)
    return rows["id"].to_numpy(), rows["label"].to_numpy().astype(np.int64)


def iter_tables(folder: StoragePath, split: Split) -> Iterator[pa.Table]:
    """The shards of a split, one table each."""
    for file in split.files:
        yield read_table(folder, file)
