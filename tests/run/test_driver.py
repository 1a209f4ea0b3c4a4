"""Whole runs on a real Ray with real process groups: what comes out, and what a failure costs."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import save_file

from raysft.errors import DataError, JobError, ModelError, RunError, StorageFullError
from raysft.records.predictions import PREDICTIONS
from raysft.records.reading import read_job
from raysft.records.run import Run
from raysft.results.predict import Classifier
from raysft.storage import read_json
from raysft.train.team import COLLECTIVE_TIMEOUT
from tests.run.runs import (
    ONE_TEAM,
    ONE_WORKER_THEN_TWO,
    TWO_TEAMS,
    TWO_WORKERS,
    TWO_WORKERS_THEN_ONE,
    Recorder,
    losses,
)
from tests.tiny import tiny, wider

pytestmark = pytest.mark.usefixtures("ray_local")


HANGING = """
import time
from pathlib import Path
import torch
from torch import nn
from tests.tiny import tiny, wider

class Hanging(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net, self.steps = tiny(classes), 0

    def forward(self, images):
        self.steps += self.training and torch.is_grad_enabled()  # not when it is tried out
        if torch.distributed.get_rank() == 1 and self.training and not Path("{marker}").exists():
            time.sleep(0.6)  # so slow that it tells where it is
            if self.steps == 4:
                Path("{marker}").touch()
                time.sleep(3600)
        return self.net(images)

def network(num_classes):
    return Hanging(num_classes)
"""


CRASHING = """
import os, signal
from pathlib import Path
from torch import nn
from tests.tiny import tiny, wider

class Crashing(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net, self.evaluations = tiny(classes), 0

    def forward(self, images):
        self.evaluations += not self.training
        if self.evaluations == 2 and not Path("{marker}").exists():  # in the second epoch, with one checkpoint there
            Path("{marker}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(images)

def network(num_classes):
    return Crashing(num_classes)
"""


def assert_predictions(run: Run, test_images: Path, best: dict) -> None:
    """Those that the run has written are what its model says of each test image, in the order of
    the row ids.
    """
    found = pq.read_table(run.folder / PREDICTIONS).to_pylist()
    assert [row["id"] for row in found] == list(range(15))
    files = sorted(test_images.glob("*/*.png"))
    classes = ["ant", "bee", "cow"]
    for row, prediction in zip(
        found, Classifier(run.folder, trust_code=True).predict([*map(str, files)]), strict=True
    ):
        shares = dict(prediction.classes)
        assert classes[row["label"]] == Path(prediction.image).parent.name
        assert classes[row["predicted"]] == prediction.classes[0][0]
        assert row["probability"] == pytest.approx(prediction.classes[0][1], abs=1e-5)
        assert row["label_probability"] == pytest.approx(shares[classes[row["label"]]], abs=1e-5)
    assert sum(row["label"] == row["predicted"] for row in found) / 15 == pytest.approx(
        best["test_accuracy"]
    )


@ONE_TEAM
def test_own_validation_split_picks_the_model(go, shared_images):
    images = shared_images.folder / "with_val"
    results, _, run = go(data={"source": "imagefolder", "path": str(images)})
    assert run.info["data"]["rows"] == {"train": 60, "val": 8, "test": 15}
    again = Classifier(run.folder, trust_code=True).evaluate(images, "val")
    assert again["accuracy"] == pytest.approx(results["best"]["val_accuracy"])
    assert again["loss"] == pytest.approx(results["best"]["val_loss"], rel=1e-4)
    assert (
        "- train from train/, val from valid/, test from test/"
        in (run.folder / "model/README.md").read_text()
    )


@ONE_TEAM
def test_what_does_not_fit_in_memory_is_streamed(go):
    results, listener, _ = go(data={"budget_gb": 1e-9})
    assert any(note.startswith("data streamed") for note in listener.notes)
    assert results["best"]["val_accuracy"] is not None


@ONE_TEAM
def test_single_trial_may_take_its_time(go, monkeypatch):
    monkeypatch.setattr(
        "raysft.run.driver.LAST_EPOCH_SECONDS", 0.0
    )  # no search runs beside it that could be over
    results, _, _ = go()
    assert [t["status"] for t in results["trials"]] == ["finished"]


@ONE_TEAM
def test_resuming_on_other_data_is_refused(go, images):
    job = {"data": {"source": "imagefolder", "path": str(images)}, "train": {"epochs": 1}}
    _, _, run = go(**job)
    run.save(status="stopped", pid=0)
    shutil.rmtree(images / "train/cow")
    shutil.rmtree(images / "test/cow")
    again = Run.reopen(run.folder)
    with pytest.raises(
        DataError, match=r"train has 40 rows, had 60; .*classes are ant, bee, were ant, bee, cow"
    ):
        go.execute(again)


@ONE_TEAM
def test_moved_run_with_its_data_resumes(go, images, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(images, project / "photos")
    _, _, run = go(
        data={"source": "imagefolder", "path": str(project / "photos")},
        storage=str(project / "runs"),
        train={"epochs": 1},
    )
    run.save(status="stopped")
    project.rename(tmp_path / "moved")
    again = Run.reopen(tmp_path / "moved/runs/r0")
    assert again.job.data.path == str(tmp_path / "moved/photos")
    results, _ = go.execute(again)
    again.save(status="done")
    assert results["status"] == "done"
    assert read_job(again.folder, read_json(again.folder / "run.json")).data.path == str(
        tmp_path / "moved/photos"
    )


@ONE_TEAM
def test_torn_shard_is_refused_before_workers_start(go, tmp_path):
    go.dataset = Path(shutil.copytree(go.dataset, tmp_path / "D"))
    shard = go.dataset / "train/0000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(
        DataError, match=r"0000\.parquet: does not have the checksum in dataset\.json"
    ):
        go()


@pytest.mark.long
@TWO_WORKERS_THEN_ONE
def test_full_disk_ends_the_run_which_can_resume(go, small_disk):
    (small_disk / "filler").write_bytes(b"0" * 248 * 4096)
    with pytest.raises(StorageFullError, match="no space is left to write to"):
        go(storage=str(small_disk / "runs"), train={"epochs": 6}, resources={"workers": 2})
    (small_disk / "filler").unlink()
    assert read_json(small_disk / "runs/r0/run.json")["status"] == "failed"
    assert not list(small_disk.rglob("*.tmp"))
    run = Run.reopen(small_disk / "runs/r0", workers=1)
    results, _ = go.execute(run)
    assert results["trials"][0]["epochs"] == 6
    assert results["status"] == "done"
    history = read_json(run.trial_folder("t0") / "trial.json")["history"]
    workers = [epoch["workers"] for epoch in history]
    assert workers == sorted(workers, reverse=True)
    assert workers[-1] == 1
    assert {epoch["images"] for epoch in history} == {48}


# In numbers as exact as their comparison is.
SAME = {"train": {"batch_size": 15, "epochs": 3, "precision": "fp32"}}


@ONE_WORKER_THEN_TWO
def test_losses_do_not_depend_on_workers(go):
    _, _, alone = go(**SAME)
    _, _, again = go(**SAME)
    assert losses(again) == losses(alone)
    _, _, both = go(resources={"workers": 2}, **SAME)
    assert_same_learning(alone, both)


@pytest.mark.long
@ONE_WORKER_THEN_TWO
def test_losses_do_not_depend_on_death_of_workers(go, tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(CRASHING.format(marker=str(tmp_path / "crashed")))
    monkeypatch.chdir(tmp_path)
    _, _, alone = go(**SAME)
    results, listener, both = go(
        model={"name": "crashing:network"}, resources={"workers": 2}, **SAME
    )
    assert (tmp_path / "crashed").exists()
    assert any("resuming from its last checkpoint" in note for note in listener.notes)
    assert [t["status"] for t in results["trials"]] == ["finished"]
    assert_same_learning(alone, both)


def assert_same_learning(alone: Run, both: Run) -> None:
    """A run of one worker and one of two came to the same losses and predictions."""
    for one, two in zip(losses(alone), losses(both), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    of_one, of_two = (pq.read_table(run.folder / PREDICTIONS).to_pydict() for run in (alone, both))
    assert of_one.pop("probability") == pytest.approx(of_two.pop("probability"), rel=1e-3)
    assert of_one.pop("label_probability") == pytest.approx(
        of_two.pop("label_probability"), rel=1e-3
    )
    assert of_one == of_two


@TWO_TEAMS
def test_search_stops_weak_trials_and_scores_the_best(go, images):
    space = {"optimizer": [{"name": "adam", "lr": {"grid": [0.03, 0.02, 1e-7, 1e-8, 1e-7, 1e-8]}}]}
    results, listener, run = go(search={"space": space, "metric": "val_loss"}, train={"epochs": 6})
    assert results["status"] == "done"
    assert {t["status"] for t in results["trials"]} == {"finished", "stopped"}
    assert all((t["epochs"] == 6) is (t["status"] == "finished") for t in results["trials"])
    assert results["trials"][0]["config"]["optimizer"]["lr"] > 0.01
    assert sorted(listener.ended) == [f"t{i}" for i in range(6)]
    scores = [t["val_loss"] for t in results["trials"]]
    assert scores == sorted(scores)
    assert results["best"]["val_loss"] == scores[0]
    assert read_json(run.folder / "results.json") == results
    again = Classifier(run.folder, trust_code=True).evaluate(images / "test", "test")
    assert again["accuracy"] == pytest.approx(results["best"]["test_accuracy"])
    assert again["loss"] == pytest.approx(results["best"]["test_loss"], rel=1e-4)
    assert_predictions(run, images / "test", results["best"])
    left = {p.parent.parent.name for p in run.folder.glob("trials/*/checkpoints/epoch-*")}
    assert left == {results["best"]["trial"]}
    _, matter, body = (run.folder / "model/README.md").read_text().split("---\n", 2)
    metrics = yaml.safe_load(matter)["model-index"][0]["results"][0]["metrics"]
    assert {m["name"]: m["value"] for m in metrics}["test accuracy"] == results["best"][
        "test_accuracy"
    ]
    assert f"picked trial {results['best']['trial']}" in body
    recall, name = min((row["recall"], row["class"]) for row in again["classes"])
    assert f"lowest recall on the test images: {name} ({recall:.4f})" in body
    assert "| training | 48 |\n| validation | 12 |\n| test | 15 |" in body


@TWO_TEAMS
def test_paused_trials_train_as_if_never_paused(go):
    space = {"optimizer": [{"name": "adam", "lr": {"grid": [1e-8, 0.03, 1e-7, 0.02]}}]}
    halving = {"name": "halving", "grace_epochs": 1, "reduction_factor": 2}
    search, train = {"space": space, "metric": "val_loss"}, {"epochs": 4}
    results, listener, paused = go(search=search | {"scheduler": halving}, train=train)
    _, _, whole = go(search=search | {"scheduler": {"name": "none"}}, train=train)
    came = {f"t{i}": len(losses(paused, f"t{i}")) for i in range(4)}
    assert sorted(came.values()) == [1, 1, 2, 4]
    for trial, epochs in came.items():
        assert losses(paused, trial) == losses(whole, trial)[:epochs]
    assert not [note for note in listener.notes if "died" in note]
    seconds = {t["trial"]: t["seconds"] for t in results["trials"]}
    assert all(0 < s < 60 for s in seconds.values())


class EndsStandIn(Recorder):
    """Kills a process in which Tune follows a trial, once one has trained an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = False

    def epochs(self, done, total, records) -> None:
        if self.killed or not any(record.history for record in records):
            return
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if not self.killed and process.name().startswith("ray::StandIn"):
                    process.kill()
                    self.killed = True


@TWO_TEAMS
def test_search_outlives_a_dead_stand_in(go):
    space = {"optimizer": [{"name": "adam", "lr": {"grid": [0.03, 0.02]}}]}
    search = {"space": space, "scheduler": {"name": "none"}}
    results, listener, run = go(EndsStandIn(), search=search, train={"epochs": 8})
    assert listener.killed
    assert [t["status"] for t in results["trials"]] == ["finished", "finished"]
    for trial in ("t0", "t1"):
        history = read_json(run.trial_folder(trial) / "trial.json")["history"]
        assert [epoch["epoch"] for epoch in history] == list(range(1, 9))
    left = {path.name for path in run.folder.rglob("*")}
    assert not [name for name in left if "tune" in name or name.endswith(".pkl")]


@TWO_TEAMS
def test_search_is_tracked_epoch_by_epoch(go, tmp_path):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    space = {"optimizer": [{"name": "adam", "lr": {"grid": [0.03, 0.02]}}]}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    results, listener, run = go(
        search={"space": space, "scheduler": {"name": "none"}},
        train={"epochs": 3},
        tracking={"mlflow": uri},
    )
    assert not [note for note in listener.notes if note.startswith("tracking")]
    client = MlflowClient(tracking_uri=uri)
    children = {r.data.tags.get("raysft.trial"): r for r in client.search_runs(["1"])}
    assert set(children) == {None, "t0", "t1"}
    assert children[None].data.metrics["test_accuracy"] == results["best"]["test_accuracy"]
    assert [f.path for f in client.list_artifacts(children[None].info.run_id, "model")] == [
        "model/README.md",
        "model/model.json",
        "model/model.safetensors",
    ]
    for trial in ("t0", "t1"):
        history = read_json(run.trial_folder(trial) / "trial.json")["history"]
        assert [epoch["epoch"] for epoch in history] == [1, 2, 3]
        board = EventAccumulator(str(run.folder / "tensorboard" / trial))
        board.Reload()
        for key in ("train_loss", "val_accuracy", "val_loss", "learning_rate", "images"):
            expected = [(epoch["epoch"], pytest.approx(epoch[key])) for epoch in history]
            assert [(e.step, e.value) for e in board.Scalars(key)] == expected
            logged = client.get_metric_history(children[trial].info.run_id, key)
            assert [(m.step, m.value) for m in logged] == expected
        assert children[trial].info.status == "FINISHED"
        rates = [epoch["learning_rate"] for epoch in history]
        assert rates == sorted(rates, reverse=True)
    progress = read_json(run.folder / "progress.json")
    assert progress["epochs"]["total"] == 6
    assert [team["slot"] for team in progress["teams"]] == [0, 0]


@TWO_TEAMS
def test_too_many_failures_end_the_run(go):
    space = {"train.batch_size": {"grid": [8, 16, 32]}}
    with pytest.raises(RunError, match=r"2 trials have failed, more than search\.max_failures 1"):
        go(search={"space": space, "max_failures": 1}, model={"name": "tests.networks:failing"})


@TWO_TEAMS
def test_bad_network_or_weights_end_their_trial_alone(go, tmp_path):
    save_file(tiny(3).state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_text("no weights")
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("bad", "missing", "good")}
    models = [
        {"name": "tests.networks:for_large_images", "weights": "none"},
        *({"name": "tests.tiny:tiny", "weights": file} for file in files.values()),
    ]
    results, _, _ = go(search={"space": {"model": models}, "trials": 4})
    found = {t["config"]["model"]["weights"]: t for t in results["trials"]}
    assert found[files["good"]]["status"] == "finished"
    assert "cannot be read" in found[files["bad"]]["error"]
    assert "does not exist" in found[files["missing"]]["error"]
    assert "cannot take images of 8 × 8 pixels" in found["none"]["error"]


@pytest.mark.parametrize(
    ("sections", "error", "expected"),
    [
        pytest.param(
            {"model": {"name": "tests.networks:for_large_images"}},
            ModelError,
            r"cannot take images of 8 × 8 pixels .*set model\.image_size; of the usual sizes it takes 48, 64",
            marks=TWO_TEAMS,
        ),
        pytest.param(
            {
                "model": {"name": "raysft.train.smallnet:small_cnn"},
                "train": {"batch_size": 3},
                "resources": {"workers": 2},
            },
            JobError,
            "leaves one of 2 workers a single image a step.*give at least 4",
            marks=TWO_WORKERS,
        ),
    ],
)
def test_what_no_trial_can_train_is_refused(go, sections, error, expected):
    with pytest.raises(error, match=expected):
        go(search={"trials": 2, "space": {"optimizer": ["sgd"]}}, **sections)


@ONE_TEAM
def test_weights_of_another_network_leave_no_run(go, tmp_path):
    save_file(wider(3).state_dict(), tmp_path / "w.safetensors")
    foreign = {"name": "tests.tiny:tiny", "weights": str(tmp_path / "w.safetensors")}
    with pytest.raises(
        ModelError, match=r"another architecture than tests.tiny:tiny: 1 of 4 tensors fit"
    ) as refused:
        go(model=foreign)
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "runs").glob("*"))


@TWO_WORKERS
def test_trial_that_diverges_ends_alone(go, caplog):
    space = {"optimizer": [{"name": "sgd", "momentum": 0.0, "lr": {"grid": [1e-2, 100.0]}}]}
    results, _, _ = go(
        search={"space": space},
        model={"name": "tests.networks:unbounded"},
        resources={"workers": 2},
    )
    status = {t["config"]["optimizer"]["lr"]: t for t in results["trials"]}
    assert status[1e-2]["status"] == "finished"
    assert status[100.0]["status"] == "diverged"
    assert "loss is" in status[100.0]["error"]
    assert status[1e-2]["epochs"] == 2
    assert results["best"]["config"]["optimizer"]["lr"] == 1e-2
    assert "died" not in caplog.text  # of what follows a trial for Tune, which had no epoch to keep


@TWO_WORKERS
def test_exception_on_one_rank_ends_the_trial_for_all(go, tmp_path):
    space = {"train.batch_size": {"grid": [8, 16]}}
    with pytest.raises(RunError, match=r"no trial finished.*boom on rank 1"):
        go(
            search={"space": space},
            model={"name": "tests.networks:fails_on_rank_1"},
            resources={"workers": 2},
        )
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("runs/r0/trials/*/trial.json")]
    assert [t["error"] for t in trials] == ["RuntimeError: boom on rank 1"] * 2
    assert all(
        t["seconds"] < COLLECTIVE_TIMEOUT.total_seconds() / 2 for t in trials
    )  # nobody waited for the dead


