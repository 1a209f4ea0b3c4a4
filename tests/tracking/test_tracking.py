"""What is logged of a run, read back from where it went; what fails there is of no account to the
run.
"""

import importlib.util
import json
import struct
import threading
import time
from pathlib import Path

import pytest

from raysft.errors import JobErrors, UserError
from raysft.job import Job
from raysft.job.load import validate_job
from raysft.job.spec import Tracking as Spec
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.run.preflight import check_tracking, outline_of
from raysft.storage import read_json, write_json
from raysft.tracking import Tracking
from raysft.tracking.tracker import TrackerState
from raysft.tracking.trackers import TrackerThread, TrackingFile
from raysft.tracking.values import flatten

SEARCH = {
    "space": {
        "optimizer": [{"name": "adam", "lr": {"loguniform": [0.001, 0.1]}}],
        "train.batch_size": {"choice": [8, 16]},
    }
}
CONFIG = {"optimizer": {"name": "adam", "lr": 0.01}, "train.batch_size": 8}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(name, value)


def epoch(number: int) -> dict:
    return {
        "epoch": number,
        "train_loss": 1 / number,
        "val_accuracy": 1 - 0.5**number,
        "val_loss": 2 / number,
        "learning_rate": 0.01 / number,
        "seconds": 2.5,
        "train_seconds": 2.0,
        "data_wait_seconds": 0.5,
        "images": 100,
    }


def record(
    trial: str, epochs: int, status: str = "running", error: str | None = None
) -> TrialRecord:
    return TrialRecord(
        trial, CONFIG, status, [epoch(n) for n in range(1, epochs + 1)], 1000.0, 5.0, error
    )


class Tracked:
    """A run that is only told about."""

    def __init__(self, folder: Path, **tracking) -> None:
        self.job = Job.model_validate(
            {
                "name": "j",
                "storage": str(folder / "runs"),
                "search": SEARCH,
                "tracking": {"tensorboard": False} | tracking,
            }
        )
        self.run, self.scratch, self.notes = Run.create(self.job, "r"), folder / "scratch", []

    def go(
        self,
        *records: TrialRecord,
        ends: BaseException | None = None,
        results: dict | None = None,
        between=lambda: None,
    ) -> None:
        """Tell of each record as the driver does, let `between` happen before the last, then end as
        told.
        """
        with Tracking(self.job, self.run, self.notes.append, self.scratch) as tracking:
            for number, told in enumerate(records):
                if number == len(records) - 1:
                    between()
                tracking.trial(told, told.status if told.ended else "epoch", 1000.0 + number)
            if results is not None:
                tracking.set_results(results)
            if ends is not None:
                raise ends

    def reopened(self, *records: TrialRecord) -> "Tracked":
        """The run as it is taken up again: what had not ended waits for its turn."""
        again = object.__new__(Tracked)
        again.job, again.scratch, again.notes = self.job, self.scratch, []
        again.run = Run(self.run.folder, self.job)
        again.run.known = {r.trial: r for r in records}
        return again


def logged_of(one: dict) -> dict[str, float]:
    """What is to be logged of an epoch: its numbers, and what follows from them."""
    return {key: value for key, value in one.items() if key != "epoch"} | {
        "images_per_second": 50.0,
        "data_wait_fraction": 0.25,
    }


