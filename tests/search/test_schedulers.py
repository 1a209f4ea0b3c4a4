"""What ends and pauses trials: in runs from their beginning, and in those that were taken up
again.
"""

import random

import pytest

from raysft.job.spec import Scheduler, Search
from raysft.search.earlier import EarlierTrials
from raysft.search.halving import Halving
from raysft.search.tuner import make_scheduler


def epochs(*values, first=1):
    return [
        {"epoch": first + i, "val_accuracy": value, "val_loss": 1 - value}
        for i, value in enumerate(values)
    ]


def made(known=EarlierTrials(), trials=4, length=8, teams=1, **scheduler):
    return make_scheduler(
        Search.model_validate({"trials": trials, "scheduler": scheduler}),
        trials,
        length,
        teams,
        known,
    )


def said(scheduler, trials):
    """What a scheduler says to the last epoch of the last trial; trials: {number: its epochs}."""
    decision = None
    for number, history in trials.items():
        scheduler.begin(number)
        for epoch in history:
            decision = scheduler.epoch(number, epoch)
    return decision


def halving(trials=9, length=9, grace=1, factor=3, teams=1, known=EarlierTrials()):
    spec = Scheduler(grace_epochs=grace, reduction_factor=factor)
    return Halving(spec, trials, length, teams, "val_accuracy", known)


def reach(scheduler, number, value, epoch=1):
    """A trial that trains comes to a rung and pauses there."""
    assert scheduler.epoch(number, *epochs(value, first=epoch)) == "pause"
    scheduler.paused(number)


class Searching:
    """A search as raysft.search.tuner drives it, of trials whose quality is known beforehand."""

    def __init__(self, scheduler, quality, length, teams, chance, fails=None):
        self.fails = fails or {}  # after how many epochs a trial does
        self.scheduler, self.quality, self.length, self.chance = scheduler, quality, length, chance
        self.new, self.running, self.trained = list(range(len(quality))), [], [0] * len(quality)
        self.ended, self.teams = {}, teams

    def run(self):
        while True:
            while len(self.running) < self.teams and (number := self.following()) is not None:
                self.running.append(number)
            if not self.running:
                return self
            self.step(self.chance.choice(self.running))

    def following(self):
        if self.new:
            self.scheduler.begin(self.new[0])
            return self.new.pop(0)
        for number in self.scheduler.hopeless():
            assert number not in self.ended
            self.ended[number] = "stopped"
        return self.scheduler.promoted()

    def step(self, number):
        assert number not in self.ended
        if self.trained[number] == self.fails.get(number):
            return self.leave(number, "failed", None)
        self.trained[number] += 1
        (metrics,) = epochs(self.quality[number] * self.trained[number], first=self.trained[number])
        if self.trained[number] == self.length:
            return self.leave(number, "finished", metrics)
        if self.scheduler.epoch(number, metrics) == "pause":
            self.running.remove(number)
            self.scheduler.paused(number)
        return None

    def leave(self, number, how, metrics):
        self.running.remove(number)
        self.ended[number] = how
        self.scheduler.ended(number, metrics)


@pytest.mark.parametrize("teams", [1, 2, 5])
def test_search_fills_each_rung_as_planned(teams):
    for seed in range(30):
        chance = random.Random(seed)
        quality = [i + 1 for i in range(16)]
        chance.shuffle(quality)
        scheduler = halving(16, 32, 4, 4, teams)
        search = Searching(scheduler, quality, 32, teams, chance).run()
        assert len(search.ended) == 16
        assert search.ended[quality.index(16)] == "finished"
        came = [sum(trained >= rung for trained in search.trained) for rung in scheduler.rungs]
        # A team that would have had to wait for the others of a rung may have taken up one that was
        # overtaken.
        assert all(
            places <= n <= places + teams - 1
            for n, places in zip(came, scheduler.places, strict=True)
        ), came


def test_failing_trials_neither_end_nor_block_a_search():
    for seed in range(60):
        chance = random.Random(seed)
        fails = {
            number: chance.randrange(9)
            for number in range(12)
            if chance.random() < chance.choice([0.3, 0.9])
        }
        search = Searching(
            halving(12, 9, 1, 3, 2), list(range(1, 13)), 9, 2, chance, fails
        ).run()  # places 12, 4, 2
        assert len(search.ended) == 12
        assert "finished" in search.ended.values() or len(fails) >= 4


def test_first_at_a_rung_is_not_promoted_for_that():
    scheduler = halving()
    for number in range(9):  # places 9, 3, 1
        scheduler.begin(number)
    reach(scheduler, 0, 0.5)
    assert scheduler.promoted() is None
    reach(scheduler, 1, 0.4)
    assert scheduler.promoted() is None
    reach(scheduler, 2, 0.6)
    assert scheduler.promoted() == 2  # while six are still on their way
    assert scheduler.promoted() is None


