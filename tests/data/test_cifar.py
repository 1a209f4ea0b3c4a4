"""CIFAR-10's archive: read without running what it may hold."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from raysft.data import cifar
from raysft.data.importer import import_dataset
from raysft.data.sources import Source
from raysft.errors import DataError


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def batch(seed: int, rows: int = 20) -> tuple[np.ndarray, list[int], bytes]:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
    labels = rng.integers(0, 10, rows).tolist()
    return (
        data,
        labels,
        pickle.dumps({b"data": data, b"labels": labels, b"batch_label": b"x"}, protocol=2),
    )


def test_a_batch_is_read_from_archive_and_folder(tmp_path):
    data, labels, raw = batch(0)
    archive = archive_of(tmp_path / "a.tar.gz", {"data_batch_1": raw})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(raw)
    for place in (archive, folder):
        images, read = cifar.read_member(place, "data_batch_1")
        assert read.tolist() == labels
        assert np.array_equal(images[3, 5, 7], data[3].reshape(3, 32, 32)[:, 5, 7])


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = archive_of(tmp_path / "a.tar.gz", {"data_batch_1": pickle.dumps({b"data": Evil()})})
    with pytest.raises(DataError, match=r"refused: it asks for posix\.system"):
        cifar.read_member(archive, "data_batch_1")
    assert not (tmp_path / "pwned").exists()


def test_an_array_of_anything_but_bytes_is_refused(tmp_path):
    objects = pickle.dumps(
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": np.array([object], dtype=object)}
    )
    for raw in (objects, pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]})):
        with pytest.raises(DataError, match="refused"):
            cifar.read_member(
                archive_of(tmp_path / "a.tar.gz", {"data_batch_1": raw}), "data_batch_1"
            )


def test_a_crafted_dtype_cannot_read_foreign_memory(tmp_path):
    class Forged:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self):
            return (
                np.empty(0).__reduce__()[0],
                (np.ndarray, (0,), b"b"),
                (1, (1,), Forged(), False, b"A" * 8),
            )

    raw = pickle.dumps({b"data": Array(), b"labels": Array()})
    with pytest.raises(DataError, match="something else than bytes"):
        cifar.read_member(archive_of(tmp_path / "a.tar.gz", {"data_batch_1": raw}), "data_batch_1")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 1, b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [11]}),
    ],
)
def test_what_is_not_cifar_is_refused(tmp_path, raw):
    with pytest.raises(DataError, match="give the official"):
        cifar.read_member(archive_of(tmp_path / "a.tar.gz", {"data_batch_1": raw}), "data_batch_1")


def test_torn_archive_and_missing_member_are_named(tmp_path):
    torn = archive_of(tmp_path / "a.tar.gz", {"data_batch_1": batch(0)[2]})
    with pytest.raises(DataError, match="has no"):
        cifar.read_member(torn, "data_batch_2")
    torn.write_bytes(torn.read_bytes()[:5000])
    with pytest.raises(DataError, match="not a readable archive"):
        cifar.read_member(torn, "data_batch_1")


def test_offline_error_says_where_to_put_file(tmp_path):
    target = tmp_path / "cache" / cifar.ARCHIVE
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        cifar.download(target, lambda *a: None, url="http://127.0.0.1:9/cifar")
    assert str(target) in caught.value.todo
    assert not list(target.parent.iterdir())


def test_a_download_with_another_checksum_is_refused(tmp_path):
    source = tmp_path / "wrong"
    source.write_bytes(b"wrong")
    seen = []
    with pytest.raises(DataError, match="published is"):
        cifar.download(tmp_path / "out", lambda *a: seen.append(a), url=source.as_uri())
    assert seen == [("download", 5, 5)]
    assert not (tmp_path / "out").exists()


def test_the_whole_archive_imports(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "ROWS_PER_MEMBER", 20)
    members = {
        name: batch(i)[2] for i, name in enumerate((*cifar.TRAIN_MEMBERS, *cifar.TEST_MEMBERS))
    }
    archive = archive_of(tmp_path / "cifar.tar.gz", members)
    manifest = import_dataset(
        Source("cifar10", str(archive)), tmp_path / "D", "fail", lambda *a: None
    )
    assert manifest.classes == cifar.CLASSES
    assert (manifest.splits["train"].rows, manifest.splits["test"].rows) == (100, 20)


def test_malicious_archive_is_refused_and_leaves_nothing(ray_local, tmp_path):
    members = {name: pickle.dumps(Evil()) for name in (*cifar.TRAIN_MEMBERS, *cifar.TEST_MEMBERS)}
    archive = archive_of(tmp_path / "cifar.tar.gz", members)
    with pytest.raises(DataError, match="refused"):
        import_dataset(Source("cifar10", str(archive)), tmp_path / "D", "fail", lambda *a: None)
    assert not list(tmp_path.glob("D*"))
