"""Event files for TensorBoard: RUN/tensorboard/TRIAL, so that the curves of all trials lie over
each other.

Written with the writer of the package tensorboard, which people need to look at them anyway:
tensorboardX and torch.utils.tensorboard both import torch, seconds that the process of a run has no
other use for.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from raysft.job import Job
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath, put_file
from raysft.tracking.tracker import Close, News
from raysft.tracking.values import metrics_of, searched_of

FOLDER = "tensorboard"
PUT_SECONDS = 30.0  # from one copy of a growing file to the next, on an object store


class TensorBoard:
    """A folder of event files a trial, with its configuration for the HParams tab."""

    name = "tensorboard"

    def __init__(self, job: Job, folder: StoragePath, scratch: Path) -> None:
        self.job, self.target = job, folder / FOLDER
        self.local = self.target if isinstance(self.target, Path) else scratch / FOLDER
        self.remembers: dict[str, Any] = {"trials": {}}
        self._writers: dict[str, Any] = {}
        self._logged: dict[str, int] = {}
        self._ended: set[str] = set()
        self._sizes: dict[Path, int] = {}
        self._put = 0.0

    def open(self) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._file = event_pb2, summary_pb2, EventFileWriter
        self._hparams, self._plugin, self._api, self._metadata = (
            summary_v2,
            plugin_data_pb2,
            api_pb2,
            metadata,
        )

    def trial(self, news: News) -> None:
        record = news.record
        known = self.remembers["trials"].get(record.trial, {"epochs": 0})
        if record.trial in self._ended:  # and its files are not where they belong yet
            return
        writer = self._writers.get(record.trial) or self._begin(record, known["epochs"])
        for epoch in record.history:
            if epoch["epoch"] > self._logged[record.trial]:
                values = [
                    self._summary.Summary.Value(tag=name, simple_value=value)
                    for name, value in metrics_of(epoch).items()
                ]
                self._add(
                    writer,
                    self._summary.Summary(value=values),
                    epoch["epoch"],
                    news.at(epoch["epoch"]),
                )
                self._logged[record.trial] = epoch["epoch"]
        if record.ended:
            self._end(record)
        else:
            writer.flush()
        self._settle(at_once=record.ended)

    def close(self, close: Close) -> None:
        for writer in (
            self._writers.values()
        ):  # of trials that were interrupted: they may go on in another file
            writer.close()
        self._settle(at_once=True)

    # --- files ----------------------------------------------------------------------------------

    def _begin(self, record: TrialRecord, epochs: int) -> Any:
        """A new event file of a trial that has `epochs` in earlier ones; what they hold beyond that
        is void.
        """
        writer = self._file(str(self.local / record.trial))
        if epochs:
            again = self._event.SessionLog(status=self._event.SessionLog.START)
            writer.add_event(
                self._event.Event(wall_time=time.time(), step=epochs + 1, session_log=again)
            )
        values = {
            key: value if isinstance(value, (bool, int, float)) else str(value)
            for key, value in searched_of(self.job, record).items()
        }
        self._add(
            writer, self._hparams.hparams_pb(values, record.trial, record.started), 0, time.time()
        )
        self._writers[record.trial], self._logged[record.trial] = writer, epochs
        return writer

    def _end(self, record: TrialRecord) -> None:
        """Say in its file how a trial ended, and close it."""
        well = record.status in ("finished", "stopped")
        ended = self._plugin.SessionEndInfo(
            end_time_secs=time.time(),
            status=self._api.Status.Value("STATUS_SUCCESS" if well else "STATUS_FAILURE"),
        )
        about = self._metadata.create_summary_metadata(
            self._plugin.HParamsPluginData(session_end_info=ended)
        )
        value = self._summary.Summary.Value(
            tag=self._metadata.SESSION_END_INFO_TAG,
            metadata=about,
            tensor=self._metadata.NULL_TENSOR,
        )
        writer = self._writers.pop(record.trial)
        self._add(writer, self._summary.Summary(value=[value]), 0, time.time())
        writer.close()
        self._ended.add(record.trial)

    def _add(self, writer: Any, summary: Any, step: int, at: float) -> None:
        writer.add_event(self._event.Event(wall_time=at, step=step, summary=summary))

    def _settle(self, at_once: bool) -> None:
        """Remember as logged what is where the run is: at once on a disk, once it is copied to an
        object store.
        """
        if not isinstance(self.target, Path):
            if not at_once and time.monotonic() - self._put < PUT_SECONDS:
                return
            self._copy()
        for trial, epochs in self._logged.items():
            self.remembers["trials"][trial] = {"epochs": epochs, "ended": trial in self._ended}

    def _copy(self) -> None:
        self._put = time.monotonic()
        files = {file: file.stat().st_size for file in self.local.rglob("*") if file.is_file()}
        for file, size in files.items():
            if self._sizes.get(file) != size:  # event files only grow
                put_file(file, self.target / str(file.relative_to(self.local)))
                self._sizes[file] = size
