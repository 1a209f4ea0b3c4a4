"""A population on slots: weak trials go on from the checkpoints of strong ones, also when resumed."""

import pytest

from raysft.records.reading import read_trials
from raysft.records.run import Run
from raysft.results.report import write_report
from tests.run.runs import TWO_WORKERS, Recorder

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


@TWO_WORKERS
def test_population_that_was_cut_off_goes_on_as_it_was(go):
    with pytest.raises(ConnectionError):
        go(Stops(), **JOB)
    folder = go.folder / "runs/r0"
    before = population(Run.reopen(folder))
    assert any(trial.get("came_from") for trial in before.values())
    results, listener = go.execute(Run.reopen(folder))
    assert not [note for note in listener.notes if "died" in note]
    assert {t["status"] for t in results["trials"]} == {"finished"}
    after = population(Run.reopen(folder))
    assert set(after) == set(before)
    for name, trial in before.items():
        known = trial.get("came_from", [])
        assert after[name].get("came_from", [])[: len(known)] == known
    for name in ("t0", "t1"):
        weak = after[name]
        assert [epoch["epoch"] for epoch in weak["history"]] == [1, 2, 3, 4]
        check_schedule(weak)
        # It has learned from nobody but from those that learn.
        assert weak["config"]["optimizer"]["lr"] > 0.001
        taken = weak["came_from"][-1]
        source, until = after[taken["trial"]], taken["epoch"]
        if not source.get("came_from"):
            assert weak["history"][:until] == source["history"][:until]
    page = write_report(folder).read_text()
    assert "Who went on from whom" in page
    assert '"learning_rate"' in page
