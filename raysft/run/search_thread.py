"""The search of a run, in a thread beside the driver."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from raysft.job import Job
from raysft.run.trials import RunTrials
from raysft.search.earlier import EarlierTrials
from raysft.train.queue.client import QueueClient


class SearchThread(threading.Thread):
    """Puts trials into the queue and decides on them; `error` says why it ended, if it failed.

    Tune's files come to `scratch`.
    """

    def __init__(
        self, job: Job, trials: RunTrials, teams: int, queue: QueueClient, scratch: Path
    ) -> None:
        super().__init__(name="search", daemon=True)
        self.job = job
        self.trials = trials
        self.teams = teams
        self.queue = queue
        self.scratch = scratch
        self.is_over = threading.Event()
        # Of records, which the driver changes once the run goes on.
        self.numbers = trials.unfinished
        self.known: EarlierTrials = trials.known()
        self.past = trials.past()
        self.failed = trials.failed
        self.is_target_met = trials.has_met_target()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Ends when the last trial has ended, or was asked to."""
        try:
            if self.job.search is None:
                self._put_all()
            elif self.is_target_met:
                self._skip_all()
            elif self.numbers:
                self._search()
        except BaseException as error:
            self.error = error

    def _put_all(self) -> None:
        """A job without a search has one trial: there is nothing to decide."""
        for number in self.numbers:
            config = self.trials.configs[number]
            assignment = self.trials.assignment(number, config)
            self.queue.put(replace(assignment, of_search=False))

    def _skip_all(self) -> None:
        """A run that is resumed after it had reached its target trains no further trial."""
        for number in self.numbers:
            config = self.trials.configs.get(number, {})
            self.queue.skip(self.trials.names[number], config)

    def _search(self) -> None:
        # Only here: a job without a search has no need of Tune, whose import takes seconds.
        from raysft.search.tuner import Place, Trials, run_search

        run = self.trials.run
        trials = Trials(
            self.trials.names,
            self.numbers,
            dict(self.trials.configs),
            self.past,
            self.known,
            self.failed,
            self.trials.assignment,
            lambda trial: f"see {run.trial_folder(trial)}/trial.json",
        )
        run_search(self.job, trials, Place(self.queue, self.teams, self.scratch, self.is_over))

    def end(self) -> None:
        """Have the search end without waiting for its trials."""
        self.is_over.set()
