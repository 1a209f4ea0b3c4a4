"""Whose a run is: no other process is taken for its own, and a dead one is known from anywhere
after a stated time.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raysft.backends.local import LocalBackend
from raysft.cluster.processes import using
from raysft.console import Output
from raysft.errors import UserError
from raysft.job import Job
from raysft.records import owner
from raysft.records.documents import INFO
from raysft.records.owner import HEARTBEAT, SILENT_SECONDS, Owner, heartbeat
from raysft.records.reading import list_runs, read_status
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.storage import read_json, write_json


@pytest.fixture
def run(tmp_path) -> Run:
    made = Run.create(Job(storage=str(tmp_path / "runs")), "r")
    made.save_trial(TrialRecord("t0", {}, "running"))
    made.save(status="running")
    return made


@pytest.fixture
def stranger():
    """A process that is none of raysft's business.

    Not a Python: where the repository is cloned as raysft, its path says so.
    """
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def owned_by(run: Run, **changes: object) -> None:
    info = read_json(run.folder / INFO)
    write_json(run.folder / INFO, info | {"owner": info["owner"] | changes})


def last_heard(run: Run, seconds: float) -> None:
    """Let the last sign of life of a run lie back so long."""
    at = time.time() - seconds
    for name in (HEARTBEAT, INFO):
        (run.folder / name).touch()
        os.utime(run.folder / name, (at, at))


def test_process_with_reused_number_is_not_owner(stranger):
    here = Owner.current()
    assert here.is_here
    assert here.is_alive
    later = Owner(here.host, here.boot, here.namespace, stranger.pid, here.began)
    assert later.is_here
    assert not later.is_alive
    assert not later.signal(signal.SIGKILL)
    assert stranger.poll() is None


def test_stop_does_not_signal_reused_process_number(run, stranger, capfd):
    owned_by(run, pid=stranger.pid)
    LocalBackend(Output()).stop(str(run.folder))
    assert "is not running: lost" in capfd.readouterr().out
    assert stranger.poll() is None
    assert Run.reopen(run.folder).known["t0"].status == "pending"


def test_stop_signals_the_runs_own_process(run, stranger, capfd):
    process = psutil.Process(stranger.pid)
    owned_by(run, pid=process.pid, began=owner._began(process.pid))
    with pytest.raises(UserError, match=rf"is still running as process {process.pid} of "):
        Run.reopen(run.folder)
    LocalBackend(Output()).stop(str(run.folder))
    assert stranger.wait(10) == -signal.SIGTERM
    assert "stopped" in capfd.readouterr().out


@pytest.mark.parametrize(
    "elsewhere", [{"host": "other"}, {"boot": "another"}, {"namespace": "pid:[1]"}]
)
def test_run_elsewhere_is_running_until_silent(run, elsewhere, capfd):
    owned_by(run, pid=os.getpid(), **elsewhere)
    assert read_status(str(run.folder))["status"] == "running"
    with pytest.raises(UserError, match=r"was running 0 s ago, as process .* try again in 120 s"):
        Run.reopen(run.folder)
    with pytest.raises(UserError, match="runs elsewhere, as process"):
        LocalBackend(Output()).stop(str(run.folder))

    last_heard(run, SILENT_SECONDS + 5)
    assert read_status(str(run.folder))["status"] == "lost"
    assert [info["status"] for info in list_runs(str(run.folder.parent))] == ["lost"]
    LocalBackend(Output()).stop(str(run.folder))
    assert "is not running: lost" in capfd.readouterr().out
    with Run.reopen(run.folder).recorded():
        assert Owner.from_document(read_json(run.folder / INFO)) == Owner.current()


def test_run_resumed_by_another_is_left_alone(run):
    last_heard(run, SILENT_SECONDS + 5)
    owned_by(run, host="other")
    last_heard(run, SILENT_SECONDS + 5)
    mine = Run.reopen(run.folder)
    owned_by(run, host="third")
    with pytest.raises(UserError, match="of third"), mine.recorded():
        pass
    assert read_json(run.folder / INFO)["status"] == "running"


def test_run_gives_heartbeats_until_it_ends(run, monkeypatch):
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.01)
    with heartbeat(run.folder):
        last_heard(run, 1000)
        until = time.monotonic() + 10
        while owner.seconds_since_sign(run.folder, INFO) > 100 and time.monotonic() < until:
            time.sleep(0.01)
        assert owner.seconds_since_sign(run.folder, INFO, exact=True) < 10
    assert not (run.folder / HEARTBEAT).exists()


def test_run_of_older_raysft_is_never_signalled(run, stranger, capfd):
    info = read_json(run.folder / INFO)
    del info["owner"]
    write_json(run.folder / INFO, info | {"pid": stranger.pid})
    LocalBackend(Output()).stop(str(run.folder))  # that process is not one of raysft's
    assert "is not running: lost" in capfd.readouterr().out
    assert stranger.poll() is None
    assert Run.reopen(run.folder).known


def test_run_of_older_raysft_elsewhere_seems_running(run):
    info = read_json(run.folder / INFO)
    del info["owner"]
    write_json(run.folder / INFO, info | {"status": "running", "host": "elsewhere"})
    assert read_status(str(run.folder))["status"] == "running"
    with pytest.raises(UserError, match="seems to be running on elsewhere"):
        LocalBackend(Output()).stop(str(run.folder))
    write_json(run.folder / INFO, info | {"status": "running", "pid": 2**22})
    assert read_status(str(run.folder))["status"] == "lost"


def test_resuming_in_vain_leaves_the_run(tmp_path):
    begun = Run.create(Job(storage=str(tmp_path / "runs")), "r")
    begun.save(status="stopped")
    with pytest.raises(UserError, match="no data"), Run.reopen(begun.folder).recorded():
        raise UserError("x", "no data")
    assert read_json(begun.folder / INFO)["status"] == "failed"


def test_only_marked_processes_using_logs_are_found(tmp_path):
    log = tmp_path / "raylet.out"
    log.touch()
    reading = [sys.executable, "-c", f"file = open({str(log)!r}); print(flush=True); input()"]
    kept = subprocess.Popen(reading, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ours = subprocess.Popen(
        reading, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"MARK": "a"}
    )
    try:
        for process in (kept, ours):
            assert process.stdout is not None
            process.stdout.readline()
        assert [process.pid for process in using(str(tmp_path), "MARK", "a")] == [ours.pid]
    finally:
        for process in (kept, ours):
            process.kill()
            process.communicate()


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs Linux")
def test_zombie_process_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", ""])
    here, began = Owner.current(), owner._began(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not Owner(here.host, here.boot, here.namespace, process.pid, began or 0.0).is_alive
    process.wait()
