"""One run from its first command to its end: stopped three times, resumed three times, watched.

Each start of a run costs ten seconds, so the tests ask one run for everything: what was done to it
stands in the fixtures, each of which goes on where the one before has left it.
"""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from tests.conftest import MARK, assert_nothing_is_left, make_images

RAYSFT = str(Path(sys.executable).parent / "raysft")
EPOCHS = 20
JOB = {
    "name": "j",
    "data": {"source": "imagefolder", "path": "images"},
    "train": {"epochs": EPOCHS, "batch_size": 16},
    "model": {"name": "mine:net", "weights": "none"},
    "search": {"trials": 3, "scheduler": {"name": "none"}, "space": {"optimizer": ["sgd"]}},
    "resources": {"workers": 2},
}
# A network of the current folder; a step takes a moment, so that there is something to watch.
NET = """
import time
from torch import nn


class Net(nn.Sequential):
    def forward(self, images):
        time.sleep(0.02 * self.training)
        return super().forward(images)


def net(num_classes):
    pooled = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return Net(nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), *pooled, nn.Linear(24, num_classes))
"""
# Not types.py: before anyone could do something about it, Python itself fails on that, and says so.
LIBRARIES = ("queue", "random", "ray", "torch", "numpy", "typer")


@pytest.fixture(scope="module")
def here(module_without_ray, tmp_path_factory) -> Path:
    """A current folder with a job, its network, and files that are named like libraries."""
    folder = tmp_path_factory.mktemp("here")
    make_images(folder / "images", {"ant": 40, "bee": 40})
    (folder / "mine.py").write_text(NET)
    (folder / "j.yaml").write_text(yaml.safe_dump(JOB))
    for name in LIBRARIES:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name}.py was imported')\n")
    return folder


@dataclass
class Ended:
    """A command that started a Ray, and what there was at its end."""

    process: subprocess.Popen[str]
    mark: str
    since: float = field(default_factory=time.time)
    out: str = ""
    err: str = ""
    status: str = ""
    """Of the run, as run.json says."""

    def end(self, run: Path) -> None:
        rest, self.err = self.process.communicate(timeout=120)
        self.out += rest
        self.status = json.loads((run / "run.json").read_text())["status"]

    def await_line(self, beginning: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.out += line
            if line.startswith(beginning):
                return
        pytest.fail(f"no line begins with {beginning!r}: {self.out}")

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)  # as a terminal does: the foreground group


