"""A run from data to model: slots start while data is read, the search decides, the best trial is
delivered.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.data.epochs import keep_or_stream
from raysft.data.importer import describe_pixels, ensure_dataset
from raysft.data.ingest import read_split
from raysft.data.layout import SplitName
from raysft.data.shards import Manifest, read_manifest, verify_checksums
from raysft.data.sources import describe_unreadable, outline_dataset
from raysft.data.splits import NetworkInputs, SplitSource, default_image_size, split_sources
from raysft.errors import ModelError, RaysftError, RunError, UserError, describe_error
from raysft.job import Job
from raysft.job.plan import Node, RunPlan, make_plan
from raysft.job.recipe import Train
from raysft.job.space import trial_settings
from raysft.job.spec import Model, meets_target
from raysft.ray_calls import START_SECONDS, first_result, last_worker_output
from raysft.ray_shortcuts import recount_nodes, start_coordinator
from raysft.records.predictions import PREDICTIONS, write_predictions
from raysft.records.run import Run, TrialRecord, leaderboard
from raysft.results.model import deliver
from raysft.run.data_identity import compare, identity, note_missing
from raysft.run.delivery import (
    Scored,
    card_of,
    confirmation,
    readme_of,
    results_of_run,
    timing_of,
)
from raysft.run.gauges import Gauges
from raysft.run.progress import Progress
from raysft.search.propose import searcher
from raysft.search.schedulers import Known
from raysft.search.space import known_configurations
from raysft.search.tuner import scheduler_of, search
from raysft.storage import StoragePath, remove_folder
from raysft.tracking import Tracking
from raysft.train.checkpoint_paths import checkpoint_path
from raysft.train.queue import MAX_ATTEMPTS, Event, Task, TrialQueue
from raysft.train.setup import Setup, absolute
from raysft.train.slots import SlotThread, own_start_seconds

POLL_SECONDS = 1.0
WIND_DOWN_SECONDS = 60.0
RESTARTS = 50  # of a slot, besides those that failing trials may cost: machines come and go
PROGRESS_SECONDS, REMOTE_PROGRESS_SECONDS = (
    1.0,
    10.0,
)  # between two progress.json, on a disk and on an object store
SCORE = "score"


class Listener(Protocol):
    """What a run tells while it goes on; a console shows it."""

    def note(self, text: str) -> None:
        """One line of news."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Rows imported, bytes downloaded."""

    def epochs(self, done: float, total: int, records: Sequence[TrialRecord]) -> None:
        """Epochs trained by all trials, with a fraction for those in progress."""

    def trial_ended(self, record: TrialRecord, ended: int, total: int) -> None:
        """A trial finished, was stopped by the search, or failed."""

    def status(self, document: dict[str, Any], records: Sequence[TrialRecord]) -> None:
        """Where the run stands, once a second; see raysft.run.progress."""


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
) -> dict[str, Any]:
    """Run a job on the Ray this process is connected to; returns what results.json holds.

    `wait_for_end` leaves Ray without any worker of the run; not needed where this process ends. A
    run that was reopened goes on where it was. Raises UserError for what a person has to correct,
    RunError when no trial finished.
    """
    begun = time.time()
    job, scratch = run.job, workspace.scratch
    folder = ensure_dataset(job.data, listener.progress, workspace.datasets)
    manifest = read_manifest(folder)
    if job.data.verify:
        verify_checksums(folder, manifest)
    if manifest.skipped:
        listener.note(describe_unreadable(manifest))
    for line in describe_pixels(manifest.image.decoding, manifest.decoded):
        listener.note(line)
    compare(run, manifest, folder)
    plan = make_plan(job, outline_dataset(folder, manifest), nodes)
    sources = split_sources(
        folder,
        manifest,
        plan.val_rows,
        job.data.limit,
        job.seed,
        NetworkInputs(job.image_sizes(), job.interpolations()),
    )
    note_missing(manifest, sources["val"], listener.note)
    how, why = keep_or_stream(
        sources, job.data.budget_gb, ray.cluster_resources().get("object_store_memory", 0)
    )
    listener.note(f"data {how}: {why}")
    run.save(
        status="running",
        trials=plan.trials,
        data={
            **identity(manifest),
            "path": str(folder),
            "rows": {name: len(source.ids) for name, source in sources.items()},
            "read": how,
        },
    )
    with Tracking(job, run, listener.note, scratch) as tracking:
        conductor = _Conductor(
            job, run, plan, manifest, sources, listener, str(scratch), begun, tracking
        )
        conductor.start()
        try:
            conductor.hand_out(how)
            conductor.follow()
            conductor.confirm()
            results = conductor.deliver()
        finally:
            conductor.close(wait_for_end)
        tracking.delivered(results)
    return results


