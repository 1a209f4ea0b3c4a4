"""Weights & Biases: each trial a run, all of them in the group that bears the name of raysft's
run.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysft.job import Job
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath, put_file
from raysft.tracking.artifacts import delivered
from raysft.tracking.tracker import Close, News
from raysft.tracking.values import flattened, metrics_of, parameters_of

FOLDER = "wandb"
INTERRUPTED = 130  # exit code of a run that was stopped


class Wandb:
    """Runs of a W&B project; offline they lie in RUN/wandb until `wandb sync` sends them."""

    name = "wandb"

    def __init__(self, job: Job, folder: StoragePath, scratch: Path) -> None:
        self.job, self.folder = job, folder
        self.local = folder if isinstance(folder, Path) else scratch
        self.mode = job.tracking.wandb_mode or os.environ.get("WANDB_MODE", "online")
        self.remembers: dict[str, Any] = {"trials": {}}
        self._runs: dict[str, Any] = {}
        self._put: dict[Path, int] = {}

    def open(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb

    def trial(self, news: News) -> None:
        record = news.record
        known = self.remembers["trials"].get(record.trial)
        if known is None:
            known = self.remembers["trials"][record.trial] = {
                "run": self._id(record.trial),
                "epochs": 0,
                "ended": False,
            }
        run = self._runs.get(record.trial) or self._begin(record, known)
        for epoch in record.history:
            if epoch["epoch"] > known["epochs"]:
                run.log(metrics_of(epoch), step=epoch["epoch"])
                known["epochs"] = epoch["epoch"]
        if record.ended:
            run.summary.update(
                {"status": record.status} | ({"error": record.error} if record.error else {})
            )
            self._end(record.trial, 0 if record.status in ("finished", "stopped") else 1)
            known["ended"] = True

    def close(self, close: Close) -> None:
        for trial in list(self._runs):
            self._end(trial, INTERRUPTED if close.ending == "killed" else 1)
        if close.results is not None and close.results["best"] is not None:
            self._deliver(close.results["best"])
        self._copy()
        # its helper process ends here: the process of a run may end without a farewell
        self._wandb.teardown()

    # --- runs -----------------------------------------------------------------------------------

    def _id(self, trial: str) -> str:
        """A name that the project has not seen, and that can be recognised."""
        return f"{self.folder.name}-{trial}-{uuid.uuid4().hex[:8]}"[-128:]

    def _begin(self, record: TrialRecord, known: dict[str, Any]) -> Any:
        config = parameters_of(self.job, record) | {
            "run": self.folder.name,
            "trial": record.trial,
            "seed": self.job.seed,
        }
        run = self._start(known["run"], record.trial, "trial", config)
        known["epochs"] = max(
            known["epochs"], run.step - 1
        )  # a run taken up online knows what it has
        self._runs[record.trial] = run
        return run

    def _start(self, number: str, name: str, kind: str, config: Mapping[str, Any]) -> Any:
        quiet = self._wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            stop_fn=_nothing,
        )
        return self._wandb.init(
            project=self.job.tracking.wandb,
            group=self.folder.name,
            id=number,
            name=f"{self.folder.name} {name}",
            job_type=kind,
            config=dict(config),
            dir=str(self.local),
            reinit="create_new",
            settings=quiet,
            mode=self.mode,  # type: ignore[arg-type]  # what the environment says, for W&B to judge
            resume="allow" if self.mode == "online" else None,
        )

    def _end(self, trial: str, code: int) -> None:
        self._runs.pop(trial).finish(exit_code=code)
        self._copy()

    def _deliver(self, best: Mapping[str, Any]) -> None:
        """Scores, model and report of a run, as a run of their own beside its trials."""
        known = self.remembers.setdefault("result", {"run": self._id("result")})
        run = self._start(known["run"], "result", "result", flattened(self.job.model_dump()))
        run.summary.update(
            {"best_trial": best["trial"]} | {k: v for k, v in best.items() if isinstance(v, float)}
        )
        with delivered(self.folder) as (model, report):
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
            if (
                file.is_file()
                and not file.is_symlink()
                and self._put.get(file) != file.stat().st_size
            ):
                put_file(file, self.folder / str(file.relative_to(self.local)))
                self._put[file] = file.stat().st_size


def _nothing() -> None:
    """What the stop button of W&B does: by itself it would interrupt the whole run."""
