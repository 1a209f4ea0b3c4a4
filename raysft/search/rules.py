"""What ends or pauses trials early: nothing, Ray Tune's rule of the median, or successive halving
(`halving`).

Tune would start an actor for each trial that runs, which had nothing to do here but to hand a
configuration to a team, and cost two seconds of CPU. So its rule is asked from a thread of the
driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raysft.job.metrics import metric_mode
from raysft.records.documents import EpochMetrics
from raysft.search.earlier import EarlierTrials

Decision = Literal["go on", "pause", "stop"]


class Scheduler:
    """Lets every trial train to its end."""

    def begin(self, number: int) -> None:
        """A trial begins, or goes on in a run that was resumed."""

    def epoch(self, number: int, metrics: EpochMetrics) -> Decision:
        """What becomes of a trial that has trained an epoch and has more to come."""
        return "go on"

    def paused(self, number: int) -> None:
        """A trial that was to pause has left its team."""

    def ended(self, number: int, metrics: EpochMetrics | None = None) -> None:
        """A trial has ended: with the `metrics` of its last epoch, or failed or stopped from
        outside without any.
        """

    def promoted(self) -> int | None:
        """The paused trial that goes on now, once all trials have begun; None where none may, or
        not yet.
        """
        return None

    def hopeless(self) -> Sequence[int]:
        """Paused trials that will not go on any more; each is named once."""
        return ()


class Median(Scheduler):
    """Tune's rule: a trial whose best epoch is worse than the median of the others' running means
    ends.
    """

    def __init__(self, grace: int, metric: str, known: EarlierTrials) -> None:
        from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

        self.rule = MedianStoppingRule(
            time_attr="epoch", metric=metric, mode=metric_mode(metric), grace_period=grace
        )
        self.stop, self.known = TrialScheduler.STOP, known
        for number, history in known.ended.items():
            self._replay(number, history)

    def begin(self, number: int) -> None:
        """Let the epochs of before count, but for the last one."""
        # The team reports that one again, and it is decided on then: the run may have died before
        # it was.
        history = self.known.going_on.get(number, ())
        self._replay(number, history[:-1])

    def epoch(self, number: int, metrics: EpochMetrics) -> Decision:
        """Ask the rule, which hears of the epoch by that."""
        decision = self.rule.on_trial_result(_NO_TUNE, _trial(number), dict(metrics))
        if decision == self.stop:
            return "stop"
        return "go on"

    def ended(self, number: int, metrics: EpochMetrics | None = None) -> None:
        """Let the last epoch of a trial count among the others."""
        if metrics is not None:
            self._replay(number, [metrics])

    def _replay(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Add epochs that count for others, but decide nothing on their own trial any more."""
        for epoch in history:
            # As a trial that is complete: the rule then takes the metrics and asks nothing.
            self.rule.on_trial_complete(_NO_TUNE, _trial(number), dict(epoch))


@dataclass(frozen=True)
class _Trial:
    """Of a trial what the rule asks for."""

    trial_id: str


def _trial(number: int) -> Any:  # in the place of a Trial of Tune, which needs an actor
    return _Trial(str(number))


class _NoTune:
    """What the rule may ask of Tune's controller: there are no trials that wait for their turn."""

    def get_live_trials(self) -> list[_Trial]:
        """None."""
        return []


_NO_TUNE: Any = _NoTune()
