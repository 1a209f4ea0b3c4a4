"""Successive halving before it runs: after which epochs trials are compared, and how many go on."""

from __future__ import annotations

import math
from itertools import pairwise

from raysft.job.scheduler import Scheduler

GRACE = 8  # without grace_epochs, one in so many of a trial's epochs comes before the first rung


def first_rung(scheduler: Scheduler, epochs: int) -> int:
    """Epochs that every trial trains, of `epochs` for a whole one."""
    if scheduler.grace_epochs is not None:
        return scheduler.grace_epochs
    return max(1, round(epochs / GRACE))


def perturbation_interval(scheduler: Scheduler, epochs: int) -> int:
    """Epochs from one comparison of a population to the next."""
    return scheduler.perturbation_interval or first_rung(scheduler, epochs)


def rung_epochs(scheduler: Scheduler, epochs: int) -> list[int]:
    """Epochs after which trials are compared, each a factor further; at last all `epochs`."""
    rung = min(first_rung(scheduler, epochs), epochs)
    rungs = []
    while rung < epochs:
        rungs.append(rung)
        rung *= scheduler.factor
    return [*rungs, epochs]


def rung_sizes(scheduler: Scheduler, trials: int, rungs: int, teams: int) -> list[int]:
    """How many trials train to each rung: one in a factor of those before."""
    sizes = [trials]
    while len(sizes) < rungs:
        before = sizes[-1]
        best = math.ceil(before / scheduler.factor)
        # Teams that would stand idle take the next best, which costs no time; but never more than
        # half go on, or a cluster as large as the search would stop nothing.
        filling = min(teams, math.ceil(before / 2))
        sizes.append(max(best, filling))
    return sizes


def plan_stages(
    scheduler: Scheduler, trials: int, epochs: int, teams: int
) -> tuple[tuple[int, int], ...]:
    """(trials, epochs that each of them trains) from one rung to the next."""
    # Whom the others stop depends on how the trials do: the plan is of the whole.
    if scheduler.name != "halving":
        return ((trials, epochs),)
    rungs = rung_epochs(scheduler, epochs)
    sizes = rung_sizes(scheduler, trials, len(rungs), teams)
    stages = []
    for size, (before, rung) in zip(sizes, pairwise([0, *rungs]), strict=True):
        stages.append((size, rung - before))
    return tuple(stages)