@TWO_WORKERS
def test_short_memory_halves_batches_and_target_ends_search(go):
    space = {"optimizer": [{"name": "adam", "lr": {"grid": [0.01, 0.02, 0.03]}}]}
    search = {"space": space, "target": 0.0, "scheduler": {"name": "median"}}
    results, listener, _ = go(
        search=search,
        model={"name": "tests.networks:short_of_memory"},
        train={"batch_size": 16, "epochs": 200},
        resources={"workers": 2},
    )
    assert any(
        "out of memory; resuming from its last checkpoint with each batch in 2 parts" in note
        for note in listener.notes
    )
    assert any("has reached search.target with val_accuracy" in note for note in listener.notes)
    assert [t["status"] for t in results["trials"]] == ["stopped"] * 3
    first, *others = (t["epochs"] for t in results["trials"])
    assert 1 <= first < 200  # it trains on until the search has heard of it
    assert others == [0, 0]


@TWO_WORKERS
def test_tpe_starts_with_known_and_repeats_the_best(go):
    known = {"optimizer": {"name": "adam", "lr": 0.02}}
    space = {"optimizer": [{"name": "adam", "lr": {"loguniform": [1e-3, 1e-1]}}]}
    search = {
        "algorithm": "tpe",
        "space": space,
        "trials": 3,
        "start_with": [known],
        "confirm": 2,
        "metric": "val_macro_f1",
    }
    results, _, run = go(
        search=search,
        model={"name": "tests.networks:only_looked_at"},
        resources={"workers": 2},
        train={"freeze": "backbone", "augment": {"flip": False, "crop_padding": 0}},
    )
    configs = {t["trial"]: t["config"] for t in results["trials"]}
    assert configs["t0"] == known
    assert len({c["optimizer"]["lr"] for c in configs.values()}) == 3
    best = results["best"]
    confirmed = best["confirmed"]
    assert confirmed["seeds"] == [0, 1, 2]
    assert confirmed["values"][0] == best["val_macro_f1"]
    assert len(set(confirmed["values"])) > 1
    assert confirmed["mean"] == pytest.approx(sum(confirmed["values"]) / 3)
    metrics = ("accuracy", "loss", "macro_f1", "balanced_accuracy", "calibration_error")
    assert {f"test_{metric}" for metric in metrics} <= set(best)
    assert not list(run.folder.glob("trials/*seed*/checkpoints"))


@pytest.mark.long
@TWO_WORKERS
def test_hanging_rank_is_named_and_workers_restart(go, tmp_path, monkeypatch):
    (tmp_path / "hanging.py").write_text(HANGING.format(marker=str(tmp_path / "hung")))
    monkeypatch.chdir(tmp_path)
    space = {"train.batch_size": {"grid": [8, 16]}}
    results, _, _ = go(
        search={"space": space, "scheduler": {"name": "none"}},
        model={"name": "hanging:network"},
        train={"epochs": 2},
        resources={"workers": 2, "hang_minutes": 0.1},
    )  # enough for both to start
    assert [t["status"] for t in results["trials"]] == ["finished", "failed"]
    assert "rank 1 (last seen after step" in results["trials"][1]["error"]
    assert "did not answer any more; the others: RuntimeError" in results["trials"][1]["error"]
