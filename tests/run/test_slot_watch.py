"""When a slot is given up, and what that costs the run; without a Ray."""

import time
from types import SimpleNamespace

import pytest

from raysft.errors import RunError
from raysft.run import slot_watch
from raysft.run.slot_watch import SlotWatch
from raysft.train import slots
from raysft.train.queue.policy import MAX_ATTEMPTS


def make_watch(slots: list, lost: list, notes: list) -> SlotWatch:
    watch = SlotWatch("raysft.log", notes.append, lost.append)
    watch.watch(slots)
    return watch


def test_slot_of_which_nothing_starts_ends_the_run(monkeypatch):
    monkeypatch.setattr(slot_watch, "START_SECONDS", 0.0)
    slot = SimpleNamespace(
        number=0, error=None, started=time.monotonic() - 1, is_alive=lambda: True
    )
    with pytest.raises(
        RunError, match=r"slot 0: its worker group ended \(none of its processes has started"
    ):
        make_watch([slot], [], []).check(lambda: None)


def test_own_longer_start_limit_is_kept(monkeypatch):
    slow = SimpleNamespace(
        number=0, error=None, started=time.monotonic() - 200, is_alive=lambda: True
    )
    other = SimpleNamespace(number=1, error=None, started=None, is_alive=lambda: True)
    lost, notes = [], []
    watch = make_watch([slow, other], lost, notes)
    monkeypatch.setattr(slots, "_GIVEN", {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"})
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    watch.check(lambda: None)
    assert not lost
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    watch.check(lambda: None)
    assert lost == [0]
    assert "within 180 seconds" in notes[0]


def test_machine_that_breaks_in_training_costs_its_slot():
    lost, notes = [], []
    watch = make_watch([SimpleNamespace(number=0), SimpleNamespace(number=1)], lost, notes)
    watch.training_advanced()
    for _ in range(MAX_ATTEMPTS):
        assert not lost
        watch.start_failed(1, "10.0.0.2", "ImportError: no CUDA")
    assert lost == [1]
    said = "slot 1: a worker on 10.0.0.2 cannot start: ImportError: no CUDA"
    cause = "(a worker on 10.0.0.2 cannot start: ImportError: no CUDA)"
    assert notes == [
        *MAX_ATTEMPTS * [said],
        f"slot 1 ended {cause}: its trials go to the other slots",
    ]
