"""When Tune gets the next configuration."""

from __future__ import annotations

from typing import cast

from ray.tune.search import Searcher

from raysft.search.in_process import InProcess
from raysft.search.results import FAILED, STATUS, Result, Suggestion
from raysft.search.teams import Teams


class Paced(InProcess, Searcher):
    """Asks `searcher` only when a team is free: what is proposed later knows more.

    It also says which trials failed, which for Tune have come to an end like others.
    """

    def __init__(self, searcher: Searcher, teams: Teams) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.inner = searcher
        self.teams = teams

    def suggest(self, trial_id: str) -> Suggestion | str | None:  # type: ignore[override]
        """The next configuration; None where no team is free for it."""
        most = self.teams.most
        if most is not None and self.teams.busy >= most:
            return None
        suggested = cast("Suggestion | str | None", self.inner.suggest(trial_id))
        if isinstance(suggested, dict):
            self.teams.busy += 1
            if most is not None:
                # Not when its stand-in has started, which takes seconds: a team is free now.
                self.teams.put(suggested)
        elif suggested == Searcher.FINISHED and most is not None and self.teams.paused_count:
            # A search that has finished keeps no stand-in for a paused trial that will go on.
            return None
        return suggested

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        """A trial has trained an epoch."""
        self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Result | None = None, error: bool = False
    ) -> None:
        """A trial has ended."""
        # Who was stopped was as good as its epochs; who failed says that its values do not work.
        failed = result is not None and result.get(STATUS) in FAILED
        self.inner.on_trial_complete(trial_id, result, error or failed)

    def __getattr__(self, name: str) -> object:
        # HyperBandForBOHB tells its own searcher of pauses, beside the interface.
        return getattr(self.inner, name)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a resume replays what is in the run directory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""
