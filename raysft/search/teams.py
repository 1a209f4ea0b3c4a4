"""Tells the trial queue what Tune does with its trials: this is how they come to teams and leave
them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from ray.tune import Callback
from ray.tune.experiment import Trial

from raysft.errors import UserError
from raysft.job.values import Config
from raysft.search.in_process import InProcess
from raysft.search.results import Suggestion
from raysft.search.standin import read_checkpoint
from raysft.search.stoppers import AfterFailures
from raysft.train.queue.assignment import Assignment, Source
from raysft.train.queue.client import QueueClient

log = logging.getLogger(__name__)

MakeAssignment = Callable[[int, Config], Assignment]


class Teams(InProcess, Callback):
    """`names`: of all trials by their numbers; `make_assignment` raises ValueError or UserError for
    a configuration that no trial can have.
    """

    def __init__(
        self,
        queue: QueueClient,
        names: Sequence[str],
        make_assignment: MakeAssignment,
        most: int | None = None,
        failures: AfterFailures | None = None,
    ) -> None:
        self.queue = queue
        self.names = names
        self.make_assignment = make_assignment
        self.most = most
        """Trials that may be proposed at a time; None where all may be."""
        self.failures = failures
        self.folders: dict[str, str] = {}
        """Of the trials that were handed to the teams."""
        self.paused: set[str] = set()
        self.checkpoints: dict[str, str] = {}
        """The checkpoint that each paused trial had when it was looked at last."""
        self.busy = 0
        """Trials that have a team or wait for one."""
        self.paused_count = 0

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Count, as the searcher is asked next; have paused trials go on that Tune has chosen.

        A team need not wait until a stand-in has started, which takes seconds, where each of those
        trials will have one whatever the order: there are no more of them than stand-ins.
        """
        statuses = [trial.status for trial in trials]
        self.busy = statuses.count(Trial.PENDING) + statuses.count(Trial.RUNNING)
        self.paused_count = statuses.count(Trial.PAUSED)
        if self.most is None or self.busy > self.most:
            return
        for trial in trials:
            if trial.status == Trial.PENDING:
                self._go_on(trial)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """A stand-in has taken a trial: hand it to the teams, unless they have it already."""
        name = self._name(trial)
        if name not in self.folders:
            self.put(_suggestion(trial))
            return
        self._go_on(trial)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """A stand-in has died: another one will follow what the team does."""
        log.warning("%s: the process that followed it for the search died", self._name(trial))

    def _go_on(self, trial: Trial) -> None:
        """Have a trial go on that was paused."""
        name = self._name(trial)
        if name not in self.paused:
            return
        self.paused.discard(name)
        source = self._source(trial)
        if source is None:
            self.queue.resume(name)
            return
        assignment = self._assignment(_suggestion(trial))
        if isinstance(assignment, str):
            self.queue.give_up(name, assignment)
        else:
            self.queue.restart(replace(assignment, source=source))

    def put(self, suggested: Suggestion) -> None:
        """Hand a trial to the teams."""
        name = self.names[suggested["number"]]
        assignment = self._assignment(suggested)
        if isinstance(assignment, str):
            self._reject(suggested, assignment)
        else:
            self.folders[name] = assignment.folder
            self.queue.put(assignment)

    def _reject(self, suggested: Suggestion, why: str) -> None:
        """Have a trial that no team has seen end as failed."""
        name = self.names[suggested["number"]]
        self.folders[name] = ""
        self.queue.reject(name, suggested["config"], why)

    def _assignment(self, suggested: Suggestion) -> Assignment | str:
        """What a team is to do, or why no team can."""
        try:
            return self.make_assignment(suggested["number"], suggested["config"])
        except (ValueError, UserError) as error:
            # Each value may be right, and all of them together not: that trial has failed.
            return " ".join(str(error).split())

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Have the trials that Tune has paused leave their teams."""
        for trial in trials:
            if trial.status == Trial.PAUSED:
                self._pause(trial)

    def _pause(self, trial: Trial) -> None:
        name = self._name(trial)
        if name not in self.paused:
            self.paused.add(name)
            self.queue.pause(name)
        checkpoint = trial.checkpoint
        if checkpoint is None or self.checkpoints.get(name) == checkpoint.path:
            return
        self.checkpoints[name] = checkpoint.path
        source = self._source(trial)
        if source is not None:
            self.queue.claim(name, source)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Tune has ended a trial, or it has trained to its end."""
        self.queue.stop(self._name(trial))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Too many stand-ins of a trial have died."""
        name, why = self._name(trial), "the process that followed it for the search died"
        if name in self.folders:
            self.queue.give_up(name, why)
        else:
            self._reject(_suggestion(trial), why)
        # Tune asks no stopper about a trial that ends so.
        if self.failures is not None:
            self.failures.count(name, why)

    def _name(self, trial: Trial) -> str:
        return self.names[_suggestion(trial)["number"]]

    def _source(self, trial: Trial) -> Source | None:
        """The checkpoint of another trial that Tune starts a trial from; None for its own."""
        checkpoint = trial.checkpoint
        if checkpoint is None:
            return None
        stands_for = read_checkpoint(checkpoint.path)
        other = stands_for["trial"]
        if other == self._name(trial):
            return None
        return Source(other, self.folders[other], stands_for["epoch"])


def _suggestion(trial: Trial) -> Suggestion:
    return cast("Suggestion", trial.config)
