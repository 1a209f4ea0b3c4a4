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
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from raysft.cluster.messages import decode, messages, summarize
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


@pytest.fixture
def call(home, tmp_path):
    """Run raysft in an empty folder; returns the finished process."""
    (tmp_path / "here").mkdir()

    def _call(*words: object, **more: str) -> subprocess.CompletedProcess:
        env = environment(HOME=str(home)) | more
        return subprocess.run(
            [RAYSFT, *map(str, words)],
            cwd=tmp_path / "here",
            env=env,
            capture_output=True,
            text=True,
            timeout=180,
        )

    return _call


@pytest.fixture
def job(tmp_path) -> Path:
    images = make_images(tmp_path / "images", {"ant": 100, "bee": 100})
    tree = {
        "name": "j",
        "data": {"source": "imagefolder", "path": str(images)},
        "storage": str(tmp_path / "storage"),
        "model": {"name": "raysft.train.smallnet:small_cnn", "weights": "none"},
        "train": {"epochs": 3, "batch_size": 50},
        "search": {"trials": 2, "scheduler": {"name": "none"}},
        "resources": {"workers": 2},
    }
    path = tmp_path / "j.yaml"
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


def test_run_is_followed_to_end_and_listed(cluster, call, job, tmp_path, proxy):
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

    results = json.loads(call("results", "first", "--address", cluster, "--json").stdout)
    assert results == read_json(tmp_path / "storage/first/results.json")
    rows = json.loads(call("list", "--json", RAY_ADDRESS=cluster).stdout)
    assert [row["status"] for row in rows if row["run"] == "first"] == ["done"]
    status = json.loads(call("status", "first", "--address", cluster, "--json").stdout)
    assert [trial["status"] for trial in status["trials"]] == ["finished"] * 2
    assert "raysft: results" in call("logs", "first", "--address", cluster).stdout
    again = call("submit", job, "--address", cluster, "--name", "first")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)

    words = (
        "predict",
        tmp_path / "storage/first",
        tmp_path / "images",
        "--out",
        tmp_path / "p.parquet",
        "--json",
        "--trust-code",
    )
    predicted = json.loads(call(*words, "--address", cluster).stdout)
    assert (predicted["images"], predicted["errors"]) == (200, 0)
    assert len(pq.read_table(tmp_path / "p.parquet")) == 200
    twice = call(*words, "--address", cluster)
    assert (twice.returncode, twice.stderr.count("\n")) == (2, 1)
    assert "already exists" in twice.stderr