def start(here: Path, *words: str) -> Ended:
    """Start a command in a session of its own, as a shell does."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(
        [RAYSFT, *words],
        cwd=here,
        env=os.environ | {MARK: mark, "PYTHONUNBUFFERED": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return Ended(process, mark)


def call(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAYSFT, *words], cwd=here, capture_output=True, text=True, timeout=120)


# --- what is done to the run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted_early(here) -> Ended:
    """Ctrl-C while Ray starts."""
    command = start(here, "submit", "j.yaml", "--name", "r")
    command.await_line("results ")
    command.interrupt()
    command.end(here / "runs/r")
    return command


@dataclass
class Stopped:
    command: Ended
    children: str
    """The command lines of its processes."""
    said: str
    """By `raysft stop`."""
    logged: str
    """What `raysft logs --follow` has shown of it."""
    again: str
    """What a second `raysft stop` says."""


@pytest.fixture(scope="module")
def stopped_elsewhere(here, interrupted_early) -> Stopped:
    """`raysft stop` in another terminal while workers start, the log followed in a third."""
    log = here / "runs/r/raysft.log"
    before = len(log.read_text()) if log.exists() else 0
    command = start(here, "resume", "r")
    command.await_line("data kept")
    family = psutil.Process(command.process.pid).children(recursive=True)
    children = " ".join(" ".join(process.cmdline()) for process in family)
    following = subprocess.Popen(
        [RAYSFT, "logs", "r", "--follow"], cwd=here, text=True, stdout=subprocess.PIPE
    )
    said = call(here, "stop", "r").stdout
    command.end(here / "runs/r")
    shown, _ = following.communicate(timeout=30)
    return Stopped(command, children, said, shown[before:], call(here, "stop", "r").stdout)


@pytest.fixture(scope="module")
def interrupted_in_training(here, stopped_elsewhere) -> tuple[Ended, str]:
    """Ctrl-C once a trial has ended; (the command, the record of that trial)."""
    command = start(here, "resume", "r")
    command.await_line("[1/3]")
    command.interrupt()
    command.end(here / "runs/r")
    trials = [path.read_text() for path in (here / "runs/r/trials").glob("*/trial.json")]
    (ended,) = [text for text in trials if json.loads(text)["status"] == "finished"]
    return command, ended


class Watching:
    """`raysft status r --watch` in a process of its own, on a terminal or not; what it shows is
    collected.
    """

    def __init__(self, cwd: Path, *words: str, terminal: bool = False) -> None:
        ours, theirs = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [RAYSFT, "status", "r", "--watch", *words],
            cwd=cwd,
            env=os.environ | {"COLUMNS": "120", "LINES": "40"},
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown, self.first = b"", threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours: int) -> None:
        with contextlib.suppress(OSError):  # how the end of a terminal shows
            while block := os.read(ours, 1 << 16):
                self.shown += block
                self.first.set()
        os.close(ours)

    def end(self) -> tuple[int, str, str]:
        """(exit status, what was shown, what went to standard error)."""
        _, err = self.process.communicate(timeout=120)
        self._reader.join(10)
        return self.process.returncode, self.shown.decode(), err


@dataclass
class Finished:
    command: Ended
    quitter: tuple[int, str, str]
    """Of a watcher that was interrupted; the others watched to the end."""
    table: tuple[int, str, str]
    lines: tuple[int, str, str]
    documents: tuple[int, str, str]


@pytest.fixture(scope="module")
def finished(here, interrupted_in_training) -> Finished:
    """Resumed to its end, and watched from four other places."""
    command = start(here, "resume", "r")
    command.await_line("results ")
    table, lines = Watching(here, terminal=True), Watching(here)
    documents, quitter = Watching(here, "--json"), Watching(here)
    assert quitter.first.wait(60)
    os.killpg(quitter.process.pid, signal.SIGINT)
    gone = quitter.end()
    command.end(here / "runs/r")
    return Finished(command, gone, table.end(), lines.end(), documents.end())


# --- what is expected ------------------------------------------------------------------------------


def assert_stopped(command: Ended) -> None:
    assert command.process.returncode == 130
    assert "Traceback" not in command.err
    assert command.status == "stopped"
    assert_nothing_is_left(command.mark, command.since)


def test_ctrl_c_while_ray_starts_leaves_no_process(interrupted_early):
    assert_stopped(interrupted_early)


def test_stop_from_another_terminal_leaves_no_process(stopped_elsewhere):
    assert_stopped(stopped_elsewhere.command)
    assert stopped_elsewhere.said == "stopped r; `raysft resume r` resumes it\n"
    assert "not running" in stopped_elsewhere.again


def test_local_run_starts_no_unneeded_process(stopped_elsewhere):
    assert "raylet" in stopped_elsewhere.children
    unused = r"dashboard/dashboard\.py|log_monitor\.py|monitor\.py"
    assert not re.search(unused, stopped_elsewhere.children)


def test_log_is_followed_until_run_ends(stopped_elsewhere):
    assert "Dataset" in stopped_elsewhere.logged


def test_ctrl_c_in_training_leaves_no_process(interrupted_in_training):
    command, _ = interrupted_in_training
    assert_stopped(command)


def test_resumed_run_keeps_ended_trials(here, interrupted_in_training, finished):
    _, before = interrupted_in_training
    assert finished.command.process.returncode == 0
    assert finished.command.status == "done"
    assert "[3/3]" in finished.command.out
    assert len(json.loads((here / "runs/r/results.json").read_text())["trials"]) == 3
    name = json.loads(before)["trial"]
    assert (here / f"runs/r/trials/{name}/trial.json").read_text() == before
    again = call(here, "resume", "r")
    assert again.stderr.strip().endswith("is done; see `raysft results`")


def test_files_in_folder_do_not_shadow_libraries(finished):
    assert finished.command.err == ""
    assert "best     t" in finished.command.out  # and the folder's network was found


def test_run_continues_after_watcher_leaves(finished):
    status, _, err = finished.quitter
    assert (status, err) == (130, "no longer watching; the run keeps running\n")


def test_changes_of_a_watched_run_are_lines(finished):
    status, shown, err = finished.lines
    assert (status, err) == (0, "")
    lines = shown.splitlines()
    assert lines[0] in ("r: starting", "r: running")
    assert lines[-1] == "r: done"
    assert [sum(f"t{n}  finished" in line for line in lines) for n in range(3)] == [1, 1, 1]
    assert any("epoch" in line and f"of {EPOCHS}" in line for line in lines)


def test_documents_of_a_watched_run_tell_its_progress(finished):
    status, shown, err = finished.documents
    assert (status, err) == (0, "")
    documents = [json.loads(line) for line in shown.splitlines()]
    assert len(documents) > 3
    assert documents[-1]["status"] == "done"
    told = [document["progress"] for document in documents if document["progress"]]
    assert {"starting", "training"} <= {team["doing"] for each in told for team in each["teams"]}
    done = [each["epochs"]["done"] for each in told]
    assert done == sorted(done)
    assert any(each["left_s"] for each in told)


def test_watched_run_is_table_in_terminal(finished):
    status, shown, err = finished.table
    assert (status, err) == (0, "")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "images/s" in plain
    assert "r: done after" in plain
