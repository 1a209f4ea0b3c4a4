"""Locks between processes of one machine; full disks."""

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from raysft.data import cifar
from raysft.data.shards import ImageSpec, write_shard
from raysft.deploy import bulk
from raysft.deploy.image_sources import list_source
from raysft.errors import DataError, ModelError, RunError, StorageFullError
from raysft.records.predictions import Predictions, write_predictions
from raysft.results.report import write_report
from raysft.storage import (
    locked,
    overwrite_json,
    put_file,
    put_folder,
    read_json,
    scratch_beside,
    write_json,
)
from raysft.train import weights
from tests.conftest import fill, make_images
from tests.deploy.models import make_model
from tests.results.made import make_run


def test_lock_has_one_holder_and_leaves_nothing(tmp_path):
    inside, most, order = [0], [0], []

    def hold(number: int) -> None:
        with locked(tmp_path / "lock"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)  # time for another to come in, if it could
            order.append(number)
            inside[0] -= 1

    holders = [threading.Thread(target=hold, args=(number,)) for number in range(8)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join(20)
    assert sorted(order) == list(range(8))
    assert most == [1]
    assert not list(tmp_path.iterdir())


# --- full disks --------------------------------------------------------------------------------

LARGE = b"0" * (1 << 18)


class Answer(io.BytesIO):
    """Of a server."""

    def __init__(self) -> None:
        super().__init__(LARGE)
        self.headers = {"Content-Length": len(LARGE)}


def _predictions(folder: Path, other: Path) -> None:
    rows = np.random.default_rng(0).random((99_999, 5))
    write_predictions(folder / "p.parquet", Predictions.from_matrix(rows))


def _report(folder: Path, other: Path) -> None:
    write_report(make_run(other).folder, folder / "report.html")


def _folder(folder: Path, other: Path) -> None:
    with scratch_beside(folder / "epoch-1") as scratch:
        torch.save(torch.zeros(1 << 16), scratch / "model")
        put_folder(scratch, folder / "epoch-1", last="model")


def _shard(folder: Path, other: Path) -> None:
    rows = np.zeros((99, 64, 64, 3), np.uint8) + np.random.default_rng(0).integers(
        0, 256, (99, 64, 64, 3), np.uint8
    )
    write_shard(
        folder / "0.parquet", ImageSpec("raw", 64, 64), np.arange(99), rows, np.zeros(99, np.int32)
    )


def _copy(folder: Path, other: Path) -> None:
    (other / "large").write_bytes(LARGE)
    put_file(other / "large", folder / "model.safetensors")


def _bulk(folder: Path, other: Path) -> None:
    card = make_model(other / "model").parent / "model"
    photos = list_source(make_images(other / "photos", {"a" * 200: 80}))
    made = bulk.Predictor(bulk.PredictorSettings(str(card), str(other), False, True, 1, False, ""))
    parts = other / "out.parts"
    parts.mkdir()
    bulk._write_part(parts / "00000.parquet", made.table(photos.chunks[0]))
    fill(folder)
    bulk._join(parts, folder / "out.parquet", photos, made.classifier.card, None)


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda folder, other: write_json(folder / "run.json", {"text": LARGE.decode()}), OSError),
        (_predictions, OSError),
        (
            lambda folder, other: weights.fetch("http://x/w", folder / "w.pth", None, "weights"),
            ModelError,
        ),
        (lambda folder, other: cifar.download(folder / "c.tgz", lambda *told: None), DataError),
        (_report, StorageFullError),
        (_folder, RuntimeError),
        (_shard, OSError),
        (_copy, OSError),
        (_bulk, RunError),
    ],
    ids=["json", "predictions", "weights", "cifar", "report", "folder", "shard", "copy", "bulk"],
)
def test_what_cannot_be_written_leaves_its_room(small_disk, tmp_path, monkeypatch, write, error):
    monkeypatch.setattr("urllib.request.urlopen", lambda *given, **named: Answer())
    (tmp_path / "other").mkdir()
    fill(small_disk, leave=8192)
    with pytest.raises(error):
        write(small_disk, tmp_path / "other")
    assert [file.name for file in small_disk.iterdir()] == ["filler"]


def _fill_and_raise(folder: Path, error: BaseException) -> None:
    fill(folder)
    raise error


def test_failure_is_recorded_on_full_disk(small_disk):
    run = make_run(small_disk, storage=str(small_disk / "runs"), predicted=False)
    run.info["ended"] = None
    run.save(status="running")
    run.save_progress({"stood": 1})
    with pytest.raises(RuntimeError, match="out of luck"), run.recorded():
        _fill_and_raise(small_disk, RuntimeError("out of luck"))
    assert read_json(run.folder / "run.json")["status"] == "failed"


def test_interrupt_is_recorded_without_spare_room(small_disk):
    run = make_run(small_disk, storage=str(small_disk / "runs"), predicted=False)
    run.info["ended"] = None
    run.save(status="running")
    with pytest.raises(KeyboardInterrupt), run.recorded():
        _fill_and_raise(small_disk, KeyboardInterrupt())
    assert read_json(run.folder / "run.json")["status"] == "stopped"


def test_file_is_overwritten_only_if_content_fits(tmp_path):
    file = tmp_path / "run.json"
    write_json(file, {"a": 1})
    assert not overwrite_json(file, {"a": "b" * file.stat().st_blocks * 512})
    assert read_json(file) == {"a": 1}
    assert overwrite_json(file, {"a": 2})
    assert read_json(file) == {"a": 2}
