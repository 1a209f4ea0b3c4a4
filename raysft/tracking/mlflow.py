"""MLflow: a run of raysft is a parent run, each of its trials a run below it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysft.job import Job
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath
from raysft.tracking.artifacts import delivered
from raysft.tracking.tracker import Close, News
from raysft.tracking.values import flattened, metrics_of, parameters_of

SQLITE = "sqlite:///"
PARENT = "mlflow.parentRunId"
METRICS_AT_ONCE, PARAMETERS_AT_ONCE = 1000, 100  # what MLflow takes in one request
LONGEST = 500  # characters of a parameter that every server takes
# Read by MLflow: no telemetry, and a server that is gone is given up within a minute or two instead
# of ten.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
_ENDING = {"finished": "FINISHED", "killed": "KILLED", "failed": "FAILED"}


class Mlflow:
    """Runs in an MLflow store."""

    name = "mlflow"

    def __init__(self, job: Job, folder: StoragePath, metric: str) -> None:
        self.job, self.folder, self.metric = job, folder, metric
        self.remembers: dict[str, Any] = {"uri": None, "parent": None, "trials": {}}
        self._open: set[str] = set()

    def open(self) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self.remembers["uri"] = self.remembers["uri"] or _absolute(self.job.tracking.mlflow or "")
        self.client: Any = MlflowClient(tracking_uri=self.remembers["uri"])
        if self.remembers["parent"] is None:
            self._begin_parent()
        else:
            self.client.update_run(self.remembers["parent"], status="RUNNING")

    def trial(self, news: News) -> None:
        record = news.record
        known = self.remembers["trials"].get(record.trial)
        if known is None:
            known = self._begin(record)
        elif record.trial not in self._open:
            self._take_up(known)
        self._open.add(record.trial)
        fresh = [epoch for epoch in record.history if epoch["epoch"] > known["epochs"]]
        self._log(known["run"], {epoch["epoch"]: metrics_of(epoch) for epoch in fresh}, news)
        known["epochs"] = max([known["epochs"], *(epoch["epoch"] for epoch in fresh)])
        if record.ended:
            self._end(record, known)

    def close(self, close: Close) -> None:
        trials, parent = self.remembers["trials"], self.remembers["parent"]
        for trial in self._open:
            self.client.set_terminated(trials[trial]["run"], _ENDING[close.ending])
        if close.results is not None:
            self._deliver(parent, close.results)
        self.client.set_tag(
            parent,
            "raysft.status",
            {"finished": "done", "killed": "stopped"}.get(close.ending, "failed"),
        )
        self.client.set_terminated(parent, _ENDING[close.ending])

    # --- runs -----------------------------------------------------------------------------------

    def _begin_parent(self) -> None:
        tags = {
            "raysft.run": self.folder.name,
            "raysft.folder": str(self.folder),
            "raysft.metric": self.metric,
        }
        name = self.job.tracking.mlflow_experiment or self.job.name
        self.remembers["experiment"] = self._experiment(name)
        made = self.client.create_run(
            self.remembers["experiment"], tags=tags, run_name=self.folder.name
        )
        self.remembers["parent"] = made.info.run_id
        self._parameters(made.info.run_id, flattened(self.job.model_dump()))

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(
                    name, artifact_location=_artifacts(self.remembers["uri"])
                )
            except MlflowException:  # another run has made it at this moment
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def _begin(self, record: TrialRecord) -> dict[str, Any]:
        tags = {
            PARENT: self.remembers["parent"],
            "raysft.run": self.folder.name,
            "raysft.trial": record.trial,
        }
        began = int(1000 * record.started) if record.started else None
        made = self.client.create_run(self.remembers["experiment"], began, tags, record.trial)
        known = self.remembers["trials"][record.trial] = {
            "run": made.info.run_id,
            "epochs": 0,
            "ended": False,
        }
        self._parameters(made.info.run_id, parameters_of(self.job, record))
        return known

    def _take_up(self, known: dict[str, Any]) -> None:
        """Go on in the run of a trial that was interrupted, after the last epoch that it really
        has.
        """
        self.client.update_run(known["run"], status="RUNNING")
        logged = self.client.get_metric_history(known["run"], "train_loss")
        known["epochs"] = max([known["epochs"], *(metric.step for metric in logged)])

    def _end(self, record: TrialRecord, known: dict[str, Any]) -> None:
        self.client.set_tag(known["run"], "raysft.status", record.status)
        if record.error:
            self.client.set_tag(known["run"], "raysft.error", record.error[:LONGEST])
        self.client.set_terminated(known["run"], _STATUS[record.status])
        known["ended"] = True
        self._open.discard(record.trial)

    def _deliver(self, parent: str, results: Mapping[str, Any]) -> None:
        """Scores, model and report of a run that has them."""
        best = results["best"]
        scores = {key: value for key, value in best.items() if isinstance(value, float)}
        self._log(parent, {best["epoch"]: scores}, None)
        self.client.set_tag(parent, "raysft.best_trial", best["trial"])
        with delivered(self.folder) as (model, report):
            self.client.log_artifacts(parent, str(model), "model")
            if report is not None:
                self.client.log_artifact(parent, str(report))

    # --- requests -------------------------------------------------------------------------------

    def _log(self, run: str, epochs: Mapping[int, Mapping[str, float]], news: News | None) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, int(1000 * (news.at(step) if news else time.time())), step)
            for step, values in epochs.items()
            for key, value in values.items()
        ]
        for part in _parts(metrics, METRICS_AT_ONCE):
            self.client.log_batch(run, metrics=part)

    def _parameters(self, run: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, str(value)[:LONGEST]) for key, value in values.items()]
        for part in _parts(parameters, PARAMETERS_AT_ONCE):
            self.client.log_batch(run, params=part)


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[first : first + size] for first in range(0, len(values), size))


def _absolute(uri: str) -> str:
    """The address with that of a SQLite file made absolute, as a run may be resumed elsewhere; its
    folder is made.
    """
    if not uri.startswith(SQLITE):
        return uri
    file = Path(uri.removeprefix(SQLITE)).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{file}"


def _artifacts(uri: str) -> str | None:
    """Where files of a new experiment go: beside a SQLite file, else where its server keeps
    them.
    """
    return (
        str(Path(uri.removeprefix(SQLITE)).parent / "mlartifacts")
        if uri.startswith(SQLITE)
        else None
    )
