"""What proposes the configurations of a job's trials, as searchers of Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from pydantic import JsonValue
from ray.tune.search import Searcher

from raysft.job import Job
from raysft.job.metrics import metric_mode
from raysft.job.values import Config
from raysft.records.documents import EpochMetrics
from raysft.search.earlier import Past
from raysft.search.propose import InOrder, make_proposals

Result = dict[str, JsonValue]
"""The metrics of an epoch, and what Tune adds to them."""


class Suggestion(TypedDict):
    """What a trial of Tune gets as its configuration."""

    number: int
    """Of the trial of raysft."""
    config: Config


def make_searcher(
    job: Job, numbers: Sequence[int], configs: Mapping[int, Config], past: Sequence[Past]
) -> Searcher:
    """What proposes the trials of `numbers`; those in `configs` have their configuration already.

    `past`: the trials that ended in an earlier part of this run.
    """
    assert job.search is not None
    return Proposing(make_proposals(job, numbers, configs, past), job.search.metric)


class Proposing(Searcher):
    """Asks `proposals`; Tune's own identifiers of trials are known here only."""

    def __init__(self, proposals: InOrder, metric: str) -> None:
        super().__init__(metric=metric, mode=metric_mode(metric))
        self.proposals = proposals
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Suggestion | str:  # type: ignore[override]
        """The next configuration; Searcher.FINISHED when there are no more."""
        proposed = self.proposals.next_trial()
        if proposed is None:
            return Searcher.FINISHED
        number, config = proposed
        self.numbers[trial_id] = number
        return {"number": number, "config": config}

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        """A trial has trained an epoch."""
        self.proposals.epoch(self.numbers[trial_id], cast(EpochMetrics, result))

    def on_trial_complete(
        self, trial_id: str, result: Result | None = None, error: bool = False
    ) -> None:
        """A trial has ended."""
        self.proposals.ended(self.numbers[trial_id], failed=error)
