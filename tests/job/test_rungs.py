"""How far trials train by successive halving, and how many of them."""

from raysft.job.rungs import plan_stages, rung_epochs, rung_sizes
from raysft.job.scheduler import Scheduler


def test_rungs_lie_a_factor_apart():
    assert rung_epochs(Scheduler(grace_epochs=4, reduction_factor=4), 32) == [4, 16, 32]
    assert rung_epochs(Scheduler(grace_epochs=1, reduction_factor=3), 9) == [1, 3, 9]
    assert rung_epochs(Scheduler(grace_epochs=5, reduction_factor=3), 2) == [2]
    assert rung_epochs(Scheduler(), 1) == [1]


def test_first_rung_defaults_to_an_eighth():
    assert rung_epochs(Scheduler(), 32)[0] == 4
    assert rung_epochs(Scheduler(), 3)[0] == 1
    assert rung_epochs(Scheduler(grace_epochs=7), 32)[0] == 7


def test_one_in_factor_continues_no_team_idles():
    assert rung_sizes(Scheduler(), 16, 3, teams=1) == [16, 4, 1]
    assert rung_sizes(Scheduler(), 16, 3, teams=2) == [16, 4, 2]
    assert rung_sizes(Scheduler(), 16, 3, teams=16) == [16, 8, 4]
    assert rung_sizes(Scheduler(), 3, 3, teams=1) == [3, 1, 1]


def test_stages_count_epochs_between_rungs():
    assert plan_stages(Scheduler(), 16, 32, teams=2) == ((16, 4), (4, 12), (2, 16))
    assert plan_stages(Scheduler(name="median"), 16, 32, teams=2) == ((16, 32),)
