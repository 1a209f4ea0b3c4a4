"""What ends or pauses trials early: nothing, Ray Tune's rule of the median, or successive halving
(`halving`).

Tune would start an actor for each trial that runs, which had nothing to do here but to hand a
configuration to a team, and cost two seconds of CPU. So its rule is asked from a thread of the
driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raysft.job.metrics import metric_mode

Decision = Literal["go on", "pause", "stop"]


@dataclass(frozen=True)
class Known:
    """What trials of an earlier part of this run came to: epochs by the number of the trial."""

    ended: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    going_on: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


class Scheduler:
    """Lets every trial train to its end."""

    def begin(self, number: int) -> None:
        """A trial begins, or goes on in a run that was taken up again."""

    def epoch(self, number: int, metrics: Mapping[str, Any]) -> Decision:
        """What becomes of a trial that has trained an epoch and has more to come."""
        return "go on"

    def paused(self, number: int) -> None:
        """A trial that was to pause has left its team."""

    def ended(self, number: int, metrics: Mapping[str, Any] | None = None) -> None:
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

    def __init__(self, grace: int, metric: str, known: Known) -> None:
        from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

        self.rule = MedianStoppingRule(
            time_attr="epoch", metric=metric, mode=metric_mode(metric), grace_period=grace
        )
        self.stop, self.known = TrialScheduler.STOP, known
        for number, history in known.ended.items():
            self._tell(number, history)

    def begin(self, number: int) -> None:
        # The team tells the last epoch again, and it is judged then: it may have died before that
        # was heard.
        self._tell(number, self.known.going_on.get(number, ())[:-1])

    def epoch(self, number: int, metrics: Mapping[str, Any]) -> Decision:
        return (
            "stop"
            if self.rule.on_trial_result(_NO_TUNE, _trial(number), dict(metrics)) == self.stop
            else "go on"
        )

    def ended(self, number: int, metrics: Mapping[str, Any] | None = None) -> None:
        if metrics is not None:
            self._tell(number, [dict(metrics)])

    def _tell(self, number: int, history: Sequence[Mapping[str, Any]]) -> None:
        """Epochs that were judged when they were trained: the rule must not judge them again."""
        for epoch in history:
            self.rule.on_trial_complete(_NO_TUNE, _trial(number), dict(epoch))


@dataclass(frozen=True)
class _Trial:
    """Of a trial what the rule asks for."""

    trial_id: str


def _trial(number: int) -> Any:
    return _Trial(str(number))


class _NoTune:
    """What the rule may ask of Tune's controller: there are no trials that wait for their turn."""

    def get_live_trials(self) -> list[Any]:
        return []


_NO_TUNE: Any = _NoTune()
