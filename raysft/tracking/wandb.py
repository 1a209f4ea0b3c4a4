"""Weights & Biases: each trial a run, all of them in the group that bears the name of raysft's
run.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from raysft.job import Job
from raysft.records.documents import BestDocument
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath, put_file
from raysft.tracking.artifacts import delivered_files
from raysft.tracking.tracker import LoggedTrial, RunEnd, TrackerState, TrialUpdate
from raysft.tracking.values import Parameter, all_parameters, epoch_numbers, flatten

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

FOLDER = "wandb"
INTERRUPTED = 130  # exit code of a run that was stopped


class Wandb:
    """Runs of a W&B project; offline they lie in RUN/wandb until `wandb sync` sends them."""

    name = "wandb"

    def __init__(self, job: Job, folder: StoragePath, scratch: Path) -> None:
        self.job = job
        self.folder = folder
        # W&B writes to a disk; what it writes offline is copied to an object store.
        self.local = folder if isinstance(folder, Path) else scratch
        self.mode = job.tracking.wandb_mode or os.environ.get("WANDB_MODE", "online")
        self.state: TrackerState = {"trials": {}}
        self._runs: dict[str, Run] = {}
        self._put: dict[Path, int] = {}
        self._module: ModuleType | None = None

    def open(self) -> None:
        """Import the library."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._module = wandb

    @property
    def _wandb(self) -> ModuleType:
        assert self._module is not None
        return self._module

    def trial(self, update: TrialUpdate) -> None:
        """Log the epochs that are new, and the end."""
        record = update.record
        logged = self.state["trials"].get(record.trial)
        if logged is None:
            logged = {"run": self._id(record.trial), "epochs": 0, "ended": False}
            self.state["trials"][record.trial] = logged
        run = self._runs.get(record.trial) or self._begin(record, logged)
        for epoch in record.history:
            if epoch["epoch"] > logged["epochs"]:
                run.log(epoch_numbers(epoch), step=epoch["epoch"])
                logged["epochs"] = epoch["epoch"]
        if not record.ended:
            return
        outcome = {"status": record.status}
        if record.error:
            outcome["error"] = record.error
        run.summary.update(outcome)
        self._end(record.trial, 0 if record.status in ("finished", "stopped") else 1)
        logged["ended"] = True

    def close(self, end: RunEnd) -> None:
        """Log the results, and close the runs that are still open."""
        code = INTERRUPTED if end.ending == "killed" else 1
        for trial in list(self._runs):
            self._end(trial, code)
        if end.results is not None and end.results["best"] is not None:
            self._deliver(end.results["best"])
        self._copy()
        # its helper process ends here: the process of a run may end without a farewell
        self._wandb.teardown()

    # --- runs -----------------------------------------------------------------------------------

    def _id(self, trial: str) -> str:
        """A name that the project has not seen, and that can be recognised."""
        # Two storages may have runs of the same name in one project.
        unique = uuid.uuid4().hex[:8]
        name = f"{self.folder.name}-{trial}-{unique}"
        return name[-128:]  # the longest that W&B takes

    def _begin(self, record: TrialRecord, logged: LoggedTrial) -> Run:
        config = all_parameters(self.job, record) | {
            "run": self.folder.name,
            "trial": record.trial,
            "seed": self.job.seed,
        }
        run = self._start(logged["run"], record.trial, "trial", config)
        # A run that is resumed online knows what it has: more than tracking.json where the last
        # part of the run died.
        logged["epochs"] = max(logged["epochs"], run.step - 1)
        self._runs[record.trial] = run
        return run

    def _start(self, number: str, name: str, kind: str, config: Mapping[str, Parameter]) -> Run:
        quiet = self._wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            stop_fn=_nothing,
        )
        run: Run = self._wandb.init(
            project=self.job.tracking.wandb,
            group=self.folder.name,
            id=number,
            name=f"{self.folder.name} {name}",
            job_type=kind,
            config=dict(config),
            dir=str(self.local),
            reinit="create_new",
            settings=quiet,
            mode=self.mode,  # what the environment says, for W&B to judge
            resume="allow" if self.mode == "online" else None,
        )
        return run

    def _end(self, trial: str, code: int) -> None:
        run = self._runs.pop(trial)
        run.finish(exit_code=code)
        self._copy()

    def _deliver(self, best: BestDocument) -> None:
        """Scores, model and report of a run, as a run of their own beside its trials."""
        logged = self.state.setdefault("result", {"run": self._id("result")})
        run = self._start(logged["run"], "result", "result", flatten(self.job.model_dump()))
        scores = {key: value for key, value in best.items() if isinstance(value, float)}
        run.summary.update({"best_trial": best["trial"], **scores})
        with delivered_files(self.folder) as (model, report):
            # An artifact has versions of its own, so the model is found without its run.
            artifact = self._wandb.Artifact(f"{self.folder.name}-model", type="model")
            artifact.add_dir(str(model))
            if report is not None:
                artifact.add_file(str(report))
            run.log_artifact(artifact)
            run.finish()

    def _copy(self) -> None:
        """What was written offline goes to the run's storage where that is an object store."""
        if isinstance(self.folder, Path) or self.mode != "offline":
            return
        for file in (self.local / FOLDER).rglob("*"):
            if file.is_symlink() or not file.is_file():  # links name the latest run once more
                continue
            size = file.stat().st_size
            if self._put.get(file) != size:
                put_file(file, self.folder / str(file.relative_to(self.local)))
                self._put[file] = size


def _nothing() -> None:
    """What the stop button of W&B does: by itself it would interrupt the whole run."""
