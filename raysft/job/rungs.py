"""Successive halving before it runs: after which epochs trials are compared, and how many go on
from each time.
"""

from __future__ import annotations

import math
from itertools import pairwise

from raysft.job.spec import Scheduler

GRACE = 8  # without grace_epochs, one in so many of a trial's epochs comes before the first rung


def first_rung(scheduler: Scheduler, epochs: int) -> int:
    """Epochs that every trial trains, of `epochs` for a whole one."""
    return scheduler.grace_epochs or max(1, round(epochs / GRACE))


def rung_epochs(scheduler: Scheduler, epochs: int) -> list[int]:
    """Epochs after which trials are compared: those of grace, and a factor more at each rung; at
    last all `epochs`.
    """
    rungs = [min(first_rung(scheduler, epochs), epochs)]
    while rungs[-1] * scheduler.reduction_factor < epochs:
        rungs.append(rungs[-1] * scheduler.reduction_factor)
    return rungs if rungs[-1] == epochs else [*rungs, epochs]


def rung_sizes(scheduler: Scheduler, trials: int, rungs: int, teams: int) -> list[int]:
    """How many trials train to each rung: one in a factor of those before, or as many more as would
    leave a team without work, but never more than half of them.
    """
    places = [trials]
    while len(places) < rungs:
        before = places[-1]
        places.append(
            max(math.ceil(before / scheduler.reduction_factor), min(teams, math.ceil(before / 2)))
        )
    return places


def plan_stages(
    scheduler: Scheduler, trials: int, epochs: int, teams: int
) -> tuple[tuple[int, int], ...]:
    """(trials, epochs that each of them trains) from one rung to the next; one stage where there
    are no rungs.
    """
    if scheduler.name != "asha":
        return ((trials, epochs),)
    rungs = rung_epochs(scheduler, epochs)
    places = rung_sizes(scheduler, trials, len(rungs), teams)
    return tuple(
        (count, rung - before)
        for count, (before, rung) in zip(places, pairwise([0, *rungs]), strict=True)
    )
