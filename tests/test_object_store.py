"""Data and runs on a real S3-compatible server instead of a disk."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from raysft.data.importer import import_dataset
from raysft.data.shards import read_manifest, verify_checksums
from raysft.data.sources import Source
from raysft.deploy.export import export
from raysft.errors import DataError, UserError
from raysft.ray_shortcuts import DISABLE
from raysft.records.documents import INFO
from raysft.records.owner import heartbeat, seconds_since_sign
from raysft.records.reading import read_results
from raysft.records.run import Run
from raysft.results.predict import Classifier
from raysft.results.report import write_report
from raysft.storage import (
    put_folder,
    read_json,
    remove_folder,
    scratch_beside,
    storage_path,
    write_text,
)
from tests.conftest import make_images
from tests.results.made import make_run

RAYSFT = str(Path(sys.executable).parent / "raysft")


@pytest.fixture(scope="module")
def s3(s3_environment):
    """Where a bucket of a local S3 server is; the environment points pyarrow and boto3 to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"


def test_folder_is_complete_with_its_last_file(s3, tmp_path):
    target = storage_path(f"{s3}/folder/model")
    with scratch_beside(target) as scratch:
        (scratch / "a.json").write_text("{}")
        (scratch / "weights").write_bytes(b"123")
        put_folder(scratch, target, last="a.json")
    assert {p.name for p in target.iterdir()} == {"a.json", "weights"}
    assert (target / "weights").read_bytes() == b"123"
    remove_folder(target)
    assert not target.exists()


def test_file_being_replaced_is_never_read_partially(s3):
    file = storage_path(f"{s3}/changing.json")
    write_text(file, "[0]")
    stop = threading.Event()

    def grow() -> None:
        held = [0]
        while not stop.is_set():
            held.append(len(held))
            write_text(file, json.dumps(held))

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(50):
            held = json.loads(file.read_text())
            assert held == list(range(len(held)))
    finally:
        stop.set()
        writer.join()


def test_heartbeats_are_dated_by_the_store(s3):
    folder = storage_path(f"{s3}/run/r")
    assert seconds_since_sign(folder, INFO, exact=True) is None
    with heartbeat(folder):
        heard = seconds_since_sign(folder, INFO, exact=True)
        assert heard is not None
        assert heard < 10
    assert seconds_since_sign(folder, INFO) is None
    assert list(folder.iterdir()) == []


def test_missing_bucket_or_unknown_scheme_is_refused(s3):
    from raysft.job import Job

    with pytest.raises(UserError, match="cannot be written"):
        Run.create(Job(storage="s3://nobody/runs"), "r")
    with pytest.raises(UserError, match="is not a place that can be reached"):
        storage_path("nothing://x/y").exists()


def test_a_data_set_is_imported_restarted_and_read(s3, ray_local, images, monkeypatch):
    monkeypatch.setattr("raysft.data.sources.SHARD_ROWS", 10)
    out = storage_path(f"{s3}/data/D")

    class Stop(Exception):
        pass

    def interrupt(what, done, total):
        if done >= 20:
            raise Stop

    with pytest.raises(Stop):
        import_dataset(Source("imagefolder", str(images)), out, "fail", interrupt)
    with pytest.raises(DataError, match="is not a data set"):
        read_manifest(out)
    manifest = import_dataset(Source("imagefolder", str(images)), out, "fail", lambda *a: None)
    assert (manifest.splits["train"].rows, manifest.splits["test"].rows) == (60, 15)
    verify_checksums(out, manifest)
    assert {p.name for p in out.iterdir()} == {"dataset.json", "train", "test"}
    with pytest.raises(DataError, match="already exists"):
        import_dataset(Source("imagefolder", str(images)), out, "fail", lambda *a: None)
    write_text(out / manifest.splits["test"].files[0].path, "torn")
    with pytest.raises(DataError, match="does not have the checksum"):
        verify_checksums(out, manifest)


def test_run_without_disk_or_ray_shortcuts_ends_well(s3, no_ray, tmp_path):
    """Both ways are the long ones, and neither knows of the other: one run goes both."""
    make_images(tmp_path / "images", {"ant": 30, "bee": 30})
    tree = {
        "name": "j",
        "data": {"source": "shards", "path": f"{s3}/run/D"},
        "storage": f"{s3}/run/runs",
        "model": {"name": "raysft.train.smallnet:small_cnn", "weights": "none"},
        "train": {"epochs": 2, "batch_size": 12},
        "search": {"trials": 2, "scheduler": {"name": "none"}},
    }
    (tmp_path / "j.yaml").write_text(yaml.safe_dump(tree))

    def call(*words: str, **environment: str) -> str:
        env = os.environ | environment
        done = subprocess.run(
            [RAYSFT, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("data", "import", "imagefolder", "images", "--out", f"{s3}/run/D")
    said = call("submit", "j.yaml", "--name", "r", **{DISABLE: "1"})
    assert "Ray shortcut missing: trainer without helpers" in said
    run = f"{s3}/run/runs/r"
    results = read_results(run)
    assert len(results["trials"]) == 2
    scores = Classifier(storage_path(run), trust_code=True).evaluate(
        storage_path(f"{s3}/run/D"), "test"
    )
    assert scores["accuracy"] == pytest.approx(results["best"]["test_accuracy"])
    assert json.loads(call("list", "--storage", f"{s3}/run/runs", "--json"))[0]["status"] == "done"
    events = [p for t in ("t0", "t1") for p in (storage_path(run) / "tensorboard" / t).iterdir()]
    assert [
        p.name.startswith("events.out.tfevents") and len(p.read_bytes()) > 1000 for p in events
    ] == [True, True]
    known = read_json(storage_path(run) / "tracking.json")["tensorboard"]["trials"]
    assert known == {t: {"epochs": 2, "ended": True} for t in ("t0", "t1")}
    left = {
        p.name
        for t in ("t0", "t1")
        for p in (storage_path(run) / f"trials/{t}/checkpoints").iterdir()
    }
    assert left  # those of the best trial alone
    other = next(t["trial"] for t in results["trials"] if t["trial"] != results["best"]["trial"])
    assert not (storage_path(run) / f"trials/{other}/checkpoints").exists()
    made = export(storage_path(run), "safetensors", None, None, lambda *a: None, trust_code=True)
    assert made["checked"]["accuracy"] == pytest.approx(results["best"]["test_accuracy"])
    assert {p.name for p in (storage_path(run) / "export-safetensors").iterdir()} == {
        "export.json",
        "model.safetensors",
    }
    assert (
        (storage_path(run) / "model/README.md")
        .read_text()
        .startswith("---\nlibrary_name: raysft\n")
    )


@pytest.mark.slow
def test_report_is_written_beside_run_in_store(s3, tmp_path):
    run = make_run(tmp_path, storage=f"{s3}/reports")
    assert str(write_report(run.folder)) == f"{s3}/reports/r/report.html"
    assert "test accuracy" in (run.folder / "report.html").read_text()
