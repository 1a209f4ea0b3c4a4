"""A search is killed at random moments, in all of its parts, and ends with the metrics of one that
was left in peace.

`make test` runs one case of a short search, `make faults` twenty of a longer one; what happened in
each is printed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import MARK, processes_of, processes_of_ray

RAYSFT = str(Path(sys.executable).parent / "raysft")
CASES = int(os.environ.get("RAYSFT_FAULTS", "1"))
VICTIMS = ("driver", "ray", "worker", "controller")
TRIALS, EPOCHS = (2, 4) if CASES == 1 else (6, 8)
RESUMES = 3
JOB = f"""
name: faults
data: {{source: digits, limit: 400}}
model: {{name: "raysft.train.smallnet:small_cnn", weights: none}}
train: {{epochs: {EPOCHS}, batch_size: 32, checkpoint_every: 5 steps}}
search:
  trials: {TRIALS}
  scheduler: {{name: none}}
  space: {{optimizer: [{{name: sgd, lr: {{loguniform: [0.001, 0.1]}}}}, {{name: adamw, lr: {{loguniform: [0.0001, 0.01]}}}}]}}
"""


def start(here: Path, *words: str, mark: str) -> subprocess.Popen:
    return subprocess.Popen(
        [RAYSFT, *words],
        cwd=here,
        env=os.environ | {MARK: mark},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def told(run: Path) -> dict:
    """What must be the same: every epoch of every trial, and the scores of the model."""
    trials = {}
    for path in sorted((run / "trials").glob("t?/trial.json")):
        trial = json.loads(path.read_text())
        trials[trial["trial"]] = (
            trial["status"],
            trial["config"],
            [{k: v for k, v in epoch.items() if "seconds" not in k} for epoch in trial["history"]],
        )
    best = json.loads((run / "results.json").read_text())["best"]
    return {"trials": trials, "best": {k: v for k, v in best.items() if k != "model"}}


@pytest.fixture(scope="module")
def peace(module_without_ray, tmp_path_factory) -> tuple[dict, float]:
    """What an undisturbed search came to, and how many seconds it took."""
    here = tmp_path_factory.mktemp("peace")
    (here / "j.yaml").write_text(JOB)
    began = time.monotonic()
    process = start(here, "submit", "j.yaml", "--name", "r", mark="peace")
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    return told(here / "runs/r"), time.monotonic() - began


def strike(victim: str, process: subprocess.Popen) -> str:
    """Kill a part of a run at once; returns what was killed, the driver where there is no such part
    yet.
    """
    titles = {
        "worker": ("ray::RayTrainWorker",),
        "controller": ("ray::TrainController",),
        "ray": ("ray::", "raylet", "gcs_server"),
        "driver": (),
    }[victim]
    family = psutil.Process(process.pid).children(recursive=True)
    found = [p for p in family if any(title in _title(p) for title in titles)]
    for one in found if victim == "ray" else found[:1]:
        with suppress(psutil.Error):
            one.kill()
    if not found:
        process.send_signal(signal.SIGKILL)
    return victim if found else "driver"


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()[:1])
    return ""


def ended_trials(run: Path) -> dict[str, str]:
    """trial.json of the trials that were over, as text."""
    found = {path.parent.name: path.read_text() for path in run.glob("trials/*/trial.json")}
    return {name: text for name, text in found.items() if json.loads(text)["status"] == "finished"}


@pytest.mark.parametrize("case", range(CASES))
def test_nothing_is_lost_and_nothing_done_twice(peace, tmp_path, case, capsys):
    expected, seconds = peace
    began, mark = time.time(), f"{os.getpid()}-fault-{case}"
    moment = random.Random(case).uniform(0.1, 0.95) * seconds
    (tmp_path / "j.yaml").write_text(JOB)
    run = tmp_path / "runs/r"
    process = start(tmp_path, "submit", "j.yaml", "--name", "r", mark=mark)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    struck = strike(VICTIMS[case % len(VICTIMS)], process) if process.poll() is None else "nobody"
    out, _ = process.communicate(timeout=300)
    status, before, resumes = process.returncode, ended_trials(run), 0
    while status != 0 and resumes < RESUMES:
        _await_no_process(mark, began)
        words = (
            ("resume", "r") if (run / "run.json").exists() else ("submit", "j.yaml", "--name", "r")
        )
        process, resumes = start(tmp_path, *words, mark=mark), resumes + 1
        out, _ = process.communicate(timeout=300)
        status = process.returncode
    with capsys.disabled():
        print(
            f"\n{case}: {struck} at {moment:.1f} s, {len(before)} of {TRIALS} trials over, "
            f"{resumes} resumes"
        )
    assert status == 0, out
    assert told(run) == expected
    after = ended_trials(run)
    assert {name: after[name] for name in before} == before
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    _await_no_process(mark, began)


def _await_no_process(mark: str, since: float) -> None:
    deadline = time.monotonic() + 60
    while (left := processes_of(mark) + processes_of_ray(since)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.2)
    assert not left
