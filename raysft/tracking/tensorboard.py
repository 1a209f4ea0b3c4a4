"""Event files for TensorBoard: RUN/tensorboard/TRIAL, so that the curves of all trials lie over
each other.

Written with the writer of the package tensorboard, which people need to look at them anyway:
tensorboardX and torch.utils.tensorboard both import torch, seconds that the process of a run has no
other use for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from raysft.job import Job
from raysft.records.trial import TrialRecord
from raysft.storage import StoragePath, put_file
from raysft.tracking.tracker import RunEnd, TrackerState, TrialUpdate
from raysft.tracking.values import Parameter, epoch_numbers, searched_parameters

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

FOLDER = "tensorboard"
PUT_SECONDS = 30.0  # from one copy of a growing file to the next, on an object store


@dataclass(frozen=True)
class _Modules:
    """What of tensorboard is imported once there is something to log."""

    event: ModuleType
    summary: ModuleType
    writer: ModuleType
    hparams: ModuleType
    plugin: ModuleType
    api: ModuleType
    metadata: ModuleType


class TensorBoard:
    """A folder of event files a trial, with its configuration for the HParams tab."""

    name = "tensorboard"

    def __init__(self, job: Job, folder: StoragePath, scratch: Path) -> None:
        self.job = job
        self.target = folder / FOLDER
        self.local = scratch / FOLDER
        if isinstance(self.target, Path):
            self.local = self.target
        self.state: TrackerState = {"trials": {}}
        self._writers: dict[str, EventFileWriter] = {}
        self._logged: dict[str, int] = {}
        self._ended: set[str] = set()
        self._sizes: dict[Path, int] = {}
        self._put = 0.0
        self._modules: _Modules | None = None

    def open(self) -> None:
        """Import the writer of event files."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
        from tensorboard.summary.writer import event_file_writer

        self._modules = _Modules(
            event_pb2,
            summary_pb2,
            event_file_writer,
            summary_v2,
            plugin_data_pb2,
            api_pb2,
            metadata,
        )

    @property
    def _tensorboard(self) -> _Modules:
        assert self._modules is not None
        return self._modules

    def trial(self, update: TrialUpdate) -> None:
        """Write the epochs that are new, and the end."""
        record = update.record
        if record.trial in self._ended:  # and its files are not where they belong yet
            return
        logged = self.state["trials"].get(record.trial)
        before = 0 if logged is None else logged["epochs"]
        writer = self._writers.get(record.trial) or self._begin(record, before)
        for epoch in record.history:
            number = epoch["epoch"]
            if number > self._logged[record.trial]:
                summary = self._scalars(epoch_numbers(epoch))
                self._add(writer, summary, number, update.time_of(number))
                self._logged[record.trial] = number
        if record.ended:
            self._end(record)
        else:
            writer.flush()
        self._update_state(at_once=record.ended)

    def close(self, end: RunEnd) -> None:
        """Close the files of trials that were interrupted: they may go on in another file."""
        for writer in self._writers.values():
            writer.close()
        self._update_state(at_once=True)

    # --- files ----------------------------------------------------------------------------------

    def _begin(self, record: TrialRecord, epochs: int) -> EventFileWriter:
        """A new event file of a trial that has `epochs` in earlier ones; what they hold beyond that
        is void.
        """
        modules = self._tensorboard
        writer: EventFileWriter = modules.writer.EventFileWriter(str(self.local / record.trial))
        if epochs:
            # TensorBoard drops what earlier files have from this step on.
            event = modules.event
            restart = event.SessionLog(status=event.SessionLog.START)
            now = time.time()
            writer.add_event(event.Event(wall_time=now, step=epochs + 1, session_log=restart))
        values: dict[str, Parameter] = searched_parameters(self.job, record)
        configuration = modules.hparams.hparams_pb(values, record.trial, record.started)
        self._add(writer, configuration, 0, time.time())
        self._writers[record.trial] = writer
        self._logged[record.trial] = epochs
        return writer

    def _scalars(self, numbers: dict[str, float]) -> Summary:
        summary = self._tensorboard.summary.Summary
        values = []
        for name, number in numbers.items():
            values.append(summary.Value(tag=name, simple_value=number))
        scalars: Summary = summary(value=values)
        return scalars

    def _end(self, record: TrialRecord) -> None:
        """Say in its file how a trial ended, and close it."""
        modules = self._tensorboard
        succeeded = record.status in ("finished", "stopped")
        status = modules.api.Status.Value("STATUS_SUCCESS" if succeeded else "STATUS_FAILURE")
        ended = modules.plugin.SessionEndInfo(end_time_secs=time.time(), status=status)
        data = modules.plugin.HParamsPluginData(session_end_info=ended)
        summary = modules.summary.Summary
        # The HParams tab reads the end from the metadata of a tensor without values.
        value = summary.Value(
            tag=modules.metadata.SESSION_END_INFO_TAG,
            metadata=modules.metadata.create_summary_metadata(data),
            tensor=modules.metadata.NULL_TENSOR,
        )
        writer = self._writers.pop(record.trial)
        self._add(writer, summary(value=[value]), 0, time.time())
        writer.close()
        self._ended.add(record.trial)

    def _add(self, writer: EventFileWriter, summary: Summary, step: int, at: float) -> None:
        event = self._tensorboard.event.Event(wall_time=at, step=step, summary=summary)
        writer.add_event(event)

    def _update_state(self, at_once: bool) -> None:
        """Count as logged what is where the run is: on a disk at once, on an object store once it
        is copied there.
        """
        if not isinstance(self.target, Path):
            if not at_once and time.monotonic() - self._put < PUT_SECONDS:
                return
            self._copy()
        for trial, epochs in self._logged.items():
            self.state["trials"][trial] = {"epochs": epochs, "ended": trial in self._ended}

    def _copy(self) -> None:
        self._put = time.monotonic()  # also when a copy takes long: no two follow at once
        for file in self.local.rglob("*"):
            if not file.is_file():
                continue
            size = file.stat().st_size
            if self._sizes.get(file) == size:  # event files only grow
                continue
            name = str(file.relative_to(self.local))
            put_file(file, self.target / name)
            self._sizes[file] = size
