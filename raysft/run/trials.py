"""The trials of a run: their names, their configurations, and records that follow its events."""

from __future__ import annotations

from collections.abc import Iterable

from raysft.job import Job
from raysft.job.metrics import meets_target
from raysft.job.recipe import Train
from raysft.job.space import trial_settings
from raysft.job.values import Config
from raysft.records.documents import EpochMetrics
from raysft.records.run import Run
from raysft.records.trial import TrialRecord, leaderboard, metric_value
from raysft.search.earlier import EarlierTrials, Past
from raysft.search.space import known_configurations
from raysft.train.queue.assignment import Assignment
from raysft.train.queue.events import (
    EpochEnded,
    TrialCopied,
    TrialEnded,
    TrialEvent,
    TrialPaused,
    TrialProposed,
    TrialStarted,
)
from raysft.train.setup import with_absolute_weights

# A search that changes these changes more than the size of a batch.
_CHANGES_BATCHES = {"train.freeze", "train.head_epochs", "train.accumulate"}


class RunTrials:
    """The trials of a run by number and name, with the repeats of the best one."""

    def __init__(self, job: Job, run: Run, count: int) -> None:
        self.job = job
        self.run = run
        self.metric = run.metric
        # As wide as the last number: names then sort like numbers, in listings and on disk.
        width = len(str(count - 1))
        self.names = [f"t{i:0{width}d}" for i in range(count)]
        self.configs: dict[int, Config] = known_configurations(job)  # others are proposed later
        self.records: dict[str, TrialRecord] = {}
        self.repeats: dict[str, TrialRecord] = {}
        self.first_start: float | None = None
        self.last_end: float | None = None
        self._counted_until: dict[str, float] = {}
        for number, name in enumerate(self.names):
            self.records[name] = self._first_record(number, name)

    def _first_record(self, number: int, name: str) -> TrialRecord:
        known = self.run.known.get(name)
        if known is None:
            config = self.configs.get(number, {})
            return TrialRecord(name, config)
        # What it trained with, not what would be drawn now.
        self.configs[number] = known.config
        return known

    # --- what has been ---------------------------------------------------------------------------

    @property
    def all(self) -> list[TrialRecord]:
        """All trials in their order, then the repeats."""
        trials = list(self.records.values())
        return trials + list(self.repeats.values())

    @property
    def unfinished(self) -> list[int]:
        """The numbers of the trials that have not ended."""
        numbers = []
        for number, name in enumerate(self.names):
            if not self.records[name].ended:
                numbers.append(number)
        return numbers

    @property
    def all_ended(self) -> bool:
        """Whether no trial may train any more, repeats aside."""
        records = self.records.values()
        return all(record.ended for record in records)

    @property
    def repeats_ended(self) -> bool:
        """Whether no repeat may train any more."""
        repeats = self.repeats.values()
        return all(record.ended for record in repeats)

    @property
    def failed(self) -> int:
        """How many trials have failed."""
        statuses = [record.status for record in self.records.values()]
        return statuses.count("failed")

    def ranked(self) -> list[TrialRecord]:
        """The trials from best to worst."""
        records = list(self.records.values())
        return leaderboard(records, self.metric)

    def past(self) -> list[Past]:
        """The trials that ended in an earlier part of this run."""
        past: list[Past] = []
        for record in self.records.values():
            if record.ended:
                past.append((record.config, record.status, record.history))
        return past

    def known(self) -> EarlierTrials:
        """How far the trials of an earlier part of this run came, for the search's scheduler."""
        ended = {}
        going_on = {}
        for number, name in enumerate(self.names):
            record = self.records[name]
            # Failed and diverged trials count for nothing, as when they happen.
            if record.status in ("finished", "stopped"):
                ended[number] = record.history
            elif not record.ended:
                going_on[number] = list(record.history)
        return EarlierTrials(ended, going_on)

    def has_met_target(self) -> bool:
        """Whether a trial has reached search.target in any epoch."""
        for record in self.records.values():
            if any(self.meets_target(epoch) for epoch in record.history):
                return True
        return False

    def meets_target(self, epoch: EpochMetrics) -> bool:
        """Whether an epoch is as good as search.target; False without a target."""
        target = self.job.search.target if self.job.search else None
        if target is None:
            return False
        return meets_target(metric_value(epoch, self.metric), target, self.metric)

    # --- what is to be done ----------------------------------------------------------------------

    def assignment(self, number: int, config: Config) -> Assignment:
        """What a team does to train a trial with its configuration."""
        name = self.names[number]
        folder = str(self.run.trial_folder(name))
        settings = trial_settings(self.job, config)
        # Workers have another current folder than the person who named the weights.
        model = with_absolute_weights(settings.model)
        return Assignment("train", name, folder, model, settings.train, self.job.seed, config)

    def assignment_of_record(self, record: TrialRecord) -> Assignment:
        """What a team did to train a trial."""
        number = self.names.index(record.trial)
        return self.assignment(number, record.config)

    def add_repeats(self, best: TrialRecord, seeds: Iterable[int]) -> list[tuple[int, TrialRecord]]:
        """Records of the best trial with other seeds, each with its seed."""
        added = []
        for seed in seeds:
            name = f"{best.trial}-seed{seed}"
            record = self.run.known.get(name)
            if record is None:
                record = TrialRecord(name, best.config)
            self.repeats[name] = record
            added.append((seed, record))
        return added

    # --- what happens ----------------------------------------------------------------------------

    def find(self, trial: str) -> TrialRecord | None:
        """The record of a trial or of a repeat."""
        if trial in self.records:
            return self.records[trial]
        return self.repeats.get(trial)

    def apply(self, record: TrialRecord, event: TrialEvent) -> None:
        """Bring a record up to date with an event of its trial."""
        if isinstance(event, TrialProposed):
            record.config = event.config
        elif isinstance(event, TrialStarted):
            self._start(record, event.at)
        elif isinstance(event, EpochEnded):
            record.add(event.metrics, event.before)
        elif isinstance(event, TrialCopied):
            record.take_over(event.source, event.config, event.history)
        elif isinstance(event, TrialPaused):
            record.status = "paused"
            record.error = record.trace = record.host = None
            self.last_end = event.at
        elif isinstance(event, TrialEnded):
            record.status = event.status
            record.error, record.trace, record.host = event.error, event.trace, event.host
            self.last_end = event.at
        self._count_seconds(record, event.at)

    def _start(self, record: TrialRecord, at: float) -> None:
        # Of a trial that starts again, after a pause or a crash, the first time counts.
        self.first_start = self.first_start or at
        record.status = "running"
        record.started = record.started or at
        self._counted_until[record.trial] = at

    def _count_seconds(self, record: TrialRecord, at: float) -> None:
        """Add the time since the last event: a trial that waits, paused, costs nothing."""
        until = self._counted_until.get(record.trial)
        if until is None:
            return
        record.seconds += at - until
        self._counted_until[record.trial] = at
        if record.status != "running":
            del self._counted_until[record.trial]


def recipes_to_check(job: Job) -> tuple[Train, ...]:
    """The recipes whose batches can be checked before any trial.

    None where a search changes more than the size of a batch: then the trials say for themselves.
    """
    space = set(job.search.space) if job.search else set()
    if space & _CHANGES_BATCHES:
        return ()
    recipes = []
    for size in job.batch_sizes():
        recipes.append(job.train.model_copy(update={"batch_size": size}))
    return tuple(recipes)
