"""What ends, pauses and changes trials: in runs from their beginning, and in resumed ones."""

import inspect
import random

import pytest
from ray.tune import schedulers as of_tune
from ray.tune.experiment import Trial
from ray.tune.schedulers.pb2 import PB2

from raysft.job import Job
from raysft.job.scheduler import ARGUMENTS
from raysft.search.earlier import EarlierTrials
from raysft.search.halving import Halving
from raysft.search.schedulers import make_scheduler
from tests.search.controller import Controller, Proposals, epochs, result_of, trial_of


def made(known=EarlierTrials(), trials=4, length=8, teams=1, space=None, **scheduler):
    search = {"trials": trials, "scheduler": scheduler}
    if scheduler.get("name") == "bohb":
        search["algorithm"] = "bohb"
    if space is not None:
        search["space"] = space
    job = Job.model_validate({"search": search, "train": {"epochs": length}})
    return make_scheduler(job, trials, teams, known)


def halving(trials=9, length=9, grace=1, factor=3, teams=1, known=EarlierTrials()):
    return made(
        known, trials, length, teams, name="halving", grace_epochs=grace, reduction_factor=factor
    )


def growing(quality):
    """Trials that get better with every epoch, each as much as it is good."""
    return lambda number, epoch, config: quality[number] * epoch


class Hand:
    """A scheduler that is told by hand what happens."""

    def __init__(self, scheduler, numbers=()):
        self.scheduler, self.trials = scheduler, {}
        scheduler.teams = 99  # who trains when is the test's
        self.stopped = []
        self.search_alg = Proposals()
        for number in numbers:
            self.begin(number)

    def begin(self, number):
        trial = self.trials[number] = trial_of(number)
        self.scheduler.on_trial_add(self, trial)
        trial.set_status(Trial.RUNNING)

    def epoch(self, number, value, epoch=1):
        """What becomes of a trial after an epoch."""
        (metrics,) = epochs(value, first=epoch)
        trial = self.trials[number]
        decision = self.scheduler.on_trial_result(self, trial, result_of(metrics))
        if decision == "PAUSE":
            trial.set_status(Trial.PAUSED)
        return decision

    def reach(self, number, value, epoch=1):
        assert self.epoch(number, value, epoch) == "PAUSE"

    def chosen(self):
        """The number of the trial that goes on now, which it does."""
        trial = self.scheduler.choose_trial_to_run(self)
        if trial is None:
            return None
        trial.set_status(Trial.RUNNING)
        return trial.config["number"]

    def fail(self, number):
        self.scheduler.on_trial_error(self, self.trials[number])
        self.trials[number].set_status(Trial.ERROR)

    def complete(self, number, value, epoch=1, **result):
        (metrics,) = epochs(value, first=epoch)
        told = result_of(metrics) | result
        self.scheduler.on_trial_complete(self, self.trials[number], told)
        self.trials[number].set_status(Trial.TERMINATED)

    # what a scheduler asks of Tune
    def stop_trial(self, trial):
        self.scheduler.on_trial_remove(self, trial)
        trial.set_status(Trial.TERMINATED)
        self.stopped.append(trial.config["number"])

    def get_live_trials(self):
        return list(self.trials.values())

    get_trials = get_live_trials


# --- halving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("teams", [1, 2, 5])
def test_halving_fills_each_rung_as_planned(teams):
    for seed in range(30):
        chance = random.Random(seed)
        quality = [i + 1 for i in range(16)]
        chance.shuffle(quality)
        scheduler = halving(16, 32, 4, 4, teams)
        search = Controller(scheduler, growing(quality), 16, 32, teams, chance=chance).run()
        assert len(search.ended) == 16
        assert search.ended[quality.index(16)] == "finished"
        came = [sum(trained >= rung for trained in search.trained) for rung in scheduler.rungs]
        # A team that would have had to wait for the others of a rung may have resumed one that was
        # overtaken.
        assert all(
            places <= n <= places + teams - 1
            for n, places in zip(came, scheduler.places, strict=True)
        ), came


def test_failing_trials_neither_end_nor_block_halving():
    for seed in range(60):
        chance = random.Random(seed)
        fails = {
            number: chance.randrange(9)
            for number in range(12)
            if chance.random() < chance.choice([0.3, 0.9])
        }
        quality = growing(range(1, 13))
        search = Controller(halving(12, 9, 1, 3, 2), quality, 12, 9, 2, fails, chance=chance)
        search.run()  # places 12, 4, 2
        assert len(search.ended) == 12
        assert "finished" in search.ended.values() or len(fails) >= 4


def test_first_at_a_rung_is_not_promoted_for_that():
    hand = Hand(halving(), range(9))  # places 9, 3, 1
    hand.reach(0, 0.5)
    assert hand.chosen() is None
    hand.reach(1, 0.4)
    assert hand.chosen() is None
    hand.reach(2, 0.6)
    assert hand.chosen() == 2  # while six are still on their way
    assert hand.chosen() is None


