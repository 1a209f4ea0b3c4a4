"""Folders that every node can reach: on a disk as `Path`, on an object store as `Remote`, with one
small vocabulary.

Files are written whole or not at all: beside and then renamed on a disk, in one request on an
object store. Of a folder, the file that says it is complete is written last.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

BLOCK = 1 << 20
READ_ATTEMPTS = 20  # of a file that is replaced while it is read
CHECKSUM = "checksum"


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that no space is left, or none that this user may fill."""
    # The library of safetensors has no OSError of its own for it, and says it in words.
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(
        f"(os error {number})" in str(error) for number in numbers
    )


@dataclass(frozen=True)
class RemotePath:
    """A place on an object store, for example s3://bucket/folder; has of `Path` what raysft
    uses.
    """

    uri: str

    def __truediv__(self, name: str | Path) -> RemotePath:
        return RemotePath(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return RemotePath(self.uri.rstrip("/").rpartition("/")[0])

    @property
    def fs(self) -> FileSystem:
        """The pyarrow file system."""
        return _file_system(self.uri)[0]

    @property
    def key(self) -> str:
        """The path inside the file system."""
        return _file_system(self.uri)[1]

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        from pyarrow.fs import FileType

        return bool(self.fs.get_file_info(self.key).type != FileType.NotFound)

    def is_file(self) -> bool:
        """Whether a file is there."""
        return bool(self.fs.get_file_info(self.key).is_file)

    def read_bytes(self) -> bytes:
        """The whole file as it was at one moment; raises FileNotFoundError, OSError."""
        # Arrow asks for the size first: of a file that is replaced before it is read, it would
        # return a part.
        info = self.fs.get_file_info(self.key)
        for _ in range(READ_ATTEMPTS):
            if not info.is_file:
                raise FileNotFoundError(self.uri)
            with self.fs.open_input_stream(self.key) as file:
                content: bytes = file.read()
            before, info = info, self.fs.get_file_info(self.key)
            if info.size == len(content) and info.mtime_ns == before.mtime_ns:
                return content
        raise OSError(f"changes faster than it can be read: {self.uri}")

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole file as text; raises FileNotFoundError, OSError."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Write a whole file; until it is closed readers see what was there before."""
        with self.fs.open_output_stream(self.key) as file:
            file.write(content)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in the folder; nothing where it does not exist."""
        from pyarrow.fs import FileSelector

        for info in self.fs.get_file_info(FileSelector(self.key, allow_not_found=True)):
            yield self / info.base_name


StoragePath = Path | RemotePath


@functools.lru_cache
def _file_system(uri: str) -> tuple[FileSystem, str]:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        found: tuple[FileSystem, str] = FileSystem.from_uri(uri)
        return found
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            uri, f"is not a place that can be reached ({reason})", "give s3://…, gs://… or a folder"
        ) from None


def storage_path(text: str | Path) -> StoragePath:
    """The place that a job or a person names: a URI, or a folder, made absolute."""
    return RemotePath(str(text)) if "://" in str(text) else Path(text).expanduser().resolve()


def write_bytes(target: StoragePath, content: bytes) -> None:
    """Write a file, whole or not at all."""
    if isinstance(target, RemotePath):
        target.write_bytes(content)
        return
    with atomic_file(target) as beside:
        beside.write_bytes(content)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary file that becomes `target` in the end; removed where something went wrong."""
    beside = target.with_name(target.name + ".tmp")
    try:
        yield beside
        os.replace(beside, target)
    except BaseException:
        # On a full disk it would keep the room that others need to say how they ended.
        with suppress(OSError):  # what went wrong is told, not this
            beside.unlink(missing_ok=True)
        raise


def write_text(target: StoragePath, text: str) -> None:
    """Write a small text file, whole or not at all."""
    write_bytes(target, text.encode())


def write_json(target: StoragePath, document: Mapping[str, object]) -> None:
    """Write a JSON file with a checksum of its content in it, whole or not at all."""
    write_text(target, _with_checksum(document))


def overwrite_json(file: Path, document: Mapping[str, object]) -> bool:
    """As `write_json`, in the room that the file has already, for full disks; False where it is too
    small.

    A reader at the same moment may find a file that is torn, as its checksum tells.
    """
    content = _with_checksum(document).encode()
    # Blocks that the file has already: on a full disk it gets no more.
    if len(content) > file.stat().st_blocks * 512:
        return False
    with file.open("r+b", buffering=0) as raw:
        raw.write(content)
        # The old document may have been longer.
        raw.truncate()
    return True


def _with_checksum(document: Mapping[str, object]) -> str:
    # There and back: the checksum is over what a reader gets, as lists for tuples.
    text = json.dumps({**document, CHECKSUM: None}, default=str)
    whole = json.loads(text)
    whole[CHECKSUM] = _checksum(whole)
    return json.dumps(whole, indent=1) + "\n"


def read_json(file: StoragePath) -> dict[str, Any]:
    """What `write_json` has written.

    Raises FileNotFoundError, OSError, and ValueError where it is not what was written.
    """
    whole = json.loads(file.read_bytes())
    if not isinstance(whole, dict) or CHECKSUM not in whole:
        raise ValueError("it has no checksum")
    if whole[CHECKSUM] != _checksum(whole):
        raise ValueError("its checksum does not match: it was changed or is incomplete")
    del whole[CHECKSUM]
    return whole


def _checksum(document: Mapping[str, object]) -> str:
    """Hexadecimal SHA-256 of all but the checksum itself, however it is laid out."""
    rest = {key: value for key, value in document.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def make_folder(folder: StoragePath) -> None:
    """A new folder with its parents; raises FileExistsError where there is one. Object stores need
    none.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True)
    elif any(True for _ in folder.iterdir()):
        raise FileExistsError(str(folder))


def remove_folder(target: StoragePath) -> None:
    """Remove a folder with all that it holds, if it is there."""
    if isinstance(target, Path):
        shutil.rmtree(target, ignore_errors=True)
    elif target.exists():
        target.fs.delete_dir(target.key)


def remove_file(file: StoragePath) -> None:
    """Remove one file."""
    if isinstance(file, Path):
        file.unlink()
    else:
        file.fs.delete_file(file.key)


def touch(file: StoragePath) -> None:
    """Have a file changed now, by the clock of the storage; made where it is not there. A full disk
    has room for it.
    """
    if isinstance(file, Path):
        file.touch()
    else:
        file.write_bytes(b"\n")


def modified_at(file: StoragePath) -> float | None:
    """When a file was changed, in seconds of the epoch by the clock of the storage; None where
    there is none.
    """
    if isinstance(file, Path):
        with suppress(OSError):
            return file.stat().st_mtime
        return None
    info = file.fs.get_file_info(file.key)
    return info.mtime_ns / 1e9 if info.is_file else None


def storage_time(folder: StoragePath) -> float:
    """What time it is for the storage that a folder lies in, in seconds of the epoch; raises
    OSError.
    """
    # By a file and not this machine's clock: nodes of a cluster may be minutes apart.
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    touch(probe)
    try:
        return modified_at(probe) or time.time()
    finally:
        remove_file(probe)


def put_folder(local: Path, target: StoragePath, last: str) -> None:
    """Move a local folder of files to `target`; it is complete once the file `last` is there."""
    if isinstance(target, Path):
        remove_folder(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local, target)
        return
    # One by one, as an object store cannot rename: the last says that the rest is there.
    for file in sorted(local.iterdir(), key=lambda f: f.name == last):
        put_file(file, target / file.name)
    shutil.rmtree(local)


def put_file(local: Path, target: StoragePath) -> None:
    """Copy a local file."""
    if isinstance(target, Path):
        with atomic_file(target) as beside:
            shutil.copyfile(local, beside)
        return
    with local.open("rb") as source, target.fs.open_output_stream(target.key) as sink:
        shutil.copyfileobj(source, sink, 8 * BLOCK)


@contextmanager
def local_copy(file: StoragePath) -> Iterator[Path]:
    """A file as one on this machine's disk."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="raysft-") as scratch:
        copy = Path(scratch) / file.name
        with file.fs.open_input_stream(file.key) as source, copy.open("wb") as sink:
            shutil.copyfileobj(source, sink, 8 * BLOCK)
        yield copy


@contextmanager
def scratch_beside(folder: StoragePath) -> Iterator[Path]:
    """An empty local folder for what `put_folder` will move to `folder`: on the same disk where
    that is one.
    """
    if isinstance(folder, Path):
        beside = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(beside, ignore_errors=True)
        # What a killed process left under this name was no one's any more.
        beside.mkdir(parents=True)
        try:
            yield beside
        finally:
            # Nothing half-made stays where something went wrong.
            shutil.rmtree(beside, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="raysft-") as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        yield made


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Let one process of this machine at a time hold the file `lock`, which is gone afterwards;
    raises OSError.
    """
    while True:
        file = lock.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held it before has removed it: another process may hold a new file of that name by
        # now.
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                break
        file.close()
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def sha256(file: StoragePath) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with (
        file.open("rb") if isinstance(file, Path) else file.fs.open_input_stream(file.key) as stream
    ):
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