def stepped(history: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """For each metric its (step, value)."""
    return {
        name: [(one["epoch"], logged_of(one)[name]) for one in history]
        for name in logged_of(history[0])
    }


# --- TensorBoard -------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def hparams(folder: Path) -> tuple[dict, str | None]:
    """(hyperparameters, how the session ended) of a trial's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    read = EventAccumulator(str(folder))
    read.Reload()
    told = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(
            read.SummaryMetadata(tag).plugin_data.content
        )
        for tag in read.PluginTagToContent("hparams")
    }
    values = told["_hparams_/session_start_info"].session_start_info.hparams
    end = told.get("_hparams_/session_end_info")
    status = api_pb2.Status.Name(end.session_end_info.status) if end else None
    return {k: getattr(v, v.WhichOneof("kind")) for k, v in values.items()}, status


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        found[key] == [(step, pytest.approx(value)) for step, value in expected[key]]
        for key in expected
    )


def test_tensorboard_has_every_epoch_and_configuration(tmp_path):
    run = Tracked(tmp_path, tensorboard=True)
    run.go(
        record("t0", 1),
        record("t1", 1),
        record("t0", 3, "finished"),
        record("t1", 1, "diverged", "loss is nan"),
    )
    assert run.notes == []
    board = run.run.folder / "tensorboard"
    assert same(curves(board / "t0"), stepped([epoch(1), epoch(2), epoch(3)]))
    assert same(curves(board / "t1"), stepped([epoch(1)]))
    wanted = {"train.optimizer.name": "adam", "train.optimizer.lr": 0.01, "train.batch_size": 8.0}
    assert hparams(board / "t0") == (wanted, "STATUS_SUCCESS")
    assert hparams(board / "t1") == (wanted, "STATUS_FAILURE")


def test_resumed_event_files_have_every_epoch_once(tmp_path):
    run = Tracked(tmp_path, tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        run.go(
            record("t0", 2, "finished"), record("t1", 1), record("t1", 3), ends=KeyboardInterrupt()
        )
    memory = run.run.folder / "tracking.json"
    known = read_json(memory)
    known["tensorboard"]["trials"]["t1"]["epochs"] = (
        2  # killed before it could write down the third
    )
    write_json(memory, known)
    again = run.reopened(record("t0", 2, "finished"), record("t1", 3, "pending"))
    again.go(record("t1", 4), record("t1", 5, "finished"))
    assert same(curves(run.run.folder / "tensorboard/t0"), stepped([epoch(1), epoch(2)]))
    assert same(curves(run.run.folder / "tensorboard/t1"), stepped([epoch(n) for n in range(1, 6)]))
    assert (
        len(list((run.run.folder / "tensorboard/t0").iterdir())) == 1
    )  # nothing was left to write there
    assert hparams(run.run.folder / "tensorboard/t1")[1] == "STATUS_SUCCESS"


def test_no_library_is_imported_before_a_trial_trains(tmp_path):
    run = Tracked(tmp_path, tensorboard=True)
    with Tracking(run.job, run.run, run.notes.append, run.scratch) as tracking:
        for kind in ("proposed", "started"):
            tracking.trial(record("t0", 0), kind, 1.0)
            assert not any(thread.is_alive() for thread in tracking.threads)
        tracking.trial(record("t0", 0), "progress", 2.0)
        assert all(thread.is_alive() for thread in tracking.threads)


# --- MLflow ------------------------------------------------------------------------------------


class Store:
    """An MLflow store in a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "store/mlflow.db"
        self.uri = f"sqlite:///{self.file}"

    def runs(self) -> tuple[list, dict]:
        """(parent runs, those below them by trial)."""
        found = self.client().search_runs(
            [e.experiment_id for e in self.client().search_experiments()]
        )
        parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
        assert all(
            r.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
            for r in found
            if r not in parents
        )
        return parents, {r.data.tags["raysft.trial"]: r for r in found if r not in parents}

    def curves(self, run) -> dict[str, list[tuple[int, float]]]:
        return {
            key: [(m.step, m.value) for m in self.client().get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


@pytest.fixture(scope="module")
def made_store(tmp_path_factory) -> Path:
    """A SQLite file with MLflow's tables, which takes seconds to make."""
    store = Store(tmp_path_factory.mktemp("mlflow"))
    store.file.parent.mkdir()
    store.client().search_experiments()
    return store.file


@pytest.fixture
def store(tmp_path, made_store) -> Store:
    found = Store(tmp_path)
    found.file.parent.mkdir()
    found.file.write_bytes(made_store.read_bytes())
    return found


def model_of(run: Tracked) -> dict:
    """A model and a report of a run, and its results."""
    model = run.run.folder / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    (run.run.folder / "report.html").write_text("<html>")
    return {
        "best": {
            "trial": "t0",
            "config": CONFIG,
            "epoch": 2,
            "val_accuracy": 0.75,
            "test_accuracy": 0.5,
            "model": str(model),
        }
    }


@pytest.mark.slow
def test_mlflow_has_a_parent_above_every_trial(tmp_path, store):
    run = Tracked(tmp_path, mlflow=store.uri, mlflow_experiment="flowers")
    run.go(
        record("t0", 1),
        record("t1", 1),
        record("t0", 2, "finished"),
        record("t1", 1, "stopped"),
        record("t2", 1, "diverged", "loss is nan"),
        record("t3", 0, "failed", "boom"),
        results=model_of(run),
    )
    assert run.notes == []
    (parent,), trials = store.runs()
    assert {
        trial: (r.info.status, r.data.tags["raysft.status"]) for trial, r in trials.items()
    } == {
        "t0": ("FINISHED", "finished"),
        "t1": ("FINISHED", "stopped"),
        "t2": ("FAILED", "diverged"),
        "t3": ("FAILED", "failed"),
    }
    assert trials["t3"].data.tags["raysft.error"] == "boom"
    assert store.curves(trials["t0"]) == stepped([epoch(1), epoch(2)])
    assert trials["t0"].data.params["train.optimizer.lr"] == "0.01"
    assert trials["t0"].data.params["train.batch_size"] == "8"
    assert trials["t0"].data.params["model.name"] == "resnet18"
    assert parent.info.run_name == "r"
    assert (parent.info.status, parent.data.tags["raysft.status"]) == ("FINISHED", "done")
    assert parent.data.params["search.metric"] == "val_accuracy"
    assert parent.data.metrics["test_accuracy"] == 0.5
    files = {f.path for f in store.client().list_artifacts(parent.info.run_id)}
    assert files == {"model", "report.html"}
    assert (
        store.client().get_experiment_by_name("flowers").experiment_id == parent.info.experiment_id
    )


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (RuntimeError("no"), "FAILED")]
)
def test_interrupted_run_closes_and_resumes_its_trials(tmp_path, store, error, status):
    run = Tracked(tmp_path, mlflow=store.uri)
    began = threading.Event()

    def in_store() -> None:
        deadline = time.monotonic() + 30
        while not began.is_set() and time.monotonic() < deadline:
            _, trials = store.runs() if store.runs()[0] else ([], {})
            if "t1" in trials and store.curves(trials["t1"]):
                began.set()

    with pytest.raises(type(error)):
        run.go(
            record("t0", 2, "finished"),
            record("t1", 1),
            record("t1", 2),
            ends=error,
            between=in_store,
        )
    assert run.notes == []
    (parent,), trials = store.runs()
    assert (parent.info.status, trials["t1"].info.status) == (status, status)
    assert trials["t0"].info.status == "FINISHED"
    memory = run.run.folder / "tracking.json"
    known = read_json(memory)
    known["mlflow"]["trials"]["t1"]["epochs"] = (
        0  # killed before it could write down what it had logged
    )
    write_json(memory, known)

    again = run.reopened(record("t0", 2, "finished"), record("t1", 2, "pending"))
    again.go(record("t1", 2), record("t1", 3, "finished"), results=model_of(run))
    assert again.notes == []
    (after,), trials = store.runs()
    assert after.info.run_id == parent.info.run_id
    assert (after.info.status, trials["t1"].info.status) == ("FINISHED", "FINISHED")
    assert store.curves(trials["t0"]) == stepped([epoch(1), epoch(2)])
    assert store.curves(trials["t1"]) == stepped([epoch(1), epoch(2), epoch(3)])


def test_broken_store_is_reported_once_and_ends_nothing(tmp_path, store):
    run = Tracked(tmp_path, mlflow=store.uri, tensorboard=True)

    def breaks() -> None:
        deadline = time.monotonic() + 30
        while not (store.runs()[0] and store.runs()[1]) and time.monotonic() < deadline:
            pass
        store.file.write_bytes(b"no database any more" * 1000)

    run.go(record("t0", 1), record("t0", 2), record("t0", 3, "finished"), between=breaks)
    (note,) = run.notes
    assert note.startswith("tracking mlflow: ")
    assert note.endswith("nothing more is logged there, the run goes on")
    assert same(curves(run.run.folder / "tensorboard/t0"), stepped([epoch(1), epoch(2), epoch(3)]))


def test_damaged_tracking_file_logs_nothing_twice(tmp_path):
    run = Tracked(tmp_path, tensorboard=True)
    (run.run.folder / "tracking.json").write_text("{}")
    run.go(record("t0", 1), record("t0", 2, "finished"))
    (note,) = run.notes
    assert (
        "tracking.json cannot be read (it has no checksum); nothing is logged, the run goes on"
        in note
    )
    assert not (run.run.folder / "tensorboard").exists()


class Stuck:
    """A tracker whose server does not answer."""

    name = "stuck"

    def __init__(self) -> None:
        self.state: TrackerState = {"trials": {}}
        self.asked, self.answer = threading.Event(), threading.Event()

    def open(self) -> None:
        self.asked.set()
        self.answer.wait(60)

    def trial(self, update) -> None:
        raise AssertionError

    def close(self, end) -> None:
        raise AssertionError


def test_silent_server_delays_nothing_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("raysft.tracking.trackers.FLUSH_SECONDS", 0.3)
    run, stuck = Tracked(tmp_path), Stuck()
    began = time.monotonic()
    with Tracking(run.job, run.run, run.notes.append, run.scratch) as tracking:
        tracking.threads.append(
            thread := TrackerThread(stuck, TrackingFile(run.run.folder), run.notes.append)
        )
        for number in range(1, 1000):
            tracking.trial(record("t0", number % 7), "epoch", 1.0) if number % 7 else None
        assert stuck.asked.wait(10)
        assert len(thread._updates) == 1  # the newest state of the trial, not a thousand
    assert time.monotonic() - began < 10
    assert run.notes == ["tracking stuck: did not take everything within 0.3 seconds"]
    stuck.answer.set()


# --- Weights & Biases --------------------------------------------------------------------------


def offline_runs(folder: Path) -> list[dict]:
    """What the files of W&B's offline runs below a folder hold, oldest first."""
    return [
        read_offline(file)
        for file in sorted(
            folder.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime
        )
    ]


def read_offline(file: Path) -> dict:
    """Run, steps, summary and exit code from a log in LevelDB's format: blocks of 32 KiB, records
    in pieces.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict = {"steps": [], "summary": {}, "config": {}, "exit": None}
    content, at, piece = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind == 0:
            break
        piece = (b"" if kind in (1, 2) else piece) + content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            _take(found, Record.FromString(piece))
    return found


def _take(found: dict, told) -> None:
    def values(items) -> dict:
        return {
            item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items
        }

    if told.HasField("run"):
        found |= {
            "id": told.run.run_id,
            "group": told.run.run_group,
            "project": told.run.project,
            "name": told.run.display_name,
        }
        found["config"] |= values(told.run.config.update)
    elif told.HasField("config"):
        found["config"] |= values(told.config.update)
    elif told.HasField("history"):
        found["steps"].append(values(told.history.item))
    elif told.HasField("summary"):
        found["summary"] |= values(told.summary.update)
    elif told.HasField("exit"):
        found["exit"] = told.exit.exit_code


@pytest.mark.slow
def test_wandb_has_a_run_a_trial_and_resumes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("raysft.tracking.trackers.STOP_SECONDS", 30.0)
    run = Tracked(tmp_path, wandb="flowers", wandb_mode="offline")
    with pytest.raises(KeyboardInterrupt):
        run.go(
            record("t0", 1), record("t1", 1), record("t0", 2, "finished"), ends=KeyboardInterrupt()
        )
    assert run.notes == []
    first = {r["name"]: r for r in offline_runs(run.run.folder)}
    assert set(first) == {"r t0", "r t1"}
    assert {(r["group"], r["project"]) for r in first.values()} == {("r", "flowers")}
    assert first["r t0"]["config"]["train.optimizer.lr"] == 0.01
    logged = [
        {k: v for k, v in step.items() if not k.startswith("_")} for step in first["r t0"]["steps"]
    ]
    assert logged == [logged_of(epoch(1)), logged_of(epoch(2))]
    assert [step["_step"] for step in first["r t0"]["steps"]] == [1, 2]
    assert first["r t0"]["summary"]["status"] == "finished"
    assert (first["r t0"]["exit"], first["r t1"]["exit"]) == (0, 130)

    again = run.reopened(record("t0", 2, "finished"), record("t1", 1, "pending"))
    again.go(record("t1", 1), record("t1", 2, "failed", "boom"), results=model_of(run))
    assert again.notes == []
    later = [
        r
        for r in offline_runs(run.run.folder)
        if r["name"] not in first or r["exit"] != first[r["name"]]["exit"]
    ]
    assert [(r["name"], r["exit"]) for r in later] == [("r t1", 1), ("r result", 0)]
    assert later[0]["id"] == first["r t1"]["id"]
    assert [step["_step"] for step in later[0]["steps"]] == [2]
    assert later[0]["summary"]["error"] == "boom"
    assert later[1]["summary"]["test_accuracy"] == 0.5


# --- what is refused before anything starts ----------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://me:geheim@host:5000", "has a user or a password in it"),
        ("https://geheim@host", "has a user or a password in it"),
        ("postgresql://host/db?password=geheim", "has a user or a password in it"),
        ("mlruns", "MLflow keeps no runs in plain folders any more"),
        ("file:///mlruns", "MLflow keeps no runs in plain folders any more"),
    ],
)
def test_refused_address_is_not_repeated(address, expected):
    with pytest.raises(JobErrors, match=expected) as told:
        validate_job({"tracking": {"mlflow": address}}, "j.yaml")
    assert str(told.value).startswith("j.yaml: tracking.mlflow: ")
    assert "geheim" not in str(told.value)


@pytest.mark.parametrize("package", ["tensorboard", "mlflow", "wandb"])
def test_missing_package_is_refused_at_the_start(monkeypatch, package):
    monkeypatch.setattr(
        "raysft.run.preflight.find_spec",
        lambda name: None if name == package else importlib.util.find_spec(name),
    )
    spec = Spec(
        tensorboard=package == "tensorboard",
        mlflow="http://host:1" if package == "mlflow" else None,
        wandb="p" if package == "wandb" else None,
        wandb_mode="offline",
    )
    with pytest.raises(
        UserError,
        match=rf"tracking.{package}: the package {package} is not installed; .*pip install",
    ):
        check_tracking(spec)
    monkeypatch.undo()
    check_tracking(spec)


def test_wandb_online_needs_a_key(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(
        UserError, match=r"no key for Weights & Biases; set WANDB_API_KEY, or tracking.wandb_mode"
    ):
        outline_of(Job(tracking=Spec(wandb="p")))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / "netrc").chmod(0o600)
    check_tracking(Spec(wandb="p"))
    check_tracking(Spec(wandb="p", wandb_mode="offline"))


def test_tree_is_flat_without_what_is_not_set():
    assert flatten({"a": {"b": 1, "c": None, "d": {"e.f": True}}, "g": [1, "x"]}) == {
        "a.b": 1,
        "a.d.e.f": True,
        "g": '[1, "x"]',
    }