def test_no_trial_goes_on_while_all_teams_train():
    hand = Hand(halving(trials=4), range(3))
    hand.reach(0, 0.5)
    hand.reach(1, 0.4)
    hand.scheduler.teams = 1
    assert hand.chosen() is None
    hand.reach(2, 0.3)
    assert hand.chosen() == 0


def test_last_one_goes_on_though_a_stopped_one_was_better():
    hand = Hand(halving(trials=2), range(2))  # places 2, 1, 1
    hand.reach(0, 0.5)
    # stopped here when the next rung was full, where one has failed since
    hand.scheduler.reached[0][7] = (-1.0,)
    hand.fail(1)
    assert hand.chosen() == 0


def test_new_trials_begin_before_any_goes_on():
    hand = Hand(halving(trials=3), [0, 1])
    hand.reach(0, 0.9)
    hand.search_alg.searcher.new = [2]
    assert hand.chosen() is None
    hand.search_alg.searcher.new = []
    hand.begin(2)
    hand.trials[2].set_status(Trial.PENDING)
    assert hand.chosen() == 2


def test_paused_trial_goes_on_where_the_searcher_waits_for_it():
    hand = Hand(halving(trials=3), [0, 1])
    hand.reach(0, 0.9)
    hand.reach(1, 0.1)
    hand.search_alg.searcher.new = [2]
    assert hand.chosen() == 0


def test_rest_of_a_rung_ends_when_the_next_is_full():
    hand = Hand(halving(trials=3), range(3))  # places 3, 1, 1
    for number, value in enumerate((0.3, 0.2, 0.1)):
        hand.reach(number, value)
    assert hand.chosen() == 0
    assert hand.chosen() is None
    assert hand.stopped == []
    hand.reach(0, 0.4, epoch=3)
    assert hand.chosen() == 0
    assert hand.stopped == [1, 2]


def test_next_best_replaces_a_promoted_trial_that_fails():
    for fail in (Hand.fail, lambda hand, number: hand.complete(number, 0.3, trial_status="failed")):
        hand = Hand(halving(trials=3), range(3))
        for number, value in enumerate((0.3, 0.2, 0.1)):
            hand.reach(number, value)
        assert hand.chosen() == 0
        fail(hand, 0)
        assert hand.chosen() == 1
        assert hand.stopped == []


def test_trial_whose_stand_in_died_has_its_places_again():
    hand = Hand(halving(trials=3), range(3))
    for number, value in enumerate((0.3, 0.2, 0.1)):
        hand.reach(number, value)
    assert hand.chosen() == 0
    hand.scheduler.on_trial_error(hand, hand.trials[0])
    hand.scheduler.on_trial_add(hand, hand.trials[0])
    hand.reach(0, 0.4, epoch=3)
    assert hand.chosen() == 0
    assert hand.stopped == [1, 2]


def test_trial_is_ranked_by_its_best_epoch():
    hand = Hand(halving(trials=2, grace=2, length=8), range(2))
    assert hand.epoch(0, 0.9) == "CONTINUE"
    hand.reach(0, 0.1, epoch=2)
    assert hand.epoch(1, 0.1) == "CONTINUE"
    hand.reach(1, 0.8, epoch=2)
    assert hand.chosen() == 0


def test_trial_without_patience_keeps_its_later_rungs():
    hand = Hand(halving(4, 9, factor=2), range(4))  # rungs 1, 2, 4, 8, 9; places 4, 2, 1, 1, 1
    hand.complete(0, 0.9)
    for number, value in ((1, 0.5), (2, 0.4), (3, 0.3)):
        hand.reach(number, value)
    assert hand.chosen() == 1
    hand.reach(1, 0.6, epoch=2)
    assert hand.chosen() is None
    assert sorted(hand.stopped) == [1, 2, 3]


def test_halving_knows_in_a_resumed_run_who_was_at_which_rung():
    known = EarlierTrials(
        ended={0: epochs(0.1)}, going_on={1: epochs(0.5), 2: epochs(0.6, 0.7), 3: []}
    )
    hand = Hand(halving(4, known=known), (1, 2, 3))  # places 4, 2, 1
    hand.reach(1, 0.5)  # its team tells the last epoch again
    assert hand.epoch(2, 0.7, epoch=2) == "CONTINUE"
    hand.reach(3, 0.2)
    assert hand.chosen() == 1
    hand.reach(1, 0.5, epoch=3)
    hand.reach(2, 0.7, epoch=3)
    assert hand.chosen() == 2
    assert hand.stopped == [3]


@pytest.mark.parametrize(
    "known", [EarlierTrials(ended={0: epochs(0.1)}), EarlierTrials(going_on={0: epochs(0.1, 0.1)})]
)
def test_earlier_trials_count_at_their_rungs(known):
    for given, promoted in ((known, 1), (EarlierTrials(), None)):
        hand = Hand(halving(4, factor=2, known=given))  # places 4, 2, 1, 1, 1
        for number in (*known.going_on, 1, 2):
            hand.begin(number)
        hand.reach(1, 0.5)
        assert hand.chosen() == promoted  # half of two, while another is on its way


