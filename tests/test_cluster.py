"""Runs on a real cluster, through its dashboard: submitted, followed, stopped, resumed; and what
the client sends.
"""

import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from raysft.entrypoints.ray_job import shared_storage
from raysft.errors import UserError
from raysft.job import load_job
from raysft.records.run import Run
from raysft.storage import read_json, sha256, write_json
from tests.conftest import make_images, processes_of, processes_of_ray

REPOSITORY = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
RAYSFT = str(Path(sys.executable).parent / "raysft")
PORT, GCS, METRICS = 8965, 6979, 8966
ADDRESS = f"http://127.0.0.1:{PORT}"


def environment(**more: str) -> dict[str, str]:
    # The cluster's jobs call `python`; the repository is there for tests.tiny alone, raysft itself
    # is sent.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "RAY_AUTH_MODE": "token", "COLUMNS": "120"} | more


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home folder with a token, the cluster's and the client's."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray/auth_token").write_text("a" * 64)
    return folder


@pytest.fixture(scope="module")
def cluster(module_without_ray, home, tmp_path_factory):
    """A head with two CPUs, as `ray start` makes it."""
    begun = time.time()
    scratch = (
        Path("/tmp") / f"rc{os.getpid()}"
    )  # Ray's sockets lie in it, and their paths must be short
    env = environment(
        HOME=str(home), RAYSFT_TEST_MARK=scratch.name, RAY_metrics_report_interval_ms="1000"
    )
    command = [
        RAY,
        "start",
        "--head",
        f"--port={GCS}",
        "--num-cpus=2",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={PORT}",
        "--dashboard-agent-listen-port=52965",
        f"--metrics-export-port={METRICS}",
        "--disable-usage-stats",
        f"--temp-dir={scratch}",
        "--block",
    ]
    with (tmp_path_factory.mktemp("ray") / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_for_port(PORT, process)
        yield ADDRESS
    finally:
        for left in processes_of(scratch.name) + processes_of_ray(begun):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(30)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    pytest.fail("the cluster did not start")


def call_in(folder: Path, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess:
    """Run raysft in a folder; returns the finished process."""
    return subprocess.run(
        [RAYSFT, *map(str, words)],
        cwd=folder,
        env=environment(HOME=str(home)) | more,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture
def call(home, tmp_path):
    """Run raysft in an empty folder; returns the finished process."""
    (tmp_path / "here").mkdir()

    def _call(*words: object, **more: str) -> subprocess.CompletedProcess:
        return call_in(tmp_path / "here", home, *words, **more)

    return _call


@pytest.fixture
def job(tmp_path) -> Path:
    return make_job(tmp_path)


def make_job(folder: Path) -> Path:
    """A job file on 200 images, all of it in a folder."""
    images = make_images(folder / "images", {"ant": 100, "bee": 100})
    tree = {
        "name": "j",
        "data": {"source": "imagefolder", "path": str(images)},
        "storage": str(folder / "storage"),
        "model": {"name": "raysft.train.smallnet:small_cnn", "weights": "none"},
        "train": {"epochs": 3, "batch_size": 50},
        "search": {"trials": 2, "scheduler": {"name": "none"}},
        "resources": {"workers": 2},
    }
    path = folder / "j.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Proxy:
    """A way to a port that counts what is sent, and can be cut and mended."""

    def __init__(self, target: int) -> None:
        self.target, self.sent, self.open = target, 0, True
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.open = False
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if not self.open:
                    client.close()
                    continue
                pair = client, socket.create_connection(("127.0.0.1", self.target))
                self._pairs.append(pair)
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, contextlib.suppress(OSError):
            while True:
                for end in select.select([client, server], [], [])[0]:
                    block = end.recv(1 << 16)
                    if not block:
                        return
                    self.sent += len(block) if end is client else 0
                    (server if end is client else client).sendall(block)


@pytest.fixture
def proxy(cluster):
    found = Proxy(PORT)
    yield found
    found.close()


# --- asked for at the same time, and beside the first run: each waits for Ray most of its time -----

WRONG = {
    "storage=/proc/none": "storage: /proc/none: cannot be used from node",
    "tracking.mlflow=sqlite:///mlflow.db": "is a file in the current folder, which a "
    "cluster's job has not",
}


@dataclass
class Answers:
    folder: Path
    wrong: dict[str, subprocess.CompletedProcess]
    """What was said to each wrong override."""
    planned: subprocess.CompletedProcess
    """The answer to `plan --measure` of a job in the folder `measured`."""
    detached: subprocess.CompletedProcess
    """What `submit --detach` said of a run `left`."""
    unknown: Run
    """A run of this machine, which the cluster does not know, and whose images were moved."""
    moved: subprocess.CompletedProcess
    """The answer to `resume` of its folder, without a word of the images."""


@pytest.fixture(scope="module")
def asked(cluster, home, tmp_path_factory) -> "Iterator[Future[Answers]]":
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(ask, cluster, home, tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def answers(asked) -> Answers:
    return asked.result()


def ask(cluster: str, home: Path, folder: Path) -> Answers:
    for name in ("wrong", "measured", "elsewhere"):  # apart: a run looks for moved data nearby
        (folder / name).mkdir()

    def call(*words: object) -> "Future[subprocess.CompletedProcess]":
        return pool.submit(call_in, folder, home, *words, "--address", cluster)

    job = make_job(folder / "wrong")
    elsewhere = make_job(folder / "elsewhere")
    unknown = Run.create(load_job(elsewhere, ["search.trials=1", "train.epochs=1"]), "unknown")
    unknown.save(status="stopped")
    (folder / "elsewhere/images").rename(folder / "elsewhere/photos")
    with ThreadPoolExecutor(5) as pool:
        wrong = {
            override: call("submit", job, "--name", f"wrong-{number}", "--set", override)
            for number, override in enumerate(WRONG)
        }
        price = ("--set", "cluster.price_per_hour=2")
        planned = call("plan", make_job(folder / "measured"), "--json", "--measure", *price)
        fails_there = ("--set", "storage=/proc/none")
        detached = call("submit", job, "--name", "left", "--detach", *fails_there)
        moved = call("resume", unknown.folder)
    found = {override: answer.result() for override, answer in wrong.items()}
    return Answers(folder, found, planned.result(), detached.result(), unknown, moved.result())


def test_run_is_followed_to_end_and_listed(cluster, asked, call, job, tmp_path, proxy):
    with (tmp_path / "here/large").open("wb") as file:
        file.truncate(300_000_000)  # what lies in the current folder must not travel
    done = call("submit", job, "--address", f"http://127.0.0.1:{proxy.port}", "--name", "first")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert proxy.sent < 2_000_000
    assert "[2/2]" in done.stdout
    assert "test accuracy" in done.stdout

    assert list(
        (tmp_path / "storage/datasets").glob("imagefolder-*/dataset.json")
    )  # where all nodes can read it

    there, model, images = ("--address", cluster), tmp_path / "storage/first", tmp_path / "images"
    predict = ("predict", model, images, "--json", "--trust-code", *there, "--out")
    out, taken = tmp_path / "p.parquet", tmp_path / "taken.parquet"
    taken.touch()

    def ask_beside(*words: object, **more: str) -> "Future[subprocess.CompletedProcess]":
        return pool.submit(lambda: call(*words, **more))

    with ThreadPoolExecutor(7) as pool:  # each waits for Ray most of its time
        predicted = ask_beside(*predict, out)
        refused = ask_beside(*predict, taken)
        again = ask_beside("submit", job, *there, "--name", "first")
        results = ask_beside("results", "first", *there, "--json")
        listed = ask_beside("list", "--json", RAY_ADDRESS=cluster)
        status = ask_beside("status", "first", *there, "--json")
        logs = ask_beside("logs", "first", *there)
    said = json.loads(predicted.result().stdout)
    assert (said["images"], said["errors"]) == (200, 0)
    assert len(pq.read_table(out)) == 200
    for wrong, why in ((refused, "already exists"), (again, "is a run of this cluster already")):
        assert (wrong.result().returncode, wrong.result().stderr.count("\n")) == (2, 1)
        assert why in wrong.result().stderr
    assert json.loads(results.result().stdout) == read_json(model / "results.json")
    rows = json.loads(listed.result().stdout)
    assert [row["status"] for row in rows if row["run"] == "first"] == ["done"]
    trials = json.loads(status.result().stdout)["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 2
    assert "raysft: results" in logs.result().stdout


# --- a run whose client dies, watched, stopped and resumed ----------------------------------------


@dataclass
class Stopped:
    """A run of very many epochs once it was stopped, and what was seen of it until then."""

    folder: Path
    """Where its job file is."""
    lost: str
    """What its follower said when the connection was cut."""
    followed: str
    """All that the follower has shown."""
    watched: list[dict]
    """The documents of `status --watch --json`."""
    scraped: dict[str, float]
    """raysft's gauges, as Prometheus reads them."""
    trial: dict
    """trial.json."""

    @property
    def run(self) -> Path:
        return self.folder / "storage/long"


@pytest.fixture(scope="module")
def stopped(cluster, home, tmp_path_factory) -> Iterator[Stopped]:
    folder = tmp_path_factory.mktemp("long")
    proxy = Proxy(PORT)

    def start(*words: str, address: str = f"http://127.0.0.1:{proxy.port}") -> subprocess.Popen:
        return subprocess.Popen(
            [RAYSFT, *words, "--address", address],
            cwd=folder,
            env=environment(HOME=str(home)),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    overrides = ("--set", "train.epochs=100000", "--set", "search.trials=1")
    client = start("submit", str(make_job(folder)), "--name", "long", *overrides)
    assert any(line.startswith("results ") for line in lines_of(client))
    client.kill()
    follower = start("logs", "long", "--follow")
    watcher = start("status", "long", "--watch", "--json", address=cluster)
    followed = next(lines_of(follower))
    proxy.cut()
    assert follower.stderr is not None
    lost = follower.stderr.readline()
    proxy.open = True

    watched = []
    for line in lines_of(watcher):
        watched.append(json.loads(line))
        if '"doing": "training"' in line and '"epoch": 2,' in line:
            break
    deadline, found = time.monotonic() + 60, dict[str, float]()
    while time.monotonic() < deadline and not found.get("best_metric"):
        time.sleep(0.5)
        found = scraped("long")

    assert call_in(folder, home, "stop", "long", "--address", cluster).returncode == 0
    rest, _ = follower.communicate(timeout=60)
    out, err = watcher.communicate(timeout=60)
    assert (watcher.returncode, err) == (0, "")
    watched += [json.loads(line) for line in out.splitlines()]
    trial = json.loads((folder / "storage/long/trials/t0/trial.json").read_text())
    yield Stopped(folder, lost, followed + rest, watched, found, trial)
    proxy.close()


def lines_of(process: subprocess.Popen) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)


def test_follower_reads_on_when_connection_is_back(stopped):
    assert "connection lost" in stopped.lost
    assert stopped.followed.count("data kept") == 1


def test_watched_run_tells_its_epochs_until_stopped(stopped):
    last = stopped.watched[-1]
    assert last["status"] == "stopped"
    (trial,) = last["trials"]
    assert trial["history"] == stopped.trial["history"][: len(trial["history"])]
    assert len(trial["history"]) > 1


def test_run_can_be_scraped_by_prometheus(stopped):
    found = stopped.scraped
    assert found["epochs_total"] == 100000
    assert 0 < found["epochs_done"] < 100000
    assert 0 < found["best_metric"] <= 1
    assert found["images_per_second"] > 0
    assert 0 <= found["data_wait_fraction"] < 1
    assert {key: value for key, value in found.items() if key.startswith("trials") and value} == {
        "trials running": 1
    }
    assert "gpu_utilization" not in found  # there is none


def test_run_outlives_client_and_resumes_where_stopped(stopped, cluster, home):
    def call(*words: object) -> subprocess.CompletedProcess:
        return call_in(stopped.folder, home, *words, "--address", cluster)

    assert read_json(stopped.run / "run.json")["status"] == "stopped"
    before = stopped.trial
    assert before["epochs"] > 2
    stored = stopped.run / "job.yaml"
    wanted = before["epochs"] + 2
    stored.write_text(stored.read_text().replace("epochs: 100000", f"epochs: {wanted}"))
    info = stored.with_name("run.json")
    write_json(info, read_json(info) | {"job": sha256(stored)})  # or it would be taken for damaged
    resumed = call("resume", "long")
    assert resumed.returncode == 0, resumed.stderr
    assert [resumed.stdout.count(line) for line in ("[1/1]", "test accuracy")] == [1, 1]
    after = read_json(stopped.run / "trials/t0/trial.json")
    assert after["history"][: before["epochs"]] == before["history"]
    assert after["epochs"] == wanted
    assert after["status"] == "finished"
    assert call("resume", "long").stderr.startswith("error: long: is done")


def scraped(run: str) -> dict[str, float]:
    """raysft's gauges of a run on the node's metrics endpoint, those of trials with their
    status.
    """
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as page,
    ):
        lines = re.findall(r"^ray_raysft_(\w+)\{(.*)\} (\S+)$", page.read().decode(), re.MULTILINE)
        labels = [
            (name, dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value))
            for name, tags, value in lines
        ]
        return {
            " ".join(filter(None, [name, tags.get("status")])): value
            for name, tags, value in labels
            if tags["run"] == run
        }
    return {}


# --- what was asked for beside the first run ------------------------------------------------------


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_one_line(answers, override):
    done = answers.wrong[override]
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert WRONG[override] in line
    assert not (answers.folder / "wrong/storage").exists()


def test_plan_measures_cost_and_leaves_only_data_sets(answers):
    planned = json.loads(answers.planned.stdout)
    assert planned["slots"] == [{"teams": 1, "workers": 2}]
    assert len(planned["nodes"]) == 1
    assert planned["measured"]["images_per_s"] > 0
    assert planned["measured"]["cost"] == pytest.approx(2 * planned["measured"]["hours"])
    left = [path.name for path in (answers.folder / "measured/storage").iterdir()]
    assert left == ["datasets"]


def test_detached_run_is_only_named(answers):
    assert (answers.detached.returncode, answers.detached.stdout) == (0, "left\n")


def test_moved_images_are_asked_for(answers):
    assert answers.moved.returncode == 2
    hint = f"`raysft resume {answers.unknown.folder} --set data.path=PATH` says where it is"
    assert hint in answers.moved.stderr


@pytest.mark.long
def test_run_unknown_to_cluster_resumes_from_folder(answers, cluster, home):
    def resume(*words: object) -> subprocess.CompletedProcess:
        return call_in(answers.folder, home, "resume", *words, "--address", cluster)

    folder = answers.unknown.folder
    assert "is not a run of" in resume("nobody").stderr
    assert "ended before it began to train" in resume("unknown").stderr
    photos = f"data.path={answers.folder}/elsewhere/photos"
    done = resume(folder, "--workers", "1", "--set", photos)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "1 team of 1 worker" in done.stdout
    assert read_json(folder / "run.json")["status"] == "done"


# --- without a run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "nodes", "base", "expected"),
    [
        ("s3://b/runs", 3, None, "s3://b/runs"),
        ("/mnt/runs", 3, "s3://b", "/mnt/runs"),
        ("runs", 3, "s3://b/", "s3://b/runs"),
        ("runs", 1, None, str(Path.home() / "runs")),
    ],
)
def test_where_the_runs_of_a_cluster_go(monkeypatch, storage, nodes, base, expected):
    monkeypatch.delenv("RAYSFT_STORAGE", raising=False)
    if base:
        monkeypatch.setenv("RAYSFT_STORAGE", base)
    assert shared_storage(storage, nodes) == expected


def test_local_folder_is_refused_for_several_nodes(monkeypatch):
    monkeypatch.delenv("RAYSFT_STORAGE", raising=False)
    with pytest.raises(UserError, match="is a folder of one node, and the cluster has several"):
        shared_storage("runs", 3)


def test_a_client_without_the_token_is_refused(cluster, call, tmp_path):
    (tmp_path / "nohome").mkdir()
    done = call("list", "--address", cluster, HOME=str(tmp_path / "nohome"))
    assert done.returncode == 2
    assert "refuses this client" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_address_where_nothing_is_says_so(call):
    done = call("list", "--address", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr == (
        "error: http://127.0.0.1:9: cannot be reached; is the cluster up, and the tunnel "
        "(`raysft connect`) open?\n"
    )
    assert (
        "is not the address of a dashboard"
        in call("list", "--address", "ray://127.0.0.1:10001").stderr
    )
