"""CIFAR-10 in its official python form, read without trusting it.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The archive holds pickles, which can
run any code when loaded; the unpickler here builds nothing but arrays, lists, numbers and text.
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

Progress = Callable[[str, int, int], None]


def locate(path: str | None, cache: Path) -> Path:
    """The archive or the unpacked folder; without a path the archive's place in the cache, there or not yet."""
    if path is None:
        return cache / ARCHIVE
    given = Path(path).expanduser()
    if not given.exists():
        raise DataError(str(given), "does not exist", f"give {ARCHIVE} or the folder {FOLDER}")
    return given / FOLDER if (given / FOLDER).is_dir() else given


def download(target: Path, progress: Progress, url: str = URL, md5: str = MD5) -> None:
    """Fetch the archive to `target` unless it is there, and check its published MD5; raises DataError."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=30) as response, part.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            while block := response.read(1 << 18):
                file.write(block)
                digest.update(block)
                progress("download", file.tell(), size)
        if digest.hexdigest() != md5:
            raise DataError(url, f"has MD5 {digest.hexdigest()}, published is {md5}",
                            f"try again, or put the right file at {target}")
        os.replace(part, target)
    except OSError as error:  # URLError, time-outs and full disks are all OSError
        reason = getattr(error, "reason", error)
        raise DataError(url, f"cannot be downloaded ({reason})",
                        f"put {ARCHIVE} at {target}, or give its place as data.path") from None
    finally:
        part.unlink(missing_ok=True)


def read_member(place: Path, member: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 32, 32, 3) uint8, labels (n,) int32) of one batch; raises DataError."""
    where = f"{place}/{member}"
    batch = _unpickle(_bytes_of(place, member), where)
    try:
        data, labels = batch[b"data"], np.asarray(batch[b"labels"], dtype=np.int32)
        valid = data.dtype == np.uint8 and data.shape == (len(labels), 3072) and len(labels) > 0
        valid = valid and labels.min() >= 0 and labels.max() < len(CLASSES)
    except (KeyError, TypeError, AttributeError, ValueError):
        valid = False
    if not valid:
        raise DataError(where, "is not a batch of CIFAR-10", f"give the official {ARCHIVE}")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _bytes_of(place: Path, member: str) -> bytes:
    missing = DataError(str(place), f"has no {FOLDER}/{member}", f"give the official {ARCHIVE} or its folder")
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
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(str(place), f"is not a readable archive ({error})", f"give the official {ARCHIVE}") from None


def _unpickle(raw: bytes, where: str) -> Any:
    try:
        return _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise DataError(where, f"refused: {error}", f"give the official {ARCHIVE}") from None
    except Exception as error:  # a broken pickle raises whatever the interpreter meets
        raise DataError(where, f"is not a readable pickle ({error!r})", f"give the official {ARCHIVE}") from None


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows the three names with which numpy arrays are pickled, and bytes; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 does not need")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}, which CIFAR-10 does not need")
    return text.encode("latin1")
