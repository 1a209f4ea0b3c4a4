"""Schedulers of a run that was taken up again judge by what its trials came to before."""

from types import SimpleNamespace

import pytest

from raysft.job.spec import Scheduler
from raysft.search.tuner import Known, Trial, scheduler_of


def epochs(*values):
    return [{"epoch": i + 1, "val_accuracy": value} for i, value in enumerate(values)]


def judge(spec, known, trials):
    """What the scheduler says to the last epoch of the last trial; trials: {number: its epochs}."""
    scheduler = scheduler_of(Scheduler.model_validate(spec), 8, "val_accuracy", known)
    said = None
    for number, history in trials.items():
        trial = Trial(f"new-{number}", number)
        scheduler.on_trial_add(None, trial)
        for epoch in history:
            said = scheduler.on_trial_result(SimpleNamespace(get_live_trials=list), trial, epoch)
    return said


@pytest.mark.parametrize("spec", [{"name": "asha", "reduction_factor": 2, "grace_epochs": 1},
                                  {"name": "median", "grace_epochs": 1}])
def test_trials_that_have_ended_are_what_new_ones_are_measured_by(spec):
    known = Known(ended={i: epochs(0.8 + i / 100, 0.9) for i in range(4)})
    new = {9: epochs(0.2)}
    assert judge(spec, Known(), new) == "CONTINUE"
    assert judge(spec, known, new) == "STOP"
    assert judge(spec, known, {9: epochs(0.95)}) == "CONTINUE"


def test_a_trial_that_goes_on_is_known_at_the_rungs_it_has_passed():
    spec = {"name": "asha", "reduction_factor": 2, "grace_epochs": 1}
    known = Known(going_on={0: epochs(0.5, 0.6, 0.7)})
    told_again = epochs(0.5, 0.6, 0.7)[2:]
    assert judge(spec, Known(), {0: told_again, 1: epochs(0.3)}) == "CONTINUE"
    assert judge(spec, known, {0: told_again, 1: epochs(0.3)}) == "STOP"


def test_without_a_scheduler_nothing_is_stopped():
    assert judge({"name": "none"}, Known(ended={0: epochs(0.9)}), {1: epochs(0.1)}) == "CONTINUE"
