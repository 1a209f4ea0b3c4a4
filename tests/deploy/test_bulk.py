"""Predictions of whole folders and data sets: one row an image, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.data.importer import import_dataset
from raysft.data.sources import Source
from raysft.deploy.bulk import Predictor, PredictorSettings, predict_all
from raysft.deploy.image_sources import CHUNK_IMAGES, list_source
from raysft.errors import UserError
from raysft.results.predict import Classifier
from tests.conftest import make_images
from tests.deploy.models import make_model

RAYSFT = str(Path(sys.executable).parent / "raysft")
IMAGES = 12_000


def nothing(what, done, total):
    pass


@pytest.fixture
def model(tmp_path) -> Path:
    return make_model(tmp_path / "model")


@pytest.mark.usefixtures("ray_local")
def test_every_file_is_row_with_prediction_or_error(model, tmp_path):
    photos = make_images(tmp_path / "photos", {"a": 8, "b/c": 5}, size=(10, 12))
    (photos / "b" / "torn.png").write_bytes((photos / "a" / "000.png").read_bytes()[:60])
    (photos / "text.jpg").write_text("not an image")
    (photos / "notes.txt").write_text("no image by its name")
    told = []
    found = predict_all(
        model,
        list_source(photos),
        tmp_path / "out.parquet",
        True,
        lambda what, done, total: told.append((done, total)),
    )
    rows = pq.read_table(found.out).to_pylist()
    assert (found.images, found.errors, told[-1]) == (15, 2, (15, 15))
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    bad = {row["image"]: row for row in rows if row["error"]}
    assert bad.keys() == {"b/torn.png", "text.jpg"}
    assert all(
        "is not a readable image" in row["error"] and row["class"] is None for row in bad.values()
    )
    good = [row for row in rows if not row["error"]]
    assert sum(found.classes.values()) == len(good) == 13
    for row, alone in zip(
        good, Classifier(model).predict([str(photos / r["image"]) for r in good]), strict=True
    ):
        assert row["class"] == alone.classes[0][0]
        assert row["probability"] == pytest.approx(alone.classes[0][1], abs=1e-6)
        assert sorted(row["probabilities"], reverse=True) == pytest.approx(
            [s for _, s in alone.classes], abs=1e-6
        )
    assert not (tmp_path / "out.parquet.parts").exists()
    with pytest.raises(UserError, match="already exists"):
        predict_all(model, list_source(photos), tmp_path / "out.parquet", True, nothing)


@pytest.mark.usefixtures("ray_local")
def test_rows_of_a_data_set_keep_their_labels(model, images, tmp_path):
    import_dataset(Source("imagefolder", str(images)), tmp_path / "D", "fail", nothing)
    predict_all(
        model, list_source(tmp_path / "D", "test"), tmp_path / "test.parquet", False, nothing
    )
    rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
    assert [row["image"] for row in rows] == [f"test/{i}" for i in range(15)]
    right = np.mean([row["class"] == row["label"] for row in rows])
    assert right == pytest.approx(Classifier(model).evaluate(tmp_path / "D", "test")["accuracy"])
    predict_all(model, list_source(tmp_path / "D"), tmp_path / "all.parquet", False, nothing)
    assert len(pq.read_table(tmp_path / "all.parquet")) == 75


def test_threads_that_decode_ahead_change_nothing(model, tmp_path):
    photos = make_images(tmp_path / "photos", {"a": 40})
    (photos / "a" / "007.png").write_bytes(b"torn")
    (chunk,) = list_source(photos).chunks
    (tmp_path / "parts").mkdir()
    one, four = (
        Predictor(
            PredictorSettings(
                str(model), str(tmp_path / "parts"), False, True, threads, False, None
            )
        ).table(chunk)
        for threads in (1, 4)
    )
    assert (
        one.drop("probabilities")
        .drop("probability")
        .equals(four.drop("probabilities").drop("probability"))
    )
    assert one["error"].null_count == 39


def small_bitmaps(folder: Path, count: int) -> Path:
    """Image files that are made and read as fast as files are."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 8 * 8 * 3), dtype=np.uint8)
    for i in range(count):
        (folder / f"{i:05d}.ppm").write_bytes(b"P6 8 8 255\n" + pixels[i].tobytes())
    return folder


@pytest.mark.long
@pytest.mark.usefixtures("no_ray")
def test_killed_prediction_resumes_with_each_image_once(model, tmp_path):
    photos = small_bitmaps(tmp_path / "photos", IMAGES)
    command = [RAYSFT, "predict", str(model), "photos", "--out", "p.parquet", "--json"]
    parts = tmp_path / "p.parquet.parts"
    killed = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list(parts.glob("*.parquet"))) < 3:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    first, *others = sorted(parts.glob("*.parquet"))
    assert 2 <= len(others) < IMAGES / CHUNK_IMAGES - 1
    table = pq.read_table(first)
    marked = table.set_column(2, "probability", pa.array([-1.0] * len(table), pa.float32()))
    pq.write_table(marked, first)  # seen again in the result where it is taken up
    make_model(tmp_path / "other", spread=2)
    other = subprocess.run(
        [*command[:2], "other", *command[3:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert other.returncode == 2
    assert "is of another prediction: different model" in other.stderr
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], said["errors"]) == (IMAGES, 0)
    rows = pq.read_table(tmp_path / "p.parquet")
    assert rows["image"].to_pylist() == sorted(path.name for path in photos.iterdir())
    taken_up = np.flatnonzero(rows["probability"].to_numpy() == -1)
    assert len(taken_up) == CHUNK_IMAGES
    assert taken_up.max() - taken_up.min() == CHUNK_IMAGES - 1
    assert not parts.exists()