def test_rest_of_a_rung_ends_when_the_next_is_full():
    scheduler = halving(trials=3)  # places 3, 1, 1
    for number, value in enumerate((0.3, 0.2, 0.1)):
        scheduler.begin(number)
        reach(scheduler, number, value)
    assert scheduler.promoted() == 0
    assert scheduler.promoted() is None
    assert scheduler.hopeless() == []
    reach(scheduler, 0, 0.4, epoch=3)
    assert scheduler.hopeless() == [1, 2]
    assert scheduler.hopeless() == []
    assert scheduler.promoted() == 0


def test_next_best_replaces_a_promoted_trial_that_fails():
    scheduler = halving(trials=3)
    for number, value in enumerate((0.3, 0.2, 0.1)):
        scheduler.begin(number)
        reach(scheduler, number, value)
    assert scheduler.promoted() == 0
    scheduler.ended(0)
    assert scheduler.hopeless() == []
    assert scheduler.promoted() == 1


def test_trial_is_ranked_by_its_best_epoch():
    scheduler = halving(trials=2, grace=2, length=8)
    scheduler.begin(0)
    scheduler.begin(1)
    assert scheduler.epoch(0, *epochs(0.9)) == "go on"
    reach(scheduler, 0, 0.1, epoch=2)
    assert scheduler.epoch(1, *epochs(0.1)) == "go on"
    reach(scheduler, 1, 0.8, epoch=2)
    assert scheduler.promoted() == 0


def test_trial_without_patience_keeps_its_later_rungs():
    scheduler = halving(trials=4, length=9, factor=2)  # rungs 1, 2, 4, 8, 9; places 4, 2, 1, 1, 1
    for number in range(4):
        scheduler.begin(number)
    scheduler.ended(0, *epochs(0.9))
    for number, value in ((1, 0.5), (2, 0.4), (3, 0.3)):
        reach(scheduler, number, value)
    assert scheduler.promoted() == 1
    reach(scheduler, 1, 0.6, epoch=2)
    assert scheduler.promoted() is None
    assert scheduler.hopeless() == [1, 2, 3]


def test_resumed_run_knows_who_was_at_which_rung():
    known = EarlierTrials(
        ended={0: epochs(0.1)}, going_on={1: epochs(0.5), 2: epochs(0.6, 0.7), 3: []}
    )
    scheduler = halving(trials=4, known=known)  # places 4, 2, 1
    for number in (1, 2, 3):
        scheduler.begin(number)
    reach(scheduler, 1, 0.5)  # its team tells the last epoch again
    assert scheduler.epoch(2, *epochs(0.7, first=2)) == "go on"
    reach(scheduler, 3, 0.2)
    assert scheduler.promoted() == 1
    reach(scheduler, 1, 0.5, epoch=3)
    reach(scheduler, 2, 0.7, epoch=3)
    assert scheduler.hopeless() == [3]
    assert scheduler.promoted() == 2


@pytest.mark.parametrize(
    "known", [EarlierTrials(ended={0: epochs(0.1)}), EarlierTrials(going_on={0: epochs(0.1, 0.1)})]
)
def test_earlier_trials_count_at_their_rungs(known):
    for given, promoted in ((known, 1), (EarlierTrials(), None)):
        scheduler = halving(trials=4, factor=2, known=given)  # places 4, 2, 1, 1, 1
        for number in (*known.going_on, 1, 2):
            scheduler.begin(number)
        reach(scheduler, 1, 0.5)
        assert scheduler.promoted() == promoted  # half of two, while another is on its way


def test_median_compares_with_trials_that_ended():
    known = EarlierTrials(ended={i: epochs(0.8 + i / 100, 0.9) for i in range(4)})
    new = {9: epochs(0.2)}
    assert said(made(name="median", grace_epochs=1), new) == "go on"
    assert said(made(known, name="median", grace_epochs=1), new) == "stop"
    assert said(made(known, name="median", grace_epochs=1), {9: epochs(0.95)}) == "go on"


def test_median_decides_on_no_earlier_epoch_again():
    known = EarlierTrials(
        ended={i: epochs(0.9 - i / 10, 0.9 - i / 10) for i in range(6)}
    )  # the last ones below the median
    assert said(made(known, name="median", grace_epochs=1), {9: epochs(0.95)}) == "go on"


def test_without_a_scheduler_nothing_is_stopped():
    assert (
        said(made(EarlierTrials(ended={0: epochs(0.9)}), name="none"), {1: epochs(0.1)}) == "go on"
    )
