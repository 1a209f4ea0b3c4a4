"""Watching a run: what a moment of it looks like, and that watching ends with the run and never
ends it.
"""

import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from raysft.backends.local import LocalBackend
from raysft.cluster.messages import Reporter, decode, summarize
from raysft.console import Output
from raysft.display.watch import changes, curve_text, headline, picture
from raysft.job import Job
from raysft.job.plan import RunPlan, Slot
from raysft.records.documents import EpochMetrics
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.run.progress import Progress
from raysft.train.queue.events import TrialEnded, TrialProgress, TrialStarted

REPOSITORY = Path(__file__).parents[1]
RAYSFT = str(Path(sys.executable).parent / "raysft")


def epochs(*accuracies: float) -> list[EpochMetrics]:
    return [{"epoch": n, "val_accuracy": a, "val_loss": 1 - a} for n, a in enumerate(accuracies, 1)]


def row(trial: str, status: str, *accuracies: float, **more) -> dict:
    return TrialRecord(
        trial,
        {"optimizer": {"name": "sgd", "lr": 0.01}},
        status,
        epochs(*accuracies),
        None,
        12.0,
        more.get("error"),
    ).row("val_accuracy") | {"history": epochs(*accuracies)}


PROGRESS = {
    "at": 1000.0,
    "epochs": {"done": 12.4, "total": 40, "each": 10},
    "left_s": 185.0,
    "may_end_early": True,
    "inside": {"t1": 0.4},
    "teams": [
        {
            "slot": 0,
            "team": 0,
            "doing": "training",
            "trial": "t1",
            "step": 17,
            "steps": 40,
            "images_per_s": 1234.5,
            "data_wait": 0.021,
            "gpu": 97.0,
        },
        {
            "slot": 1,
            "team": 0,
            "doing": "starting",
            "trial": None,
            "step": None,
            "steps": None,
            "images_per_s": None,
            "data_wait": None,
            "gpu": None,
        },
    ],
}
RUNNING = {
    "run": "r",
    "status": "running",
    "started": "1970-01-01T00:15:00+0000",
    "ended": None,
    "metric": "val_accuracy",
    "progress": PROGRESS,
    "trials": [
        row("t0", "finished", *[n / 10 for n in range(1, 11)]),
        row("t1", "running", 0.2, 0.5),
        row("t2", "failed", error="boom"),
        row("t3", "pending"),
    ],
}


def text(document: dict, now: float = 1000.0, height: int = 50) -> list[str]:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115  # lives as long as the test
    console.print(picture(document, now, height))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_running_search_as_text():
    lines = text(RUNNING)
    assert lines[0] == (
        "r: running for 1 min 40 s, 12.4 of 40 epochs, at most 3 min 5 s left, best t0 with val "
        "acc "
        "1.0000"
    )
    rows = [re.split(r"\s{2,}", line) for line in lines[2:7]]
    assert rows[0] == ["trial", "status", "epochs", "val acc", "curve", "seconds", "config"]
    assert rows[1] == [
        "t1",
        "running",
        "2.4/10",
        "0.5000",
        "▂▄",
        "12.0",
        "sgd lr=0.01",
    ]  # those in training first
    assert rows[2] == ["t0", "finished", "10/10", "1.0000", "▁▂▃▃▄▅▆▆▇█", "12.0", "sgd lr=0.01"]
    assert [r[0] for r in rows[3:]] == ["t2", "t3"]
    assert "training t1, step 17 of 40" in lines[-2]
    assert re.split(r"\s{2,}", lines[-2].strip())[-3:] == ["1,234", "2.1 %", "97 %"]
    assert re.split(r"\s{2,}", lines[-1].strip()) == ["1", "0", "starting", "-", "-", "-"]


def test_what_is_known_decides_what_the_headline_says():
    plain = {**RUNNING, "progress": PROGRESS | {"may_end_early": False}}
    assert "about 3 min 5 s left" in headline(plain, 1000.0)
    assert "last heard from" not in headline(plain, 1059.0)
    assert "last heard from 2 min 0 s ago" in headline(plain, 1120.0)
    ended = {**RUNNING, "status": "done", "ended": "1970-01-01T01:15:00+0000"}
    assert headline(ended, 9e9) == "r: done after 1 h 0 min, best t0 with val acc 1.0000"
    assert (
        headline({**RUNNING, "progress": None, "trials": []}, 960.0) == "r: running for 1 min 0 s"
    )


def test_small_terminal_shows_running_and_best_trials():
    lines = text(RUNNING, height=13)
    assert [line.split()[0] for line in lines[3:7]] == ["t1", "t0", "t2", "…"]
    assert "… and 1 more" in lines


def test_long_curve_keeps_last_epoch_and_width():
    curve = [n / 100 for n in range(100)]
    assert len(curve_text(curve, curve)) <= 16
    assert curve_text(curve, curve)[-1] == "█"
    assert curve_text([0.5, 0.5], [0.5, 0.5]) == "▁▁"
    assert curve_text([], [0.1]) == ""


def test_without_a_terminal_each_change_is_a_line():
    assert changes(None, RUNNING)[0] == "r: running"
    later = {
        **RUNNING,
        "trials": [
            RUNNING["trials"][0],
            row("t1", "running", 0.2, 0.5, 0.6),
            RUNNING["trials"][2],
            row("t3", "finished", 0.9),
        ],
    }
    assert changes(RUNNING, later) == [
        "t1  epoch 3 of 10  val acc 0.6000",
        "t3  finished  val acc 0.9000  1 epoch  sgd lr=0.01",
    ]
    assert changes(later, later) == []
    assert changes(later, {**later, "status": "failed", "errors": ["run: no"]}) == [
        "run: no",
        "r: failed",
    ]


