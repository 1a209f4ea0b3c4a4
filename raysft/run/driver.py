"""A run from data to model: slots start while data is read, the search decides, the best trial is
delivered.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from raysft.data.splits import default_image_size
from raysft.errors import ModelError, RunError, UserError
from raysft.job.plan import Node
from raysft.job.space import trial_settings
from raysft.job.spec import Model
from raysft.ray_shortcuts import describe_fallbacks, recount_nodes, start_coordinator
from raysft.records.documents import EpochMetrics, ResultsDocument
from raysft.records.run import Run
from raysft.records.trial import TrialRecord
from raysft.run.delivery import Delivery
from raysft.run.listener import Listener
from raysft.run.observers import Observers
from raysft.run.outcome import Scored
from raysft.run.run_data import RunData, open_data
from raysft.run.search_thread import SearchThread
from raysft.run.slot_pool import WIND_DOWN_SECONDS, OwnSlots, SlotPool, SlotSource
from raysft.run.slot_watch import SlotWatch, describe_cause
from raysft.run.trials import RunTrials, recipes_to_check
from raysft.storage import StoragePath
from raysft.tracking import Tracking
from raysft.train.queue.client import start_queue
from raysft.train.queue.events import (
    CheckpointScored,
    Event,
    RunRefused,
    TrialEnded,
)
from raysft.train.run_feed import WorkerRun
from raysft.train.setup import Setup, with_absolute_weights

# A call for events waits this long; slots that died without a word are noticed in between.
POLL_SECONDS = 1.0
# A search that has ended waits so long for a trial that tells nothing: it may be at its validation.
LAST_EPOCH_SECONDS = 600.0
SCORE = "score"  # the name under which the best checkpoint is scored, as no trial is called


@dataclass(frozen=True)
class Workspace:
    """Where a run works on this machine."""

    scratch: Path
    """A folder that the caller removes when no thread of Ray writes there any more."""
    datasets: StoragePath | None = None
    """Where imported images are kept; the user's cache without it."""


def execute(
    run: Run,
    nodes: Sequence[Node],
    listener: Listener,
    workspace: Workspace,
    wait_for_end: bool,
    slots: SlotPool | None = None,
) -> ResultsDocument:
    """Run a job on the Ray this process is connected to; returns what results.json holds.

    `wait_for_end` leaves Ray without any worker of the run; not needed where this process ends.
    `slots` keeps the workers for the next run instead. A run that was reopened resumes. Raises
    UserError for what a person has to correct, RunError when no trial finished.
    """
    begun = time.time()
    data = open_data(run, nodes, listener, workspace.datasets, slots)
    with Tracking(run.job, run, listener.note, workspace.scratch) as tracking:
        trials = RunTrials(run.job, run, data.plan.trials)
        observers = Observers(run, data.plan, trials, listener, tracking)
        source = slots or OwnSlots(workspace.scratch)
        driver = RunDriver(run, data, trials, observers, source, workspace.scratch)
        driver.start()
        try:
            # While the images are read, workers start, import torch and make the first network.
            driver.load_data()
            driver.train_all()
            driver.repeat_best()
            results = driver.deliver(begun)
        finally:
            driver.close(wait_for_end)
        tracking.set_results(results)
    return results


