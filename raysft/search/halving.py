"""Asynchronous successive halving: trials pause at rungs, and the best of each rung are resumed.

After Li et al., A System for Massively Parallel Hyperparameter Tuning (MLSys 2020), algorithm 2,
with the number of trials known: all begin before any goes on, so none goes on only because it came
first, and no team stands idle for the end of a search while there is a trial it could train. Tune's
own scheduler of that paper never resumes a trial: who comes to a rung first trains on, however
weak, which with a few teams is most of what the search costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raysft.job.metrics import sort_key
from raysft.records.documents import EpochMetrics
from raysft.search.earlier import EarlierTrials
from raysft.search.results import FAILED, STATUS, Result

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


def paused_ones_wait(tune_controller: TuneController, teams: int) -> bool:
    """Whether no paused trial is to go on: all teams train, or a free one is to begin a trial."""
    trials: list[Trial] = tune_controller.get_trials()  # type: ignore[no-untyped-call]
    training = sum(trial.status == Trial.RUNNING for trial in trials)
    if training >= teams:
        return True
    # Where none runs the searcher waits for results, which nobody else would give it.
    return bool(training) and tune_controller.search_alg.searcher.has_more


class Halving(TrialScheduler):
    """Compares trials by `metric` after the epochs of `rungs`, to which `places` trials train each.

    A trial trains while it is pending or running, and waits at a rung while it is paused.
    """

    def __init__(
        self,
        rungs: Sequence[int],
        places: Sequence[int],
        metric: str,
        teams: int,
        known: EarlierTrials,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rungs, self.places = rungs, places
        self.compared_by, self.teams, self.known = metric, teams, known
        self.trials: dict[int, Trial] = {}
        self.reached: list[dict[int, tuple[float, ...]]] = [{} for _ in rungs]
        """At each rung the trials that came so far, and how good their best epoch was until there:
        less is better.
        """
        self.left: dict[int, dict[int, tuple[float, ...]]] = {}
        """What trials that failed had at each rung."""
        self.best: dict[int, tuple[float, ...]] = {}
        self.trained: dict[int, int] = {}
        for number, history in known.ended.items():
            self._remember(number, history)

    # --- what Tune tells ------------------------------------------------------------------------

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Count the epochs of an earlier part of the run, but for the last one."""
        number = trial.config["number"]
        self.trials[number] = trial
        # The team reports that one again, and it is decided on then: the run may have died before
        # it was.
        history = self.known.going_on.get(number, ())
        self._remember(number, history[:-1])
        # Tune adds a trial once more whose stand-in has died: its team trains on.
        for rung, best in self.left.pop(number, {}).items():
            self.reached[rung][number] = best

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: Result) -> str:
        """Pause at every rung but the last."""
        metrics = cast(EpochMetrics, result)
        self._remember(trial.config["number"], [metrics])
        if metrics["epoch"] not in self.rungs[:-1]:
            return self.CONTINUE
        # It may never go on: the searcher learns now what it was good for, as BOHB's does.
        tune_controller.search_alg.searcher.on_pause(trial.trial_id)
        return self.PAUSE

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: Result
    ) -> None:
        """A trial that has ended keeps its place at the rungs, those to come included; one that has
        failed leaves it to others.
        """
        if result.get(STATUS) in FAILED:
            self.on_trial_error(tune_controller, trial)
            return
        number = trial.config["number"]
        if self.compared_by in result:  # it may have been stopped before its first epoch
            self._remember(number, [cast(EpochMetrics, result)])
        self._keep_places(number)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """A trial that fails leaves its places to others."""
        number = trial.config["number"]
        left = self.left[number] = {}
        for rung, reached in enumerate(self.reached):
            if number in reached:
                left[rung] = reached.pop(number)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """A paused trial that was stopped counts where it was."""

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The next trial that has not begun, or is about to go on; else the paused one that goes
        on now.
        """
        for trial in self.trials.values():
            if trial.status == Trial.PENDING:
                return trial
        if paused_ones_wait(tune_controller, self.teams):
            return None
        for trial in self._hopeless():
            tune_controller.stop_trial(trial)  # type: ignore[no-untyped-call]
        promoted = self._promoted()
        if promoted is None and not self._training():
            # Places were given to trials that have ended since: nobody is left to take them.
            return self._best_of_all_waiting()
        return promoted

    def debug_string(self) -> str:
        """For Tune's log."""
        counts = [len(reached) for reached in self.reached]
        return f"Halving: {counts} trials have come to the rungs {list(self.rungs)}"

    # --- inside ---------------------------------------------------------------------------------

    def _remember(self, number: int, history: Sequence[EpochMetrics]) -> None:
        for metrics in history:
            self.trained[number] = metrics["epoch"]
            now = sort_key(metrics, self.compared_by)
            best = self.best.get(number, now)
            self.best[number] = min(now, best)
            if metrics["epoch"] in self.rungs:
                rung = self.rungs.index(metrics["epoch"])
                self.reached[rung][number] = self.best[number]

    def _keep_places(self, number: int) -> None:
        """Count a trial that has ended at all rungs with what it was at its best."""
        if number in self.best:
            for reached in self.reached:
                reached.setdefault(number, self.best[number])

    def _promoted(self) -> Trial | None:
        """The best trial of the highest rung at which one may go on.

        While others are still on their way to a rung, it is as many of those there as are to go on
        of all.
        """
        for rung in reversed(range(len(self.rungs) - 1)):
            share = len(self.reached[rung]) * self.places[rung + 1] // self.places[rung]
            trial = self._best_waiting(rung, share)
            if trial is not None:
                return trial
        # No share has a place left. A rung that nobody is on the way to can fill all of its places,
        # and the lowest one comes first: what it gives may still change the ones above.
        for rung in range(len(self.rungs) - 1):
            if self._is_complete(rung):
                trial = self._best_waiting(rung, self.places[rung + 1])
                if trial is not None:
                    return trial
        return None

    def _hopeless(self) -> list[Trial]:
        """Those at a rung from which as many as may have come to the next one: until then one of
        these may fail.
        """
        found: list[Trial] = []
        for rung in range(len(self.rungs) - 1):
            is_full = len(self.reached[rung + 1]) >= self.places[rung + 1]
            if is_full:
                found += self._waiting(rung).values()
        return found

    def _waiting(self, rung: int) -> dict[int, Trial]:
        """The trials that are paused at a rung, by their numbers."""
        epochs = self.rungs[rung]
        return {
            number: trial
            for number, trial in sorted(self.trials.items())
            if trial.status == Trial.PAUSED and self.trained[number] == epochs
        }

    def _is_complete(self, rung: int) -> bool:
        """Whether no trial is on its way to a rung."""
        return all(self.trained.get(n, 0) >= self.rungs[rung] for n in self._training())

    def _training(self) -> list[int]:
        """The numbers of the trials that train or are about to."""
        return [n for n, t in self.trials.items() if t.status in (Trial.PENDING, Trial.RUNNING)]

    def _best_of_all_waiting(self) -> Trial | None:
        """The best paused one of the highest rung at which one waits."""
        for rung in reversed(range(len(self.rungs) - 1)):
            trial = self._best_waiting(rung, len(self.reached[rung]))
            if trial is not None:
                return trial
        return None

    def _best_waiting(self, rung: int, count: int) -> Trial | None:
        """The best paused one among the `count` best that came to a rung."""
        reached = self.reached[rung]
        # Of equally good trials the first ones: the order must not depend on who came first.
        ranked = sorted(sorted(reached), key=reached.__getitem__)
        waiting = self._waiting(rung)
        for number in ranked[:count]:
            if number in waiting:
                return waiting[number]
        return None
