"""The record of a trial, epoch by epoch."""

from raysft.job import Job
from raysft.records.reading import read_trials
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from tests.search.controller import epochs


def epoch(number: int, attempt: int = 1) -> dict:
    return {"epoch": number, "attempt": attempt}


def test_repeated_epoch_replaces_all_from_it_on():
    record = TrialRecord("t0", {}, history=[epoch(1), epoch(2), epoch(3)])
    record.add(epoch(2, attempt=2))
    assert record.history == [epoch(1), epoch(2, attempt=2)]


def test_missed_epochs_are_filled_in():
    record = TrialRecord("t0", {}, history=[epoch(1), epoch(2)])
    record.add(epoch(5, attempt=2), [epoch(n, attempt=2) for n in range(1, 5)])
    assert record.history == [epoch(1), epoch(2), *[epoch(n, attempt=2) for n in (3, 4, 5)]]


def test_trial_that_took_weights_over_has_their_history():
    record = TrialRecord("t0", {"a": 1}, history=[epoch(1), epoch(2), epoch(3)])
    record.take_over("t1", {"a": 2}, [epoch(1, 7), epoch(2, 7)])
    record.add(epoch(3, 8), [epoch(1, 7), epoch(2, 7)])
    assert record.history == [epoch(1, 7), epoch(2, 7), epoch(3, 8)]
    assert record.trained == [epoch(3, 8)]
    assert record.config == {"a": 2}
    taken = {"trial": "t1", "epoch": 2, "left": 3, "was": {"a": 1}, "config": {"a": 2}}
    assert record.came_from == [taken]


def test_takeovers_are_stored_with_the_trial(tmp_path):
    run = Run.create(Job(storage=str(tmp_path / "runs")), "r")
    record = TrialRecord("t0", {"a": 1}, "finished", epochs(0.5, 0.6))
    record.take_over("t1", {"a": 2}, epochs(0.7))
    run.save_trial(record)
    run.save_trial(TrialRecord("t1", {"a": 3}, "finished", epochs(0.7)))
    stored = {each["trial"]: each for each in read_trials(run.folder)}
    assert TrialRecord.from_document(stored["t0"]) == record
    assert "came_from" not in stored["t1"]