class RunDriver:
    """What lives at the same time in a run: queue, slots and search, and the loop over its events.

    The records of the trials, the slots and everybody who is told have classes of their own; this
    one reads the events and hands them round.
    """

    def __init__(
        self,
        run: Run,
        data: RunData,
        trials: RunTrials,
        observers: Observers,
        source: SlotSource,
        scratch: Path,
    ) -> None:
        self.run = run
        self.job = run.job
        self.data = data
        self.trials = trials
        self.observers = observers
        self.source = source
        self._events_read = 0
        # Before the slots: each of them would wait for it, a second and a half.
        self.coordinator = start_coordinator()
        self.queue = start_queue()
        teams = data.plan.teams
        self.search = SearchThread(self.job, trials, teams, self.queue, scratch / "search")
        self.slots = SlotWatch(str(run.log), observers.note, self._slot_lost)
        # First: the run may end with a slot, whatever else its event says.
        observers.others.insert(0, self.slots)

    # --- start -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start slots and search; neither waits for the data."""
        model = self._first_model()
        run = WorkerRun(self._setup(), self.queue, model, self.job.seed)
        resources = self.job.resources
        self.slots.watch(self.source.begin(self.data.plan, resources, run))
        for text in describe_fallbacks(self.job.resources.elastic):
            self.observers.note(text)
        self.search.start()

    def load_data(self) -> None:
        """Read the splits into the object store, or say where they are to be streamed from."""
        splits = self.data.load()
        self.queue.set_splits(splits)

    def _first_model(self) -> Model | None:
        """The network that workers make while data is read, where it is known which one that is."""
        if self.job.one_model:
            return with_absolute_weights(self.job.model)
        for number in self.search.numbers[:1]:
            config = self.trials.configs.get(number)
            if config is None:  # a configuration that is still to be proposed
                continue
            with suppress(ModelError):  # of weights that are not there: the trial says so
                settings = trial_settings(self.job, config)
                return with_absolute_weights(settings.model)
        return None

    def _setup(self) -> Setup:
        data = self.job.data
        train = self.data.sources["train"]
        manifest = self.data.manifest
        return Setup(
            train.class_rows,
            manifest.mean,
            manifest.std,
            tuple(data.mean) if data.mean else None,
            tuple(data.std) if data.std else None,
            self.run.metric,
            self.job.resources,
            os.getcwd(),
            1e9 * data.budget_gb,
            default_image_size(manifest.image),
            (train.height, train.width),
            recipes_to_check(self.job),
            self.job.one_model,
            self.job.search is not None and self.job.search.scheduler.changes_trials,
        )

    # --- events ----------------------------------------------------------------------------------

    def train_all(self) -> None:
        """Follow the trials until every one has ended."""
        search_over_since = None
        while True:
            if self._read_events(POLL_SECONDS):
                search_over_since = None  # a trial may still be on the way to the end of its epoch
            self._check_slots()
            if self.trials.all_ended:
                return
            if self.search.is_alive():
                continue
            if isinstance(self.search.error, UserError):
                raise self.search.error
            if self.search.error is not None:
                what = f"failed ({describe_cause(self.search.error)})"
                raise RunError("search", what, f"see {self.run.log}")
            # Without a search nothing but the trial itself says how long it takes.
            search_over_since = search_over_since or time.monotonic()
            waited = time.monotonic() - search_over_since
            if self.job.search is not None and waited > LAST_EPOCH_SECONDS:
                raise RunError("search", "is over, but a trial does not end", f"see {self.run.log}")

    def _check_slots(self) -> None:
        # Only elastic slots start workers on what is left, so only they need to know at once.
        if self.job.resources.elastic:
            recount_nodes(self.coordinator)
        self.slots.check(lambda: self._read_events(0))

    def _slot_lost(self, number: int) -> None:
        self.observers.progress.remove_slot(number)
        self.queue.remove_slot(number)

    def _read_events(self, wait_s: float) -> Sequence[Event]:
        """Handle what happened since the last call; waits up to `wait_s` seconds for something."""
        events = self.queue.events(self._events_read, wait_s)
        # The next call says with this number that they have arrived, and the queue forgets them.
        self._events_read += len(events)
        for event in events:
            if isinstance(event, RunRefused):
                raise event.error
            self.observers.event(event)
        self.observers.publish_status()
        return events

    # --- end -------------------------------------------------------------------------------------

    def repeat_best(self) -> None:
        """Train the best configuration again with other seeds, as often as the job says."""
        best = self.trials.ranked()[0]
        count = self.job.search.confirm if self.job.search else 0
        if not count or best.best(self.run.metric) is None:
            return
        # The best trial itself has the job's seed.
        first = self.job.seed + 1
        repeats = self.trials.add_repeats(best, range(first, first + count))
        self.observers.note(f"confirm  {best.trial} with {count} other seeds")
        assignment = self.trials.assignment_of_record(best)
        for seed, record in repeats:
            if not record.ended:
                folder = str(self.run.trial_folder(record.trial))
                repeat = replace(
                    assignment, trial=record.trial, folder=folder, seed=seed, of_search=False
                )
                self.queue.put(repeat)
        while not self.trials.repeats_ended:
            self._read_events(POLL_SECONDS)
            self._check_slots()

    def deliver(self, begun: float) -> ResultsDocument:
        """Score the best epoch of the best trial once on the test split, and make the model folder
        of it; returns what results.json holds.
        """
        delivery = Delivery(self.run, self.data, self.trials, self.observers.note, begun)
        best = delivery.best_epoch()
        if best is None:
            delivery.report_failure()
            worst = self.trials.ranked()[0]
            what = f"no trial finished; {worst.trial}: {worst.error}"
            raise RunError("run", what, f"see {self.run.log}")
        return delivery.deliver(self._score(delivery.best_trial, best, delivery.checkpoint(best)))

    def _score(self, record: TrialRecord, best: EpochMetrics, checkpoint: StoragePath) -> Scored:
        trained = self.trials.assignment_of_record(record)
        folder = str(checkpoint)
        self.queue.put(replace(trained, kind="score", trial=SCORE, folder=folder, of_search=False))
        while True:
            self._check_slots()
            for event in self._read_events(POLL_SECONDS):
                if isinstance(event, TrialEnded) and event.trial == SCORE:
                    raise RunError("test score", str(event.error), f"see {self.run.log}")
                if isinstance(event, CheckpointScored):
                    return Scored(
                        record, best, trained, event.scores, event.preparation, event.predictions
                    )

    def close(self, wait: bool) -> None:
        """Send the teams home and end the search; `wait` until both have gone."""
        self.search.end()
        self.queue.close()
        self.source.end({slot.number for slot in self.slots.slots}, wait)
        if wait:
            self.search.join(WIND_DOWN_SECONDS)
