"""The record of a trial, epoch by epoch."""

from raysft.records.trial import TrialRecord


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
