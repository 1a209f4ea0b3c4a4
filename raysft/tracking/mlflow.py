"""MLflow: a run of raysft is a parent run, each of its trials a run below it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from raysft.job import Job
from raysft.records.documents import ResultsDocument
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath
from raysft.tracking.artifacts import delivered_files
from raysft.tracking.tracker import LoggedTrial, RunEnd, TrackerState, TrialUpdate
from raysft.tracking.values import Parameter, all_parameters, epoch_numbers, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

SQLITE = "sqlite:///"
PARENT = "mlflow.parentRunId"
METRICS_AT_ONCE = 1000  # what MLflow takes in one request
PARAMETERS_AT_ONCE = 100
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
_RUN_STATUS = {"finished": "done", "killed": "stopped", "failed": "failed"}


class Mlflow:
    """Runs in an MLflow store."""

    name = "mlflow"

    def __init__(self, job: Job, folder: StoragePath, metric: str) -> None:
        self.job = job
        self.folder = folder
        self.metric = metric
        self.state: TrackerState = {"trials": {}, "uri": None, "parent": None}
        self._open: set[str] = set()
        self._client: MlflowClient | None = None

    def open(self) -> None:
        """Reach the store, and begin or reopen the run above those of the trials."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        # A run may be resumed from another folder, where a relative address means another file.
        self.state["uri"] = self.state.get("uri") or _absolute(self.job.tracking.mlflow or "")
        self._client = MlflowClient(tracking_uri=self.state["uri"])
        parent = self.state.get("parent")
        if parent is None:
            self._begin_parent()
        else:
            self.client.update_run(parent, status="RUNNING")

    @property
    def client(self) -> MlflowClient:
        """The connection to the store, once it is open."""
        assert self._client is not None
        return self._client

    def trial(self, update: TrialUpdate) -> None:
        """Log the epochs that are new, and the end."""
        record = update.record
        logged = self.state["trials"].get(record.trial)
        if logged is None:
            logged = self._begin(record)
        elif record.trial not in self._open:
            self._reopen(logged)
        self._open.add(record.trial)
        new = [epoch for epoch in record.history if epoch["epoch"] > logged["epochs"]]
        numbers = {epoch["epoch"]: epoch_numbers(epoch) for epoch in new}
        self._log(logged["run"], numbers, update)
        logged["epochs"] = max([logged["epochs"], *numbers])
        if record.ended:
            self._end(record, logged)

    def close(self, end: RunEnd) -> None:
        """Log the results, and close the runs that are still open."""
        parent = self._parent
        for trial in self._open:
            logged = self.state["trials"][trial]
            self.client.set_terminated(logged["run"], _ENDING[end.ending])
        if end.results is not None:
            self._deliver(parent, end.results)
        self.client.set_tag(parent, "raysft.status", _RUN_STATUS[end.ending])
        self.client.set_terminated(parent, _ENDING[end.ending])

    # --- runs -----------------------------------------------------------------------------------

    def _begin_parent(self) -> None:
        tags = {
            "raysft.run": self.folder.name,
            "raysft.folder": str(self.folder),
            "raysft.metric": self.metric,
        }
        name = self.job.tracking.mlflow_experiment or self.job.name
        experiment = self._experiment(name)
        made = self.client.create_run(experiment, tags=tags, run_name=self.folder.name)
        self.state["experiment"] = experiment
        self.state["parent"] = made.info.run_id
        self._parameters(made.info.run_id, flatten(self.job.model_dump()))

    @property
    def _parent(self) -> str:
        parent = self.state.get("parent")
        assert parent is not None
        return parent

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                artifacts = _artifacts(self.state.get("uri") or "")
                made: str = self.client.create_experiment(name, artifact_location=artifacts)
                return made
            except MlflowException:  # another run has made it at this moment
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        experiment: str = found.experiment_id
        return experiment

    def _begin(self, record: TrialRecord) -> LoggedTrial:
        tags = {
            PARENT: self._parent,
            "raysft.run": self.folder.name,
            "raysft.trial": record.trial,
        }
        began = int(1000 * record.started) if record.started else None
        made = self.client.create_run(self.state["experiment"], began, tags, record.trial)
        logged: LoggedTrial = {"run": made.info.run_id, "epochs": 0, "ended": False}
        self.state["trials"][record.trial] = logged
        self._parameters(made.info.run_id, all_parameters(self.job, record))
        return logged

    def _reopen(self, logged: LoggedTrial) -> None:
        """Go on in the run of a trial that was interrupted, after the last epoch it really has."""
        self.client.update_run(logged["run"], status="RUNNING")
        # The store may have epochs that tracking.json had not been told of when the run died.
        history = self.client.get_metric_history(logged["run"], "train_loss")
        steps = [metric.step for metric in history]
        logged["epochs"] = max([logged["epochs"], *steps])

    def _end(self, record: TrialRecord, logged: LoggedTrial) -> None:
        run = logged["run"]
        self.client.set_tag(run, "raysft.status", record.status)
        if record.error:
            self.client.set_tag(run, "raysft.error", record.error[:LONGEST])
        self.client.set_terminated(run, _STATUS[record.status])
        logged["ended"] = True
        self._open.discard(record.trial)

    def _deliver(self, parent: str, results: ResultsDocument) -> None:
        """Scores, model and report of a run that has them."""
        best = results["best"]
        assert best is not None
        scores = {key: value for key, value in best.items() if isinstance(value, float)}
        self._log(parent, {best["epoch"]: scores}, None)
        # A tag can be searched for, and parameters of a run cannot change once they are logged.
        self.client.set_tag(parent, "raysft.best_trial", best["trial"])
        with delivered_files(self.folder) as (model, report):
            self.client.log_artifacts(parent, str(model), "model")
            if report is not None:
                self.client.log_artifact(parent, str(report))

    # --- requests -------------------------------------------------------------------------------

    def _log(
        self, run: str, epochs: Mapping[int, Mapping[str, float]], update: TrialUpdate | None
    ) -> None:
        from mlflow.entities import Metric

        metrics = []
        for step, values in epochs.items():
            at = time.time() if update is None else update.time_of(step)
            milliseconds = int(1000 * at)
            for key, value in values.items():
                metrics.append(Metric(key, value, milliseconds, step))
        for part in _parts(metrics, METRICS_AT_ONCE):
            self.client.log_batch(run, metrics=part)

    def _parameters(self, run: str, values: Mapping[str, Parameter]) -> None:
        from mlflow.entities import Param

        parameters = []
        for key, value in values.items():
            text = str(value)
            parameters.append(Param(key, text[:LONGEST]))
        for part in _parts(parameters, PARAMETERS_AT_ONCE):
            self.client.log_batch(run, params=part)


def _parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    first = 0
    while first < len(values):
        end = first + size
        yield values[first:end]
        first = end


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
    if not uri.startswith(SQLITE):
        return None
    file = Path(uri.removeprefix(SQLITE))
    return str(file.parent / "mlartifacts")
