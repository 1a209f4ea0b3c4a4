"""How far trials train by successive halving, and how many of them."""

from raysft.job.rungs import places_of, rungs_of, stages_of
from raysft.job.spec import Scheduler


def test_rungs_lie_a_factor_apart_and_end_with_the_last_epoch():
    assert rungs_of(Scheduler(grace_epochs=4, reduction_factor=4), 32) == [4, 16, 32]
    assert rungs_of(Scheduler(grace_epochs=1, reduction_factor=3), 9) == [1, 3, 9]
    assert rungs_of(Scheduler(grace_epochs=5, reduction_factor=3), 2) == [2]
    assert rungs_of(Scheduler(), 1) == [1]


def test_grace_is_an_eighth_of_the_epochs_unless_the_job_says_more():
    assert rungs_of(Scheduler(), 32)[0] == 4
    assert rungs_of(Scheduler(), 3)[0] == 1
    assert rungs_of(Scheduler(grace_epochs=7), 32)[0] == 7


def test_one_in_factor_goes_on_and_no_team_is_left_without_a_trial():
    assert places_of(Scheduler(), 16, 3, teams=1) == [16, 4, 1]
    assert places_of(Scheduler(), 16, 3, teams=2) == [16, 4, 2]
    assert places_of(Scheduler(), 16, 3, teams=16) == [16, 8, 4]
    assert places_of(Scheduler(), 3, 3, teams=1) == [3, 1, 1]


def test_stages_are_what_all_trials_train():
    assert stages_of(Scheduler(), 16, 32, teams=2) == ((16, 4), (4, 12), (2, 16))
    assert stages_of(Scheduler(name="median"), 16, 32, teams=2) == ((16, 32),)