# --- where a run stands ------------------------------------------------------------------------


def test_progress_follows_teams_and_knows_what_is_left():
    job = Job.model_validate(
        {"train": {"epochs": 4}, "search": {"trials": 2, "scheduler": {"name": "median"}}}
    )
    plan = RunPlan(100, 10, 10, 3, 2, ((2, 4),), (Slot(1, 1), Slot(1, 1)), 4, 25)
    progress = Progress(job, plan, [])
    records = [TrialRecord("t0", {}), TrialRecord("t1", {})]
    document = progress.document(records, [])
    assert [team["doing"] for team in document["teams"]] == ["starting", "starting"]
    assert document["left_s"] is None

    progress.apply(TrialStarted("t0", "train", slot=1, team=0, at=0.0))
    progress.apply(TrialProgress("t0", step=2, steps=4, seconds=2.0, waited=0.5))
    document = progress.document(records, [])
    assert (document["epochs"], document["inside"]) == (
        {"done": 0.5, "total": 8, "each": 4},
        {"t0": 0.5},
    )
    team = document["teams"][1]
    assert (
        team["doing"],
        team["trial"],
        team["step"],
        team["images_per_s"],
        team["data_wait"],
    ) == ("training", "t0", 2, 25.0, 0.25)
    assert document["left_s"] == pytest.approx(
        7.5 / 0.5 * document["at"], rel=1e-3
    )  # the first began at second 0
    assert document["may_end_early"] is True

    records[0].history, records[0].status = epochs(0.5), "stopped"
    progress.apply(TrialEnded("t0", "stopped"))
    document = progress.document(records, [])
    assert document["epochs"]["done"] == 4
    assert document["inside"] == {}
    assert document["teams"][1]["doing"] == "waiting"
    progress.remove_slot(1)
    assert progress.document(records, [])["teams"][1]["doing"] == "gone"


def test_halving_counts_only_epochs_its_rungs_leave():
    job = Job.model_validate({"train": {"epochs": 4}, "search": {"trials": 4}})
    plan = RunPlan(100, 10, 10, 3, 4, ((4, 1), (1, 3)), (Slot(1, 1),), 4, 25)
    progress = Progress(job, plan, [])
    records = [TrialRecord(f"t{i}", {}, "paused", epochs(0.5)) for i in range(3)]
    records.append(TrialRecord("t3", {}, "running"))
    progress.inside["t3"] = 0.5
    progress.apply(TrialStarted("t3", "train", slot=0, team=0, at=0.0))
    document = progress.document(records, [])
    assert document["epochs"] == {"done": 3.5, "total": 7, "each": 4}
    assert document["left_s"] == pytest.approx(document["at"], rel=1e-3)
    assert document["may_end_early"] is False
    records[0].status = "stopped"
    assert (
        progress.document(records, [])["epochs"]["done"] == 3.5
    )  # what it will not train was not counted on
    for record in records:
        record.status = "stopped"
    assert progress.document(records, [])["epochs"]["done"] == 7


def test_cluster_events_send_each_epoch_once(monkeypatch):
    monkeypatch.setattr("raysft.cluster.messages.STATUS_EVERY_S", 0.0)
    lines: list[str] = []
    reporter, trial = Reporter(lines.append), TrialRecord("t0", {"a": 1}, "running")
    waiting = TrialRecord("t1", {})
    for number in range(1, 4):
        trial.history = epochs(*[0.1 * n for n in range(1, number + 1)])
        reporter.status({"at": number, "teams": []}, [trial, waiting])
    assert sum(line.count('"epoch"') for line in lines) == 3
    seen = summarize(message for line in lines if (message := decode(line.rstrip("\n"))))
    assert seen.progress == {"at": 3, "teams": []}
    assert seen.trials == {"t0": trial}


def test_cluster_events_send_the_history_of_other_weights_whole(monkeypatch):
    monkeypatch.setattr("raysft.cluster.messages.STATUS_EVERY_S", 0.0)
    lines: list[str] = []
    reporter, trial = Reporter(lines.append), TrialRecord("t0", {"a": 1}, "running")
    trial.history = epochs(0.1, 0.2)
    reporter.status({"at": 1, "teams": []}, [trial])
    trial.take_over("t1", {"a": 2}, epochs(0.8, 0.9))
    reporter.status({"at": 2, "teams": []}, [trial])
    trial.history = epochs(0.8, 0.9, 1.0)
    reporter.status({"at": 3, "teams": []}, [trial])
    seen = summarize(message for line in lines if (message := decode(line.rstrip("\n"))))
    assert seen.trials == {"t0": trial}


def test_status_is_sent_when_a_team_changes_activity():
    lines: list[str] = []
    reporter = Reporter(lines.append)
    for doing in ("starting", "starting", "training", "training", "waiting"):
        reporter.status({"teams": [{"doing": doing}]}, [])
    assert len(lines) == 3


# --- runs --------------------------------------------------------------------------------------


def test_watching_ended_run_shows_it_once(tmp_path):
    run = Run.create(Job(storage=str(tmp_path / "runs")), "r")
    run.save_trial(TrialRecord("t0", {}, "finished", epochs(0.5)))
    run.save_progress(PROGRESS)
    run.save(status="done")
    (document,) = LocalBackend(Output()).watch(str(run.folder))
    assert [trial["status"] for trial in document["trials"]] == ["finished"]
    assert document["progress"] == PROGRESS
    assert text(document)[-1].split()[0] == "t0"  # no teams any more
