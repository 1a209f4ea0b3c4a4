"""The search of a run, in a thread beside the driver."""

from __future__ import annotations

import threading
from dataclasses import replace

from raysft.job import Job
from raysft.job.spec import Search
from raysft.run.trials import RunTrials
from raysft.search.propose import make_proposals
from raysft.search.tuner import make_scheduler, search
from raysft.train.queue.client import QueueClient


class SearchThread(threading.Thread):
    """Puts trials into the queue and decides on them; `error` says why it ended, if it failed."""

    def __init__(self, job: Job, trials: RunTrials, teams: int, queue: QueueClient) -> None:
        super().__init__(name="search", daemon=True)
        self.job = job
        self.trials = trials
        self.teams = teams
        self.queue = queue
        # Both look at records, which the driver changes once the run goes on.
        self.known = trials.known()
        past = trials.past()
        self.proposals = make_proposals(job, trials.unfinished, trials.configs, past)
        self.error: BaseException | None = None

    def run(self) -> None:
        """Ends when the last trial has ended, or was asked to."""
        try:
            if self.job.search is None:
                self._put_all()
            elif self.proposals.waiting:
                self._search(self.job.search)
        except BaseException as error:
            self.error = error

    def _put_all(self) -> None:
        """A job without a search has one trial: there is nothing to decide."""
        for number in self.proposals.waiting:
            config = self.trials.configs[number]
            assignment = self.trials.assignment(number, config)
            self.queue.put(replace(assignment, of_search=False))

    def _search(self, spec: Search) -> None:
        epochs = self.job.train.epochs
        count = len(self.trials.names)
        scheduler = make_scheduler(spec, count, epochs, self.teams, self.known)
        names = self.trials.names
        search(self.proposals, self.trials.assignment, names, self.queue, self.teams, scheduler)