def task_of(
    job: Job, names: Sequence[str], trials: StoragePath, number: int, config: dict[str, Any]
) -> Task:
    """The task of trial `number` with its configuration; `trials` is the folder of all of them."""
    recipe = trial_settings(job, config)
    return Task(
        "train",
        names[number],
        str(trials / names[number]),
        absolute(recipe.model),
        recipe.train,
        job.seed,
        config,
    )


def recipes_of(job: Job) -> tuple[Train, ...]:
    """The recipes of trials, as far as their batches go; none where a search changes more than the
    size of these.
    """
    if job.search is not None and {"train.freeze", "train.head_epochs", "train.accumulate"} & set(
        job.search.space
    ):
        return ()
    return tuple(job.train.model_copy(update={"batch_size": size}) for size in job.batch_sizes())


class _Conductor:
    """The parts of a run that live at the same time: queue, slots, search, and the records of the
    trials.
    """

    def __init__(
        self,
        job: Job,
        run: Run,
        plan: RunPlan,
        manifest: Manifest,
        sources: dict[SplitName, SplitSource],
        listener: Listener,
        scratch: str,
        begun: float,
        tracking: Tracking,
    ) -> None:
        self.job, self.run, self.plan, self.manifest, self.sources = (
            job,
            run,
            plan,
            manifest,
            sources,
        )
        self.listener, self.scratch, self.begun, self.tracking = listener, scratch, begun, tracking
        self.first_trial: float | None = None
        self.last_trial = begun
        self.seen = 0
        self.arrived: set[int] = set()
        """Slots of which a process has started."""
        self.unable: Counter[int] = Counter()
        """How often each slot could not work, since any last got further."""
        self.trained = False
        self.gauges = Gauges(run.folder.name, run.metric)
        self.stood = self.saved = 0.0
        self.built: dict[str, Any] = {}
        self.repeats: dict[str, TrialRecord] = {}
        self.counted: dict[str, float] = {}
        """Until when the seconds of a trial that trains have been counted."""
        width = len(str(plan.trials - 1))
        self.names = [f"t{i:0{width}d}" for i in range(plan.trials)]
        known = known_configurations(job)  # others are proposed when their trial begins
        self.records = {
            name: run.known.get(name) or TrialRecord(name, known.get(i, {}))
            for i, name in enumerate(self.names)
        }
        before = {
            i: self.records[name].config for i, name in enumerate(self.names) if name in run.known
        }
        self.configs = known | before
        self.make_task = partial(task_of, job, self.names, run.folder / "trials")
        numbers = [i for i, name in enumerate(self.names) if not self.records[name].ended]
        past = [(r.config, r.status, r.history) for r in self.records.values() if r.ended]
        histories = {i: self.records[name].history for i, name in enumerate(self.names)}
        judged = {
            i
            for i, name in enumerate(self.names)
            if self.records[name].status in ("finished", "stopped")
        }
        self.before = Known(
            {i: h for i, h in histories.items() if i in judged},
            {i: list(h) for i, h in histories.items() if i in numbers},
        )
        self.proposals = searcher(job, numbers, self.configs, past)
        self.over = any(
            self._is_target(epoch) for r in self.records.values() for epoch in r.history
        )
        self.progress = Progress(job, plan, run.known.values())
        self.search_error: BaseException | None = None
        self.searching = threading.Thread(target=self._search, name="search", daemon=True)

    # --- starting -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start queue, slots and search; none of them waits for the data."""
        self.coordinator = start_coordinator()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(TrialQueue)
        self.queue = actor.options(
            num_cpus=0, max_concurrency=1000, scheduling_strategy=here
        ).remote()
        shared = {
            "setup": self._setup(),
            "queue": self.queue,
            "model": self._first_model(),
            "seed": self.job.seed,
        }
        restarts = RESTARTS + MAX_ATTEMPTS * self.plan.trials
        self.slots = [
            SlotThread(i, slot, self.job.resources, self.scratch, restarts, shared)
            for i, slot in enumerate(self.plan.slots)
        ]
        if self.over:  # a run taken up again after it had reached its target
            ray.get(self.queue.finish_search.remote())
        for thread in (*self.slots, self.searching):
            thread.start()

    def _first_model(self) -> Model | None:
        """The network that workers make while data is read, where it is known which one that is."""
        if self.job.one_model:
            return absolute(self.job.model)
        known = [
            self.configs[number] for number in self.proposals.waiting[:1] if number in self.configs
        ]
        with suppress(ModelError):  # of weights that are not there: the trial says so
            return absolute(trial_settings(self.job, known[0]).model) if known else None
        return None

    def _setup(self) -> Setup:
        data = self.job.data
        return Setup(
            self.sources["train"].class_rows,
            self.manifest.mean,
            self.manifest.std,
            tuple(data.mean) if data.mean else None,
            tuple(data.std) if data.std else None,
            self.run.metric,
            self.job.resources,
            os.getcwd(),
            1e9 * data.budget_gb,
            default_image_size(self.manifest.image),
            (self.sources["train"].height, self.sources["train"].width),
            recipes_of(self.job),
            self.job.one_model,
        )

    def _search(self) -> None:
        try:
            if self.job.search is None:  # one trial: nothing to decide
                for number in self.proposals.waiting:
                    task = self.make_task(number, self.configs[number])
                    ray.get(self.queue.put.remote(replace(task, of_search=False)))
            elif self.proposals.waiting:
                scheduler = scheduler_of(
                    self.job.search,
                    self.plan.trials,
                    self.job.train.epochs,
                    self.plan.teams,
                    self.before,
                )
                search(
                    self.proposals,
                    self.make_task,
                    self.names,
                    self.queue,
                    self.plan.teams,
                    scheduler,
                )
        except BaseException as error:
            self.search_error = error

    def hand_out(self, how: str) -> None:
        """Read the splits into the object store, or say where they are to be streamed from."""
        if how == "kept":
            self.splits: dict[Any, Any] = {
                name: ray.put(read_split(source)) for name, source in self.sources.items()
            }
        else:
            self.splits = {**self.sources}
        first_result(self.queue.set_data.remote(self.splits))

    # --- following ------------------------------------------------------------------------------

    def follow(self) -> None:
        """Take in what happens until every trial has ended."""
        over_since = None
        while True:
            self._take_in(POLL_SECONDS)
            self._check_slots()
            if self._all_ended:
                return
            if not self.searching.is_alive():
                if self.search_error is not None:
                    raise RunError(
                        "search", f"failed ({_cause(self.search_error)})", f"see {self._log}"
                    )
                over_since = over_since or time.monotonic()
                if (
                    self.job.search is not None
                    and time.monotonic() - over_since > WIND_DOWN_SECONDS
                ):
                    raise RunError(
                        "search", "is over, but a trial does not end", f"see {self._log}"
                    )

    @property
    def _all_ended(self) -> bool:
        return all(record.ended for record in self.records.values())

    @property
    def _log(self) -> str:
        return str(self.run.log)

    def _check_slots(self) -> None:
        """A slot that ended leaves its trials to the others; without any slot the run cannot go
        on.
        """
        if self.job.resources.elastic:
            recount_nodes(self.coordinator)
        for slot in [slot for slot in self.slots if not slot.is_alive()]:
            self._take_in(0)
            self._lose(
                slot, f"({_cause(slot.error)})" if slot.error else "before the trials were done"
            )
        patience = max(START_SECONDS, own_start_seconds())
        for slot in [slot for slot in self.slots if slot.number not in self.arrived]:
            if slot.started is not None and time.monotonic() - slot.started > patience:
                self._lose(
                    slot,
                    f"(none of its processes has started within {patience:g} "
                    f"seconds{last_worker_output()})",
                )

    def _lose(self, slot: SlotThread, cause: str) -> None:
        if slot not in self.slots:  # what was taken in has told so already
            return
        self.slots.remove(slot)
        self.progress.lost(slot.number)
        if not self.slots:
            raise RunError(
                f"slot {slot.number}", f"its worker group ended {cause}", f"see {self._log}"
            )
        self.listener.note(f"slot {slot.number} ended {cause}: its trials go to the other slots")
        ray.get(self.queue.lost.remote(slot.number))

    def _cannot_work(self, slot: int, host: str, error: str) -> None:
        """A worker of a slot cannot import something: that will not go away where nothing has
        worked yet.

        In a run that has trained it is told, and the slot is given up when it happens again and
        again.
        """
        if not self.trained:
            raise RunError(
                f"slot {slot}",
                f"a worker on {host} cannot start: {error}",
                "repair its environment, then resume the run",
            )
        self.unable[slot] += 1
        self.listener.note(f"slot {slot}: a worker on {host} cannot start: {error}")
        if self.unable[slot] >= MAX_ATTEMPTS:
            for thread in [thread for thread in self.slots if thread.number == slot]:
                self._lose(thread, f"(a worker on {host} cannot start: {error})")

    def _take_in(self, wait_s: float) -> list[Event]:
        events = ray.get(self.queue.events.remote(self.seen, wait_s))
        self.seen += len(events)
        for event in events:
            if event.kind == "refused":
                raise event.payload["error"]
            if event.kind == "built":
                self._note_weights(event.payload)
            elif event.kind == "arrived":
                self.arrived.add(event.payload["slot"])
            elif event.kind == "unable":
                self._cannot_work(**event.payload)
            elif event.kind in ("progress", "epoch"):
                self.trained = True
                self.unable.clear()
            self.progress.take(event)
            record = self.records.get(event.trial) or self.repeats.get(event.trial)
            if record is not None:
                self._record(record, event)
        self._stand()
        return events

    def _stand(self) -> None:
        """Tell those who watch where the run stands."""
        now = time.monotonic()
        if now - self.stood < PROGRESS_SECONDS:
            return
        self.stood = now
        records, repeats = list(self.records.values()), list(self.repeats.values())
        document = self.progress.document(records, repeats)
        if now - self.saved >= (
            PROGRESS_SECONDS if isinstance(self.run.folder, Path) else REMOTE_PROGRESS_SECONDS
        ):
            self.saved = now
            self.run.save_progress(document)
        self.listener.status(document, [*records, *repeats])
        self.gauges.set(document, records)

    def _note_weights(self, told: dict[str, Any]) -> None:
        """Say once for each network what came from its weights, and keep it in run.json."""
        name = f"{told['name']} {told['weights']}"
        if name in self.built:
            return
        self.built[name] = told
        self.run.save(weights=list(self.built.values()))
        left = f"; left out {_some(told['unfit'])}" if told["unfit"] else ""
        new = f"; new {_some(told['new'])}" if told["new"] else ""
        how = f" ({told['source']})" if told["source"] else ""
        self.listener.note(
            f"weights {told['name']}: {told['loaded']} of {told['total']} tensors loaded{how}{new}"
            f"{left}"
        )

    def _record(self, record: TrialRecord, event: Event) -> None:
        if event.kind == "proposed":
            record.config = event.payload["config"]
        elif event.kind == "halved":
            self.listener.note(
                f"{record.trial}: out of memory; goes on from its last checkpoint with each "
                "batch in "
                f"{event.payload['accumulate']} parts"
            )
        elif event.kind == "started":
            self.first_trial = self.first_trial or event.at
            record.status, record.started = "running", record.started or event.at
            self.counted[record.trial] = event.at
            if event.payload["attempt"]:
                stood = f" ({event.payload['stood']})" if event.payload["stood"] else ""
                self.listener.note(
                    f"{record.trial}: a worker died{stood}; taken up again from its last checkpoint"
                )
        elif event.kind == "epoch":
            record.add(
                {
                    key: value
                    for key, value in event.payload.items()
                    if key not in ("last", "before")
                },
                event.payload["before"],
            )
            if record.trial in self.records:
                self._reach(record, event.payload)
        elif event.kind != "progress":
            record.status = event.kind
            record.error, record.trace = event.payload.get("error"), event.payload.get("trace")
            record.host = event.payload.get("host")
            self.last_trial = event.at
        if record.trial in self.counted:
            record.seconds += event.at - self.counted[record.trial]
            self.counted[record.trial] = event.at
        if record.status != "running":
            self.counted.pop(record.trial, None)
        if event.kind != "progress":
            self.run.save_trial(record)
        self.tracking.trial(record, event.kind, event.at)
        self._tell(record, event)
        self._check_failures(record, event)

    def _check_failures(self, record: TrialRecord, event: Event) -> None:
        most = self.job.search.max_failures if self.job.search else None
        failed = sum(r.status == "failed" for r in self.records.values())
        if event.kind == "failed" and most is not None and failed > most:
            raise RunError(
                "search",
                f"{failed} trials have failed, more than search.max_failures {most}; "
                f"{record.trial}: {record.error}",
                f"see {self.run.trial_folder(record.trial)}/trial.json",
            )

    def _reach(self, record: TrialRecord, epoch: dict[str, Any]) -> None:
        """End the search when a trial is as good as the job wants it."""
        if self.over or not self._is_target(epoch):
            return
        self.over = True
        self.listener.note(
            f"{record.trial} has reached search.target with {self.run.metric} "
            f"{epoch[self.run.metric]:.4f}: the search ends"
        )
        ray.get(self.queue.finish_search.remote())

    def _is_target(self, epoch: dict[str, Any]) -> bool:
        target = self.job.search.target if self.job.search else None
        return target is not None and meets_target(epoch[self.run.metric], target, self.run.metric)

    def _tell(self, record: TrialRecord, event: Event) -> None:
        if record.trial in self.repeats:
            if record.ended:
                self.listener.trial_ended(
                    record, sum(r.ended for r in self.repeats.values()), len(self.repeats)
                )
            return
        ended = [r for r in self.records.values() if r.ended]
        records = list(self.records.values())
        self.listener.epochs(self.progress.done(records), self.progress.total, records)
        if record in ended:
            self.listener.trial_ended(record, len(ended), len(self.records))

    # --- ending ---------------------------------------------------------------------------------

    def confirm(self) -> None:
        """Train the best configuration again with other seeds, as often as the job says."""
        best = self._board()[0]
        seeds = range(1, 1 + (self.job.search.confirm if self.job.search else 0))
        if not seeds or best.best(self.run.metric) is None:
            return
        task = self.make_task(self.names.index(best.trial), best.config)
        for i in seeds:
            name = f"{best.trial}-seed{self.job.seed + i}"
            self.repeats[name] = self.run.known.get(name) or TrialRecord(name, best.config)
        self.listener.note(f"confirm  {best.trial} with {len(seeds)} other seeds")
        for i, record in zip(seeds, self.repeats.values(), strict=True):
            if not record.ended:
                folder = str(self.run.trial_folder(record.trial))
                again = replace(
                    task, trial=record.trial, folder=folder, seed=self.job.seed + i, of_search=False
                )
                ray.get(self.queue.put.remote(again))
        while not all(record.ended for record in self.repeats.values()):
            self._take_in(POLL_SECONDS)
            self._check_slots()

    def deliver(self) -> dict[str, Any]:
        """Score the best epoch of the best trial once on the test split and make the model folder
        of it.
        """
        board = self._board()
        best = board[0].best(self.run.metric)
        timing = timing_of(board, self.begun, self.first_trial, self.last_trial)
        val_rows = self.sources["val"].class_rows
        if best is None:
            self.run.save_results(results_of_run(self.run, board, None, None, timing, val_rows))
            self._report()
            raise RunError(
                "run",
                f"no trial came to an end; {board[0].trial}: {board[0].error}",
                f"see {self._log}",
            )
        checkpoint = checkpoint_path(
            self.run.trial_folder(board[0].trial) / "checkpoints", best["epoch"]
        )
        scored = self._score(board[0], best, checkpoint)
        write_predictions(self.run.folder / PREDICTIONS, scored.judged)
        repeats = list(self.repeats.values())
        confirmed = confirmation(board[0], repeats, self.run.metric, self.job.seed)
        card = card_of(self.run, self.manifest, self.sources["test"], scored)
        readme = readme_of(self.run, self.manifest, self.sources, board, confirmed, card, scored)
        deliver(self.run.folder / "model", checkpoint, card, readme)
        for record in (*board[1:], *repeats):  # only the delivered trial is worth the disk
            remove_folder(self.run.trial_folder(record.trial) / "checkpoints")
        timing = timing_of([*board, *repeats], self.begun, self.first_trial, self.last_trial)
        results = results_of_run(self.run, board, scored, confirmed, timing, val_rows)
        self.run.save(timing=timing)
        self.run.save_results(results)
        self._report()
        return results

    def _report(self) -> None:
        """Write the report, which no run fails for: `raysft report` writes it again."""
        from raysft.results.report import (
            write_report,
        )  # charts and templates, which nothing else needs

        try:
            write_report(self.run.folder)
        except RaysftError as error:
            self.listener.note(f"no report: {error}")

    def _board(self) -> list[TrialRecord]:
        return leaderboard(list(self.records.values()), self.run.metric)

    def _score(self, record: TrialRecord, best: dict[str, Any], checkpoint: StoragePath) -> Scored:
        trained = self.make_task(self.names.index(record.trial), record.config)
        ray.get(
            self.queue.put.remote(
                replace(trained, kind="score", trial=SCORE, folder=str(checkpoint), of_search=False)
            )
        )
        while True:
            self._check_slots()
            for event in self._take_in(POLL_SECONDS):
                if event.trial == SCORE and event.kind == "scored":
                    scores = {
                        f"test_{name}": value for name, value in event.payload["scores"].items()
                    }
                    return Scored(
                        record,
                        best,
                        trained,
                        scores,
                        event.payload["preparation"],
                        event.payload["judged"],
                    )
                if event.trial == SCORE and event.kind == "failed":
                    raise RunError("test score", event.payload["error"], f"see {self._log}")

    def close(self, wait: bool) -> None:
        """Send the teams home and end the search; `wait` until both have gone."""
        self.queue.close.remote()
        for thread in [*self.slots, self.searching] if wait else []:
            thread.join(WIND_DOWN_SECONDS)


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else describe_error(error, -1)
