"""Populations on slots: weak trials go on from the checkpoints of strong ones, resumed runs too."""

import pytest

from raysft.records.reading import read_trials
from raysft.records.run import Run
from raysft.results.report import write_report
from tests.run.runs import Recorder, losses

# Two that learn nothing, and two that learn.
RATES = [1e-8, 1e-7, 0.02, 0.03]
JOB = {
    # One team, and so one stand-in, which Tune keeps: others it starts anew after every pause.
    "resources": {"workers": 2},
    "train": {"epochs": 4, "schedule": {"name": "constant"}},
    "search": {
        "metric": "val_loss",
        "trials": 4,
        "start_with": [{"optimizer": {"name": "adam", "lr": rate}} for rate in RATES],
        "space": {"optimizer": [{"name": "adam", "lr": {"loguniform": [1e-8, 0.1]}}]},
        "scheduler": {
            "name": "pbt",
            "perturbation_interval": 1,
            "resample_probability": 0.0,
            "quantile_fraction": 0.5,
        },
    },
}


class Stops(Recorder):
    """Ends the run, as a lost machine would, once a trial has gone on from another one."""

    def epochs(self, done, total, records):
        if any(record.came_from and record.trained for record in records):
            raise ConnectionError("the machine is gone")


def population(run: Run):
    return {trial["trial"]: trial for trial in read_trials(run.folder)}


def check_schedule(trial):
    """The learning rates of the epochs that a trial trained since it took weights over."""
    taken = trial["came_from"][-1]
    rates = {e["learning_rate"] for e in trial["history"] if e["epoch"] > taken["epoch"]}
    assert rates <= {trial["config"]["optimizer"]["lr"]}
    assert trial["config"] == taken["config"] != taken["was"]


def test_weak_trials_go_on_from_strong_ones(go):
    results, listener, run = go(**JOB)
    assert {t["status"] for t in results["trials"]} == {"finished"}
    trials = population(run)
    weak = [trials["t0"], trials["t1"]]
    assert all(trial.get("came_from") for trial in weak), trials
    for trial in weak:
        check_schedule(trial)
        assert [epoch["epoch"] for epoch in trial["history"]] == [1, 2, 3, 4]
        # It has learned from nobody but from those that learn.
        assert trial["config"]["optimizer"]["lr"] > 0.001
    first = min((taken["epoch"], t["trial"]) for t in weak for taken in t["came_from"][:1])
    taken = trials[first[1]]["came_from"][0]
    if len(trials[first[1]]["came_from"]) == 1 and "came_from" not in trials[taken["trial"]]:
        until = taken["epoch"]
        assert losses(run, first[1])[:until] == losses(run, taken["trial"])[:until]
    assert not [note for note in listener.notes if "died" in note]
    page = write_report(run.folder).read_text()
    assert "Who went on from whom" in page
    assert '"learning_rate"' in page


def test_resumed_population_is_the_same(go):
    with pytest.raises(ConnectionError):
        go(Stops(), **JOB)
    folder = go.folder / "runs/r0"
    before = population(Run.reopen(folder))
    results, _ = go.execute(Run.reopen(folder))
    after = population(Run.reopen(folder))
    assert {t["status"] for t in results["trials"]} == {"finished"}
    assert set(after) == set(before)
    taken = [name for name, trial in before.items() if trial.get("came_from")]
    assert taken
    for name, trial in before.items():
        known = trial.get("came_from", [])
        assert after[name].get("came_from", [])[: len(known)] == known
        assert len(after[name]["history"]) == 4
    for name in taken:
        check_schedule(after[name])
