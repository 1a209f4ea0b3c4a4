"""CIFAR-10 in its official python form, read without trusting it.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The archive holds
pickles, which can run any code when loaded; the unpickler here builds nothing but arrays, lists,
numbers and text.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raysft.errors import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
TRAIN_MEMBERS = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_MEMBERS = ("test_batch",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROWS_PER_MEMBER = 10_000

ImportProgress = Callable[[str, int, int], None]


def locate(path: str | None, cache: Path) -> Path:
    """The archive or the unpacked folder; without a path where the cache has, or will have, it."""
    if path is None:
        return cache / ARCHIVE
    given = Path(path).expanduser().resolve()
    if not given.exists():
        raise DataError(str(given), "does not exist", f"give {ARCHIVE} or the folder {FOLDER}")
    # People give the folder in which they unpacked it, too.
    unpacked = given / FOLDER
    return unpacked if unpacked.is_dir() else given


def download(target: Path, progress: ImportProgress, url: str = URL, md5: str = MD5) -> None:
    """Fetch the archive to `target` unless it is there, and check its published MD5; raises
    DataError.
    """
    if target.is_file():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            str(target.parent),
            f"cannot be created ({error.strerror})",
            "set RAYSFT_CACHE to a folder that can be",
        ) from None
    # Not by the number of this process: containers that share a cache are process 1, each of them.
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=30) as response, part.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            while block := response.read(1 << 18):
                file.write(block)
                digest.update(block)
                progress("download", file.tell(), size)
        if digest.hexdigest() != md5:
            raise DataError(
                url,
                f"has MD5 {digest.hexdigest()}, published is {md5}",
                f"try again, or put the right file at {target}",
            )
        os.replace(part, target)
    except OSError as error:  # URLError, time-outs and full disks are all OSError
        reason = getattr(error, "reason", error)
        raise DataError(
            url,
            f"cannot be downloaded ({reason})",
            f"put {ARCHIVE} at {target}, or give its place as data.path",
        ) from None
    finally:
        part.unlink(missing_ok=True)


def read_member(place: Path, member: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 32, 32, 3) uint8, labels (n,) int32) of one batch; raises DataError."""
    where = f"{place}/{member}"
    batch = _unpickle(_bytes_of(place, member), where)
    try:
        data = batch[b"data"].pixels
        labels = np.array([int(label) for label in batch[b"labels"]], np.int32)
        valid = data.dtype == np.uint8 and data.shape == (len(labels), 3072) and len(labels) > 0
        valid = valid and labels.min() >= 0 and labels.max() < len(CLASSES)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise DataError(where, "is not a batch of CIFAR-10", f"give the official {ARCHIVE}")
    # Stored a colour after the other.
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, labels


def _bytes_of(place: Path, member: str) -> bytes:
    missing = DataError(
        str(place), f"has no {FOLDER}/{member}", f"give the official {ARCHIVE} or its folder"
    )
    if place.is_dir():
        if not (place / member).is_file():
            raise missing
        return (place / member).read_bytes()
    try:
        with tarfile.open(place) as archive:  # read in place: nothing is extracted
            found = next((m for m in archive if m.isfile() and Path(m.name).name == member), None)
            content = archive.extractfile(found) if found else None
            if content is None:
                raise missing
            return content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            str(place), f"is not a readable archive ({error})", f"give the official {ARCHIVE}"
        ) from None


def _unpickle(raw: bytes, where: str) -> Any:
    try:
        return _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise DataError(where, f"refused: {error}", f"give the official {ARCHIVE}") from None
    except Exception as error:  # a broken pickle raises whatever the interpreter meets
        raise DataError(
            where, f"is not a readable pickle ({error!r})", f"give the official {ARCHIVE}"
        ) from None


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows the names with which numpy pickles arrays of bytes, and bytes
    themselves; nothing else.

    It hands out stand-ins and never numpy's own classes, whose state can be set so that they read
    foreign memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _Array.make,
            ("numpy._core.multiarray", "_reconstruct"): _Array.make,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
            ("_codecs", "encode"): _latin1,
        }
        try:
            return known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which CIFAR-10 does not need"
            ) from None


class _Type:
    """The pickled form of a dtype; only that of bytes is accepted."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Byte order and flags say nothing about single bytes."""


class _Array:
    """The pickled form of an array."""

    pixels: np.ndarray

    @classmethod
    def make(cls, *_: Any) -> _Array:
        return cls()

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, in_columns, content = state
        if (
            not isinstance(kind, _Type)
            or kind.code not in ("u1", "|u1")
            or not isinstance(content, bytes)
        ):
            raise pickle.UnpicklingError("it holds an array of something else than bytes")
        self.pixels = np.frombuffer(content, np.uint8).reshape(
            shape, order="F" if in_columns else "C"
        )


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(
            f"it asks for the codec {encoding}, which CIFAR-10 does not need"
        )
    return text.encode("latin1")
