"""Asynchronous successive halving: trials pause at rungs, and the best of each rung are resumed.

After Li et al., A System for Massively Parallel Hyperparameter Tuning (MLSys 2020), algorithm 2,
with the number of trials known: all begin before any goes on, so none goes on only because it came
first, and no team stands idle for the end of a search while there is a trial it could train. Tune's
scheduler of this name never takes a trial up again: who comes to a rung first trains on, however
weak, which with a few teams is most of what the search costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from raysft.job.metrics import sort_key
from raysft.job.rungs import rung_epochs, rung_sizes
from raysft.job.scheduler import Scheduler as Spec
from raysft.records.documents import EpochMetrics
from raysft.search.earlier import EarlierTrials
from raysft.search.rules import Decision, Scheduler


class Halving(Scheduler):
    """Decides by `metric`; `epochs` are those of a whole trial, `trials` all of the run."""

    def __init__(
        self, spec: Spec, trials: int, epochs: int, teams: int, metric: str, known: EarlierTrials
    ) -> None:
        self.rungs = rung_epochs(spec, epochs)
        self.places = rung_sizes(spec, trials, len(self.rungs), teams)
        self.metric, self.known = metric, known
        self.reached: list[dict[int, tuple[float, ...]]] = [{} for _ in self.rungs]
        """At each rung the trials that came so far, and how good their best epoch was until there:
        less is better.
        """
        self.best: dict[int, tuple[float, ...]] = {}
        self.trained: dict[int, int] = {}
        self.training: set[int] = set()
        self.waiting: set[int] = set()
        for number, history in known.ended.items():
            self._remember(number, history)

    def begin(self, number: int) -> None:
        """Count the epochs of before, but for the last one."""
        # The team reports that one again, and it is decided on then: the run may have died before
        # it was.
        history = self.known.going_on.get(number, ())
        self._remember(number, history[:-1])
        self.training.add(number)

    def epoch(self, number: int, metrics: EpochMetrics) -> Decision:
        """Pause at every rung but the last."""
        self._remember(number, [metrics])
        if metrics["epoch"] in self.rungs[:-1]:
            return "pause"
        return "go on"

    def paused(self, number: int) -> None:
        """Let a trial wait at its rung."""
        self.training.discard(number)
        self.waiting.add(number)

    def ended(self, number: int, metrics: EpochMetrics | None = None) -> None:
        """Keep the place of a trial at the rungs, or free it for another one."""
        if metrics is not None:
            self._remember(number, [metrics])
        for reached in self.reached:
            if metrics is None:
                reached.pop(number, None)
            else:  # one that lost patience counts with what it was at its best
                reached.setdefault(number, self.best[number])
        self.training.discard(number)
        self.waiting.discard(number)

    def promoted(self) -> int | None:
        """The best trial of the highest rung at which one may go on.

        While others are still on their way to a rung, it is as many of those there as are to go on
        of all.
        """
        for rung in reversed(range(len(self.rungs) - 1)):
            share = len(self.reached[rung]) * self.places[rung + 1] // self.places[rung]
            number = self._best_paused(rung, share)
            if number is not None:
                return self._promote(number)
        # No share has a place left. A rung that nobody is on the way to can fill all of its places,
        # and the lowest one comes first: what it gives may still change the ones above.
        for rung in range(len(self.rungs) - 1):
            if not self._is_complete(rung):
                continue
            number = self._best_paused(rung, self.places[rung + 1])
            if number is not None:
                return self._promote(number)
        return None

    def hopeless(self) -> list[int]:
        """Those at a rung from which as many as may have come to the next one: until then one of
        these may fail.
        """
        found: list[int] = []
        for rung in range(len(self.rungs) - 1):
            next_rung = rung + 1
            if len(self.reached[next_rung]) < self.places[next_rung]:
                continue
            for number in self.waiting:
                if self._rung(number) == rung:
                    found.append(number)
            self.waiting.difference_update(found)
        return sorted(found)

    # --- inside ---------------------------------------------------------------------------------

    def _remember(self, number: int, history: Sequence[EpochMetrics]) -> None:
        for metrics in history:
            self.trained[number] = metrics["epoch"]
            now = sort_key(metrics, self.metric)
            best = self.best.get(number, now)
            self.best[number] = min(now, best)
            if metrics["epoch"] in self.rungs:
                rung = self.rungs.index(metrics["epoch"])
                self.reached[rung][number] = self.best[number]

    def _rung(self, number: int) -> int:
        """The rung at which a trial is paused."""
        epochs = self.trained[number]
        return self.rungs.index(epochs)

    def _is_complete(self, rung: int) -> bool:
        """Whether no trial is on its way to a rung."""
        epochs = self.rungs[rung]
        trained = [self.trained.get(number, 0) for number in self.training]
        return all(count >= epochs for count in trained)

    def _best(self, rung: int, count: int) -> list[int]:
        reached = self.reached[rung]
        # Of equally good trials the first ones: the order must not depend on who came first.
        in_order = sorted(reached)
        ranked = sorted(in_order, key=reached.__getitem__)
        return ranked[:count]

    def _best_paused(self, rung: int, count: int) -> int | None:
        for number in self._best(rung, count):
            is_waiting = number in self.waiting
            if is_waiting and self._rung(number) == rung:
                return number
        return None

    def _promote(self, number: int) -> int:
        self.waiting.discard(number)
        self.training.add(number)
        return number