def test_run_outlives_client_and_resumes_where_stopped(cluster, call, job, home, tmp_path, proxy):
    def start(*words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [RAYSFT, *words, "--address", f"http://127.0.0.1:{proxy.port}"],
            cwd=tmp_path,
            env=environment(HOME=str(home)),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    client = start(
        "submit",
        str(job),
        "--name",
        "long",
        "--set",
        "train.epochs=400",
        "--set",
        "search.trials=1",
    )
    assert client.stdout is not None
    assert any(line.startswith("results ") for line in client.stdout)
    client.kill()
    follower = start("logs", "long", "--follow")
    assert follower.stdout is not None
    assert follower.stderr is not None
    first = follower.stdout.readline()
    proxy.cut()
    assert "connection lost" in follower.stderr.readline()
    proxy.open = True
    trial = tmp_path / "storage/long/trials/t0/trial.json"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (
        trial.is_file() and json.loads(trial.read_text())["epochs"] > 2
    ):
        time.sleep(0.2)

    assert call("stop", "long", "--address", cluster).returncode == 0
    assert json.loads((tmp_path / "storage/long/run.json").read_text())["status"] == "stopped"
    rest, _ = follower.communicate(timeout=60)
    assert (first + rest).count("data kept") == 1

    before = json.loads(trial.read_text())
    stored = tmp_path / "storage/long/job.yaml"
    stored.write_text(stored.read_text().replace("epochs: 400", f"epochs: {before['epochs'] + 2}"))
    info = stored.with_name("run.json")
    write_json(info, read_json(info) | {"job": sha256(stored)})  # or it would be taken for damaged
    resumed = call("resume", "long", "--address", cluster)
    assert resumed.returncode == 0, resumed.stderr
    assert [resumed.stdout.count(line) for line in ("[1/1]", "test accuracy")] == [1, 1]
    after = json.loads(trial.read_text())
    assert after["history"][: before["epochs"]] == before["history"]
    assert after["epochs"] == before["epochs"] + 2
    assert after["status"] == "finished"
    assert call("resume", "long", "--address", cluster).stderr.startswith("error: long: is done")


def test_run_can_be_watched_and_scraped_by_prometheus(cluster, call, job, home, tmp_path):
    submitted = call(
        "submit",
        job,
        "--address",
        cluster,
        "--name",
        "seen",
        "--detach",
        "--set",
        "train.epochs=100000",
        "--set",
        "search.trials=1",
    )
    assert submitted.stdout == "seen\n"
    watching = subprocess.Popen(
        [RAYSFT, "status", "seen", "--watch", "--json", "--address", cluster],
        cwd=tmp_path,
        env=environment(HOME=str(home)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stdout is not None
    assert any('"doing": "training"' in line and '"epoch": 2,' in line for line in watching.stdout)
    deadline, found = time.monotonic() + 60, dict[str, float]()
    while time.monotonic() < deadline and not found.get("best_metric"):
        time.sleep(0.5)
        found = scraped("seen")
    assert call("stop", "seen", "--address", cluster).returncode == 0
    assert found["epochs_total"] == 100000
    assert 0 < found["epochs_done"] < 100000
    assert 0 < found["best_metric"] <= 1
    assert found["images_per_second"] > 0
    assert 0 <= found["data_wait_fraction"] < 1
    assert {key: value for key, value in found.items() if key.startswith("trials") and value} == {
        "trials running": 1
    }
    assert "gpu_utilization" not in found  # there is none

    out, err = watching.communicate(timeout=60)
    assert (watching.returncode, err) == (0, "")
    documents = [json.loads(line) for line in out.splitlines()]
    assert documents[-1]["status"] == "stopped"
    (trial,) = documents[-1]["trials"]
    stored = json.loads((tmp_path / "storage/seen/trials/t0/trial.json").read_text())["history"]
    assert trial["history"] == stored[: len(trial["history"])]
    assert len(trial["history"]) > 1


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


def test_run_unknown_to_cluster_resumes_from_folder(cluster, call, job, tmp_path):
    run = Run.create(load_job(job, ["search.trials=1", "train.epochs=1"]), "unknown")
    run.save(status="stopped")
    (tmp_path / "images").rename(tmp_path / "photos")
    assert "is not a run of" in call("resume", "unknown", "--address", cluster).stderr
    refused = call("resume", run.folder, "--address", cluster)
    assert refused.returncode == 2
    assert f"`raysft resume {run.folder} --set data.path=PATH` says where it is" in refused.stderr
    assert (
        "ended before it began to train" in call("resume", "unknown", "--address", cluster).stderr
    )
    done = call(
        "resume",
        run.folder,
        "--workers",
        "1",
        "--set",
        f"data.path={tmp_path}/photos",
        "--address",
        cluster,
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "1 team of 1 worker" in done.stdout
    assert read_json(run.folder / "run.json")["status"] == "done"


def test_what_is_wrong_is_one_line(cluster, call, job, tmp_path):
    wrong = {
        "storage=/proc/none": "storage: /proc/none: cannot be used from node",
        "tracking.mlflow=sqlite:///mlflow.db": "is a file in the current folder, which a "
        "cluster's job has not",
    }
    for number, (override, expected) in enumerate(wrong.items()):
        done = call(
            "submit", job, "--address", cluster, "--name", f"wrong-{number}", "--set", override
        )
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert expected in line
    assert not (tmp_path / "storage").exists()


def test_plan_measures_cost_and_leaves_only_data_sets(cluster, call, job, tmp_path):
    planned = json.loads(
        call(
            "plan",
            job,
            "--address",
            cluster,
            "--json",
            "--measure",
            "--set",
            "cluster.price_per_hour=2",
        ).stdout
    )
    assert planned["slots"] == [{"teams": 1, "workers": 2}]
    assert len(planned["nodes"]) == 1
    assert planned["measured"]["images_per_s"] > 0
    assert planned["measured"]["cost"] == pytest.approx(2 * planned["measured"]["hours"])
    assert [p.name for p in (tmp_path / "storage").iterdir()] == [
        "datasets"
    ]  # nothing else is left of it


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


def test_run_waits_for_autoscaled_nodes(no_ray, job, tmp_path, monkeypatch):
    """Two raylets on this machine; the second, with the CPUs, comes when the run has asked for
    it.
    """
    from ray.cluster_utils import Cluster

    for name, value in environment(HOME=str(tmp_path), RAY_AUTH_MODE="disabled").items():
        monkeypatch.setenv(name, value)
    (
        tmp_path / "ray_bootstrap_config.yaml"
    ).touch()  # what `ray up` leaves on a head with an autoscaler
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        run = subprocess.Popen(
            [sys.executable, "-m", "raysft.entrypoints.train", str(job), "zero"],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"RAY_ADDRESS": machines.address, "PYTHONPATH": str(REPOSITORY)},
        )
        assert run.stdout is not None
        first = decode(run.stdout.readline())
        assert first is not None
        assert first.payload["text"] == (
            "a trial of 2 workers needs 2 CPUs, the cluster has 0 CPUs and 0 GPUs; "
            "waiting up to 15 minutes for more nodes"
        )
        machines.add_node(num_cpus=2)
        rest, _ = run.communicate(timeout=180)
    finally:
        machines.shutdown()
    seen = summarize(messages(rest))
    assert (seen.status, seen.errors) == ("done", [])
    assert seen.results is not None