# --- Tune's own ----------------------------------------------------------------------------------

STOPPING = ("asha_tune", "hyperband", "bohb", "median")
CLASSES = {
    "asha_tune": of_tune.AsyncHyperBandScheduler,
    "hyperband": of_tune.HyperBandScheduler,
    "bohb": of_tune.HyperBandForBOHB,
    "median": of_tune.MedianStoppingRule,
    "pbt": of_tune.PopulationBasedTraining,
    "pb2": PB2,
}
SAID_BY_THE_JOB = {"time_attr", "metric", "mode", "max_t", "hyperparam_mutations"} | {
    "hyperparam_bounds",
    # A trial that has trained all its epochs has ended.
    "stop_last_trials",
    # trial.json has what it would log.
    "log_config",
    # Every epoch has every metric.
    "require_attrs",
    # The search is in a file.
    "custom_explore_fn",
}
NAMED_OTHERWISE = {"grace_period": "grace_epochs"}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_arguments_are_those_of_tune(name):
    own = set(inspect.signature(CLASSES[name].__init__).parameters) - {"self"}
    taken = {NAMED_OTHERWISE.get(argument, argument) for argument in own - SAID_BY_THE_JOB}
    assert set(ARGUMENTS[name]) == taken


@pytest.mark.parametrize("name", STOPPING)
@pytest.mark.parametrize("teams", [1, 2])
def test_every_trial_ends_and_the_best_one_trains_longest(name, teams):
    for seed in range(10):
        chance = random.Random(seed)
        quality = list(range(1, 13))
        chance.shuffle(quality)
        scheduler = made(trials=12, length=8, teams=teams, name=name)
        search = Controller(
            scheduler, growing(quality), 12, 8, teams, chance=chance, at_once=name == "hyperband"
        ).run()
        assert len(search.ended) == 12, search.ended
        # The last rung of a bracket of hyperband lies before the last epoch.
        assert search.trained[quality.index(12)] >= 6
        assert search.epochs_trained < 12 * 8


def test_hyperband_needs_all_trials_at_once():
    """Why the Tuner proposes all of them (`raysft.search.tuner`)."""
    trained = {}
    for at_once in (True, False):
        scheduler = made(trials=12, length=8, name="hyperband")
        quality = growing(range(1, 13))
        search = Controller(scheduler, quality, 12, 8, paced=False, at_once=at_once).run()
        trained[at_once] = search.epochs_trained
    assert trained[True] < trained[False] == 12 * 8


def test_none_trains_every_trial_to_its_end():
    search = Controller(made(name="none"), lambda n, epoch, _: n, 4, 8, 2).run()
    assert set(search.ended.values()) == {"finished"}
    assert search.epochs_trained == 32


@pytest.mark.parametrize("name", ["asha_tune", "median"])
def test_trials_that_ended_count_in_a_resumed_run(name):
    known = EarlierTrials(ended={i: epochs(0.8 + i / 100, 0.9) for i in range(4)})
    for given, value, decision in (
        (EarlierTrials(), 0.2, "CONTINUE"),
        (known, 0.2, "STOP"),
        (known, 0.95, "CONTINUE"),
    ):
        hand = Hand(made(given, name=name, grace_epochs=1), [9])
        assert hand.epoch(9, value) == decision


@pytest.mark.parametrize("name", ["asha_tune", "median"])
def test_earlier_epochs_of_a_trial_are_not_decided_on_again(name):
    known = EarlierTrials(
        ended={i: epochs(0.9, 0.9) for i in range(6)}, going_on={9: epochs(0.1, 0.1, 0.95)}
    )
    hand = Hand(made(known, name=name, grace_epochs=1), [9])
    assert hand.epoch(9, 0.95, epoch=3) == "CONTINUE"


def test_median_outlives_a_trial_that_fails_before_its_first_epoch():
    hand = Hand(made(name="median", grace_epochs=1), range(5))
    scheduler = hand.scheduler
    failed = {"done": True, "trial_status": "failed", "training_iteration": 1}
    scheduler.on_trial_complete(hand, hand.trials[0], failed)
    for number in (1, 2, 3):
        hand.epoch(number, 0.9)
    assert hand.epoch(4, 0.1) == "STOP"


def test_median_pauses_instead_where_the_job_says_so():
    known = EarlierTrials(ended={i: epochs(0.9) for i in range(3)})
    hand = Hand(made(known, name="median", grace_epochs=1, hard_stop=False), [9])
    assert hand.epoch(9, 0.1) == "PAUSE"
    assert hand.epoch(9, 0.1, epoch=2) == "CONTINUE"


def test_halving_is_what_a_job_gets_that_names_none():
    assert isinstance(made(), Halving)
