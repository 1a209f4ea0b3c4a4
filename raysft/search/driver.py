"""A run from data to model: slots start while data is read, Tune decides, the best trial is scored and delivered."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysft.data.imports import dataset_of
from raysft.data.ingest import SplitName, SplitSource, decide, read_split, split_sources
from raysft.data.shards import Manifest, read_manifest, verify
from raysft.errors import DataError, RunError, UserError, in_words
from raysft.job import Job
from raysft.job.plan import Node, Outline, Plan, make_plan
from raysft.job.spec import Scheduler
from raysft.results.model import ModelCard, deliver
from raysft.results.run import Run, TrialRecord, leaderboard, versions
from raysft.search.space import configurations, recipe_of
from raysft.search.tuner import search
from raysft.storage import Place, remove
from raysft.train.checkpoint_paths import checkpoint_path
from raysft.train.queue import MAX_ATTEMPTS, Event, Task, TrialQueue
from raysft.train.setup import Setup, weights_file
from raysft.train.slots import SlotThread

POLL_SECONDS = 1.0
WIND_DOWN_SECONDS = 60.0
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


def execute(job: Job, run: Run, nodes: Sequence[Node], listener: Listener, scratch: Path, wait_for_end: bool,
            datasets: Place | None = None) -> dict[str, Any]:
    """Run a job on the Ray this process is connected to; returns what results.json holds.

    `scratch` is a folder that the caller removes when no thread of Ray writes there any more; `datasets` is where
    imported images are kept, the user's cache without it. `wait_for_end` leaves Ray without any worker of the
    run; not needed where this process ends. A run that was reopened goes on where it was. Raises UserError for what a
    person has to correct, RunError when no trial came to an end.
    """
    begun = time.time()
    folder = dataset_of(job.data, listener.progress, datasets)
    manifest = read_manifest(folder)
    if job.data.verify:
        verify(folder, manifest)
    if manifest.skipped:
        listener.note(f"{manifest.skipped} unreadable images were left out of {manifest.source}")
    plan = make_plan(job, _outline(folder, manifest), nodes)
    sources = split_sources(folder, manifest, plan.val_rows, job.data.limit, job.seed, job.model.image_size)
    _note_missing(manifest, sources["val"], listener)
    how, why = decide(sources, job.data.budget_gb, ray.cluster_resources().get("object_store_memory", 0))
    listener.note(f"data {how}: {why}")
    run.save(status="running", trials=plan.trials,
             data={"fingerprint": manifest.fingerprint, "path": str(folder), "classes": len(manifest.classes),
                   "rows": {name: len(source.ids) for name, source in sources.items()}, "read": how})
    conductor = _Conductor(job, run, plan, manifest, listener, str(scratch), begun)
    conductor.start()
    try:
        conductor.hand_out(sources, how)
        conductor.follow()
        return conductor.deliver(sources["test"])
    finally:
        conductor.close(wait_for_end)


def _note_missing(manifest: Manifest, val: SplitSource, listener: Listener) -> None:
    """Say which classes no validation image judges."""
    missing = set(range(len(manifest.classes))) - val.present
    if missing:
        names = ", ".join(manifest.classes[label] for label in sorted(missing)[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        listener.note(f"no validation image of {names}{more}: raise data.val_fraction or data.limit")


def _outline(folder: Place, manifest: Manifest) -> Outline:
    missing = {"train", "test"} - manifest.splits.keys()
    if missing:
        raise DataError(str(folder), f"has no {' and no '.join(sorted(missing))} split", "import it with --test")
    return Outline(manifest.classes, manifest.splits["train"].rows, manifest.splits["test"].rows, str(folder))


class _Conductor:
    """The parts of a run that live at the same time: queue, slots, Tune, and the records of the trials."""

    def __init__(self, job: Job, run: Run, plan: Plan, manifest: Manifest, listener: Listener, scratch: str,
                 begun: float) -> None:
        self.job, self.run, self.plan, self.manifest = job, run, plan, manifest
        self.listener, self.scratch, self.begun = listener, scratch, begun
        self.first_trial: float | None = None
        self.last_trial = begun
        self.seen = 0
        self.inside: dict[str, float] = {}
        configs = configurations(job)
        width = len(str(len(configs) - 1))
        names = [f"t{i:0{width}d}" for i in range(len(configs))]
        self.records = {name: run.known.get(name) or TrialRecord(name, config)
                        for name, config in zip(names, configs, strict=True)}
        self.tasks = [Task("train", trial, str(run.trial_folder(trial)), recipe_of(job, record.config))
                      for trial, record in self.records.items() if not record.ended]
        self.total_epochs = len(configs) * job.train.epochs
        self.tune_error: BaseException | None = None
        self.tune = threading.Thread(target=self._search, name="tune", daemon=True)

    # --- starting ---

    def start(self) -> None:
        """Start queue, slots and search; none of them waits for the data."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue: Any = ray.remote(TrialQueue).options(  # type: ignore[attr-defined]
            num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote()
        self.slots = [SlotThread(i, slot, self.job.resources, self._setup(), self.queue, self.scratch,
                                 restarts=MAX_ATTEMPTS * len(self.tasks))
                      for i, slot in enumerate(self.plan.slots)]
        for thread in (*self.slots, self.tune):
            thread.start()

    def _setup(self) -> Setup:
        mean = tuple(self.job.data.mean or self.manifest.mean)
        std = tuple(self.job.data.std or self.manifest.std)
        weights = weights_file(self.job.model)  # workers have another current folder
        model = self.job.model.model_copy(update={"weights": str(weights)}) if weights else self.job.model
        return Setup(model, len(self.manifest.classes), self.job.seed, mean, std, self.run.metric,
                     self.job.resources, os.getcwd())

    def _search(self) -> None:
        scheduler = self.job.search.scheduler if self.job.search else Scheduler(name="none")
        try:
            if self.tasks:
                search(self.tasks, self.queue, self.plan.teams, self.job.train.epochs, self.run.metric, scheduler,
                       self.scratch)
        except BaseException as error:
            self.tune_error = error

    def hand_out(self, sources: dict[SplitName, SplitSource], how: str) -> None:
        """Read the splits into the object store, or say where they are to be streamed from."""
        if how == "kept":
            self.splits: dict[Any, Any] = {name: ray.put(read_split(source)) for name, source in sources.items()}
        else:
            self.splits = {**sources}
        ray.get(self.queue.set_data.remote(self.splits))

    # --- following ---

    def follow(self) -> None:
        """Take in what happens until the search is over and every trial has ended."""
        over_since = None
        while True:
            self._take_in(POLL_SECONDS)
            self._check_slots()
            if not self.tune.is_alive():
                if self.tune_error is not None:
                    raise RunError("search", f"Ray Tune failed ({_cause(self.tune_error)})", f"see {self._log}")
                if all(r.ended for r in self.records.values()):
                    return
                over_since = over_since or time.monotonic()
                if time.monotonic() - over_since > WIND_DOWN_SECONDS:
                    raise RunError("search", "is over, but a trial does not end", f"see {self._log}")

    @property
    def _log(self) -> str:
        return str(self.run.log)

    def _check_slots(self) -> None:
        """A slot that ended leaves its trials to the others; without any slot the run cannot go on."""
        ended = [slot for slot in self.slots if not slot.is_alive()]
        for slot in ended:
            self._take_in(0)
            self.slots.remove(slot)
            cause = f"({_cause(slot.error)})" if slot.error else "before the trials were done"
            if not self.slots:
                raise RunError(f"slot {slot.number}", f"its worker group ended {cause}", f"see {self._log}")
            self.listener.note(f"slot {slot.number} ended {cause}: its trials go to the other slots")
            ray.get(self.queue.lost.remote(slot.number))

    def _take_in(self, wait_s: float) -> list[Event]:
        events = ray.get(self.queue.events.remote(self.seen, wait_s))
        self.seen += len(events)
        for event in events:
            if event.kind == "refused":
                raise event.payload["error"]
            if event.trial in self.records:
                self._record(self.records[event.trial], event)
        return events

    def _record(self, record: TrialRecord, event: Event) -> None:
        if event.kind == "started":
            self.first_trial = self.first_trial or event.at
            record.status, record.started = "running", record.started or event.at
            if event.payload["attempt"]:
                self.listener.note(f"{record.trial}: a worker died; taken up again from its last checkpoint")
        elif event.kind == "progress":
            self.inside[record.trial] = event.payload["step"] / event.payload["steps"]
        elif event.kind == "epoch":
            known = [m for m in record.history if m["epoch"] < event.payload["epoch"]]
            record.history = [*known, {k: v for k, v in event.payload.items() if k != "last"}]
            self.inside[record.trial] = 0.0
        else:
            record.status = event.kind
            record.error, record.trace = event.payload.get("error"), event.payload.get("trace")
            record.host = event.payload.get("host")
            self.last_trial = event.at
        record.seconds = event.at - record.started if record.started else 0.0
        if event.kind != "progress":
            self.run.save_trial(record)
        self._tell(record, event)

    def _tell(self, record: TrialRecord, event: Event) -> None:
        ended = [r for r in self.records.values() if r.ended]
        running = sum(len(r.history) + self.inside.get(r.trial, 0) for r in self.records.values() if r not in ended)
        self.listener.epochs(running + len(ended) * self.job.train.epochs, self.total_epochs,
                             list(self.records.values()))
        if record in ended:
            self.listener.trial_ended(record, len(ended), len(self.records))

    # --- ending ---

    def deliver(self, test: SplitSource) -> dict[str, Any]:
        """Score the best epoch of the best trial once on the test split and make the model folder of it."""
        board = leaderboard(list(self.records.values()), self.run.metric)
        best = board[0].best(self.run.metric)
        if best is None:
            self.run.save_results(self._results(board, None))
            raise RunError("run", f"no trial came to an end; {board[0].trial}: {board[0].error}", f"see {self._log}")
        checkpoint = checkpoint_path(self.run.trial_folder(board[0].trial) / "checkpoints", best["epoch"])
        score = self._score(checkpoint)
        card = self._card(board[0], best, score, test)
        deliver(self.run.folder / "model", checkpoint, card)
        for record in board[1:]:  # only the delivered trial is worth the disk
            remove(self.run.trial_folder(record.trial) / "checkpoints")
        results = self._results(board, {
            "trial": board[0].trial, "config": board[0].config, "epoch": best["epoch"],
            "val_accuracy": best["val_accuracy"], "test_accuracy": score["test_accuracy"],
            "test_loss": score["test_loss"], "model": str(self.run.folder / "model")})
        self.run.save_results(results)
        return results

    def _score(self, checkpoint: Place) -> dict[str, float]:
        ray.get(self.queue.put.remote(Task("score", SCORE, str(checkpoint))))
        while True:
            self._check_slots()
            for event in self._take_in(POLL_SECONDS):
                if event.trial == SCORE and event.kind == "scored":
                    return event.payload
                if event.trial == SCORE and event.kind == "failed":
                    raise RunError("test score", event.payload["error"], f"see {self._log}")

    def _card(self, record: TrialRecord, best: dict[str, Any], score: dict[str, float],
              test: SplitSource) -> ModelCard:
        setup = self._setup()
        provenance = {"run": self.run.folder.name, "trial": record.trial, "epoch": best["epoch"],
                      "config": record.config, "job": self.job.model_dump(), "versions": versions(),
                      "git": self.run.info["git"], "data": self.manifest.fingerprint}
        scores = {"val_accuracy": best["val_accuracy"], "val_loss": best["val_loss"], **score}
        return ModelCard(self.job.model.name, self.manifest.classes, test.height, test.width, setup.mean, setup.std,
                         scores, provenance)

    def _results(self, board: list[TrialRecord], best: dict[str, Any] | None) -> dict[str, Any]:
        epochs = [epoch for record in board for epoch in record.history]
        busy = sum(e["train_seconds"] for e in epochs)
        first = self.first_trial or self.last_trial
        train_s = self.last_trial - first
        timing = {"total_s": round(time.time() - self.begun, 2), "startup_s": round(first - self.begun, 2),
                  "train_s": round(train_s, 2),
                  "images_per_s": round(sum(e["images"] for e in epochs) / train_s, 1) if train_s else None,
                  "data_wait_fraction": round(sum(e["data_wait_seconds"] for e in epochs) / busy, 4) if busy else None}
        self.run.save(timing=timing)
        return {"run": self.run.folder.name, "status": "done" if best else "failed", "metric": self.run.metric,
                "mode": "min" if self.run.metric.endswith("loss") else "max", "best": best,
                "trials": [record.row(self.run.metric) for record in board], "timing": timing}

    def close(self, wait: bool) -> None:
        """Send the teams home and end the search; `wait` until both have gone."""
        self.queue.close.remote()
        for thread in [*self.slots, self.tune] if wait else []:
            thread.join(WIND_DOWN_SECONDS)


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else in_words(error, -1)
