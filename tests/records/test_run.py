"""The record of a trial, epoch by epoch."""

from raysft.records.trial import TrialRecord


def epoch(number: int, attempt: int = 1) -> dict:
    return {"epoch": number, "attempt": attempt}


def test_an_epoch_takes_the_place_of_all_from_it_on():
    record = TrialRecord("t0", {}, history=[epoch(1), epoch(2), epoch(3)])
    record.add(epoch(2, attempt=2))
    assert record.history == [epoch(1), epoch(2, attempt=2)]


def test_epochs_that_nobody_had_heard_of_are_filled_in():
    record = TrialRecord("t0", {}, history=[epoch(1), epoch(2)])
    record.add(epoch(5, attempt=2), [epoch(n, attempt=2) for n in range(1, 5)])
    assert record.history == [epoch(1), epoch(2), *[epoch(n, attempt=2) for n in (3, 4, 5)]]
