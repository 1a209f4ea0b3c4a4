"""The command line as a person meets it: what it answers, how fast, and what it leaves behind."""

import contextlib
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raysft import cli
from raysft.cli import session
from raysft.storage import write_json
from tests.conftest import make_images

REPOSITORY = Path(__file__).parents[1]
RAYSFT = str(Path(sys.executable).parent / "raysft")
QUICKSTART = str(REPOSITORY / "jobs/quickstart.yaml")
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


class Answer:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def call(capfd, monkeypatch):
    """Call the command line in this process."""

    def _call(*words: object) -> Answer:
        session.output.cache_clear()
        monkeypatch.setattr(cli, "_leave", sys.exit)
        monkeypatch.setattr(sys, "argv", ["raysft", *map(str, words)])
        capfd.readouterr()
        before = {
            number: signal.getsignal(number)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        }
        with pytest.raises(SystemExit) as left:
            cli.main()
        for number, handler in before.items():
            signal.signal(number, handler)
        return Answer(int(left.value.code or 0), *capfd.readouterr())

    return _call


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def job_file(folder: Path, **sections) -> Path:
    tree = {
        "name": "j",
        "train": {"epochs": 1, "batch_size": 16},
        "data": {"source": "digits"},
        "model": {"name": "tests.tiny:tiny", "weights": "none"},
    } | sections
    path = folder / "j.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


# --- at once -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["submit", "--help"], 0),
        (["submit", "bad.yaml"], 2),
        (["plan", "bad.yaml", "--set", "train.epoch=3"], 2),
    ],
)
def test_help_and_a_rejected_job_answer_at_once(here, words, status):
    (here / "bad.yaml").write_text("train: {epochs: ten}\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", RAYSFT, *words], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == status
    assert (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    )  # the limit of the requirement
    imported = {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "raysft.cli" in imported
    assert not {"ray", "torch", "numpy", "pyarrow"} & imported


def test_every_command_has_an_example(call):
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert {
        "submit",
        "plan",
        "list",
        "status",
        "results",
        "evaluate",
        "predict",
        "schema",
    } <= commands
    for command in (*cli.app.registered_commands, *cli.data.app.registered_commands):
        assert "raysft" in (command.epilog or "")


def test_version_and_schema(call):
    assert call("--version").out.startswith("raysft ")
    assert json.loads(call("schema").out)["properties"]["train"]


def test_a_plan_starts_nothing(call, here):
    answer = call("plan", QUICKSTART, "--json")
    assert answer.status == 0
    document = json.loads(answer.out)
    assert document["rows"] == {"train": 1293, "val": 144, "test": 360}
    assert document["trials"] == 6
    assert not list(here.iterdir())


# --- wrong input -------------------------------------------------------------------------------


def _two_classes(root: Path) -> Path:
    return make_images(root / "images", {"ant": 6, "bee": 6})


def _empty_class(root: Path) -> dict:
    (_two_classes(root) / "cow").mkdir()
    return {"data": {"source": "imagefolder", "path": str(root / "images")}}


def _single_class(root: Path) -> dict:
    return {
        "data": {"source": "imagefolder", "path": str(make_images(root / "images", {"ant": 6}))}
    }


def _other_test_classes(root: Path) -> dict:
    make_images(root / "images/train", {"ant": 6, "bee": 6})
    make_images(root / "images/test", {"ant": 2, "dog": 2})
    return {"data": {"source": "imagefolder", "path": str(root / "images")}}


def _newer_format(root: Path) -> dict:
    (root / "D").mkdir()
    write_json(root / "D/dataset.json", {"format": 99})
    return {"data": {"source": "shards", "path": str(root / "D")}}


WRONG_JOBS = {
    "unknown key": (lambda root: {"trian": {}}, "trian: is not a key; did you mean train?"),
    "wrong type": (lambda root: {"seed": "x"}, "seed: got 'x', must be a whole number"),
    "out of range": (
        lambda root: {"train": {"epochs": 0}},
        "train.epochs: got 0, must be greater than or equal to 1",
    ),
    "missing path": (
        lambda root: {"data": {"source": "imagefolder", "path": "nowhere"}},
        "does not exist",
    ),
    "missing data set": (
        lambda root: {"data": {"source": "shards", "path": "nowhere"}},
        "nowhere: is not a data set",
    ),
    "empty class": (_empty_class, "cow: has no images"),
    "single class": (_single_class, "has a single class (ant)"),
    "other classes": (
        _other_test_classes,
        "has classes that the training images lack: dog; it lacks bee",
    ),
    "newer format": (_newer_format, "has format 99, this raysft reads up to 3"),
    "too many workers": (
        lambda root: {"resources": {"workers": 999}, "train": {"batch_size": 1000}},
        "a trial of 999 workers needs 999 CPUs, the cluster has",
    ),
    "no GPU": (
        lambda root: {"resources": {"workers": 16, "gpus_per_worker": 1}},
        "a trial of 16 workers needs",
    ),
}


@pytest.mark.parametrize("case", WRONG_JOBS)
def test_wrong_job_is_one_line_and_writes_nothing(call, here, tmp_path, case):
    sections, expected = WRONG_JOBS[case]
    answer = call("submit", job_file(tmp_path, **sections(tmp_path)))
    assert answer.status == 2
    (line,) = answer.lines
    assert line.startswith("error: ")
    assert expected in line
    assert answer.out == ""
    assert not list(here.iterdir())


def test_two_problems_are_two_lines(call, here, tmp_path):
    answer = call("submit", job_file(tmp_path, seed=-1, stroage="x"))
    assert answer.status == 2
    assert len(answer.lines) == 2
    assert "did you mean storage" in answer.err
    assert "seed: got -1" in answer.err


def test_offline_error_says_where_to_put_file(call, here, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "urllib.request._opener", None
    )  # it keeps the proxies that it was first used with
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    answer = call("submit", job_file(tmp_path, data={"source": "cifar10"}))
    assert answer.status == 2
    (line,) = answer.lines
    assert "cannot be downloaded" in line
    assert f"put cifar-10-python.tar.gz at {tmp_path / 'cache'}" in line
    assert not list(here.glob("runs/*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["submit", "none.yaml"], "none.yaml: no such job file"),
        (["submit", QUICKSTART, "--set", "x"], "is not KEY=VALUE"),
        (["submit", QUICKSTART, "--name", "a/b"], "is not a plain name"),
        (["results", "nothing"], "nothing: is not a run"),
        (["evaluate", "nothing", "data"], "nothing: is not a model"),
        (["predict", "nothing", "a.jpg"], "nothing: is not a model"),
        (["data", "show", "nothing"], "nothing: is not a data set"),
        (["data", "import", "video", "x", "--out", "D"], "video: is not a kind of data"),
        (
            ["data", "import", "digits", "--out", "D", "--on-bad-image", "hide"],
            "--on-bad-image hide: is not a policy",
        ),
        (["data", "import", "imagefolder", "nowhere", "--out", "D"], "nowhere: does not exist"),
    ],
)
def test_a_wrong_call_is_one_line(call, here, words, expected):
    answer = call(*words)
    assert answer.status == 2
    (line,) = answer.lines
    assert expected in line
    assert not list(here.iterdir())


def test_debug_shows_the_traceback(call, here):
    assert "Traceback" in call("results", "nothing", "--debug").err
    assert "Traceback" not in call("results", "nothing").err


# --- wrong input that shows once Ray reads the data --------------------------------------------


def run(*words: object, cwd: Path, **environment: str) -> Answer:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    done = subprocess.run(
        [RAYSFT, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def _truncated_image(root: Path) -> dict:
    image = _two_classes(root) / "bee/003.png"
    image.write_bytes(image.read_bytes()[:-40])
    return {"data": {"source": "imagefolder", "path": str(root / "images")}}


def test_wrong_data_is_one_line(no_ray, here, tmp_path):
    answer = run("submit", job_file(tmp_path, **_truncated_image(tmp_path)), cwd=here)
    assert answer.status == 2
    (line,) = answer.lines
    assert "bee/003.png: is not a readable image" in line
    assert not list(here.glob("runs/*"))


# --- the quickstart ----------------------------------------------------------------------------


def test_the_quickstart_from_one_command_to_predictions(no_ray, call, here, tmp_path, monkeypatch):
    answer = run("submit", QUICKSTART, "--name", "first", cwd=here, COLUMNS="40")
    assert answer.status == 0, answer.err
    assert answer.err == ""
    assert len(answer.out.splitlines()) <= 40
    assert "starting Ray on this machine" in answer.out.splitlines()[0]
    assert "raysft evaluate runs/first/model" in answer.out

    results = json.loads(call("results", "first", "--json").out)
    assert results["best"]["test_accuracy"] >= 0.97
    assert len(results["trials"]) == 6
    assert results["best"]["trial"] in call("results", "first").out
    assert json.loads(call("list", "--json").out)[0]["status"] == "done"
    assert len(json.loads(call("status", "first", "--json").out)["trials"]) == 6
    assert (here / "runs/first/raysft.log").stat().st_size > 0

    data = next(Path(os.environ["RAYSFT_CACHE"]).glob("datasets/digits-*"))
    scores = json.loads(call("evaluate", "runs/first", data, "--json").out)
    assert scores["accuracy"] == pytest.approx(results["best"]["test_accuracy"])
    assert [row["support"] for row in scores["classes"]] == [
        sum(row) for row in scores["confusion"]
    ]
    shown = call("evaluate", "runs/first", data).out
    assert f"accuracy {scores['accuracy']:.4f}" in shown
    assert "by what they were taken for" in shown
    image = next(make_images(tmp_path / "some", {"x": 1}).rglob("*.png"))
    (found,) = json.loads(call("predict", "runs/first/model", image, "--json").out)
    assert found["class"] in map(str, range(10))
    assert 0 < found["probability"] <= 1
    assert (
        call("submit", QUICKSTART, "--name", "first")
        .lines[0]
        .endswith("already exists; give another --name")
    )

    for kind in ("safetensors", "torch-export", "onnx"):
        checked = json.loads(call("export", "runs/first", "--format", kind, "--json").out)[
            "checked"
        ]
        assert checked["data"] == str(data)
        assert checked["accuracy"] == checked["model_accuracy"] == pytest.approx(scores["accuracy"])
        assert checked["largest_difference"] <= checked["tolerance"]


def test_in_a_terminal_nobody_but_raysft_speaks(no_ray, here):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [RAYSFT, "data", "import", "digits", "--out", "D"],
        cwd=here,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how the end of a terminal shows
        while block := os.read(controller, 1 << 16):
            shown += block
    os.close(controller)
    assert process.wait(60) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "\n")
    said = {line.split()[0] for line in plain.splitlines() if line.split()}
    assert said == {"import", "D:", "split", "train", "test"}
