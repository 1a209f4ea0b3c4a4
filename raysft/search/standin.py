"""What Tune takes for a trial: it hands over what becomes of one that a team trains."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from pydantic import JsonValue
from ray.tune import Trainable

from raysft.search.results import ERROR, STATUS, TRIAL, Result, Suggestion
from raysft.storage import read_json, write_json
from raysft.train.queue.client import QueueClient
from raysft.train.queue.events import EpochEnded, TrialEnded, TrialEvent

CHECKPOINT = "team.json"


class TeamCheckpoint(TypedDict):
    """The checkpoint of a team that a checkpoint of Tune stands for."""

    trial: str
    epoch: int


class StandIn(Trainable):
    """One trial after the other, in a process beside the driver; an epoch is a step.

    The driver hands trials to the teams (`raysft.search.teams`). Here Tune waits for their epochs,
    which is what lets a team train the next one.
    """

    # What Tune hands over after it has made one; Trainable's own __init__ has no place for it.
    queue: QueueClient
    names: Sequence[str]
    trials_copy: bool

    def setup(  # type: ignore[override]
        self, config: Suggestion, queue: QueueClient, names: Sequence[str], trials_copy: bool
    ) -> None:
        """Take the first trial; `names`: of all trials by their numbers."""
        self.queue, self.names, self.trials_copy = queue, names, trials_copy
        self._take(config)

    def reset_config(self, new_config: Suggestion) -> bool:  # type: ignore[override]
        """Take another trial, in the same process."""
        self._take(new_config)
        return True

    def _take(self, config: Suggestion) -> None:
        self.trial = self.names[config["number"]]
        self.reader = uuid.uuid4().hex
        self.last: Result = {}

    def step(self) -> Result:
        """The metrics of the next epoch; of a trial that has ended the last ones, and how it
        ended.
        """
        while True:
            event = self.queue.next_event(self.trial, self.reader)
            result = self._result(event)
            if result is not None:
                return result

    def _result(self, event: TrialEvent) -> Result | None:
        if isinstance(event, EpochEnded):
            metrics = cast(dict[str, JsonValue], dict(event.metrics))
            epoch = event.metrics["epoch"]
            self.last = metrics | {TRIAL: self.trial, "training_iteration": epoch}
            return self.last | {"done": event.last}
        if isinstance(event, TrialEnded):
            ended: Result = {TRIAL: self.trial, STATUS: event.status, ERROR: event.error}
            return self.last | ended | {"done": True}
        return None  # paused: it goes on when its team does

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Name the checkpoint that the team has written after the epoch it reported last."""
        epoch = cast(int, self.last["epoch"])
        if self.trials_copy:
            self.queue.pin(self.trial, epoch)
        write_json(Path(checkpoint_dir) / CHECKPOINT, {"trial": self.trial, "epoch": epoch})

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        """Nothing: the driver has handed the trial to a team with this checkpoint."""
        self.last = {"epoch": read_checkpoint(checkpoint)["epoch"]}


def read_checkpoint(folder: str) -> TeamCheckpoint:
    """What a checkpoint of Tune stands for."""
    stored = read_json(Path(folder) / CHECKPOINT)
    return {"trial": stored["trial"], "epoch": stored["epoch"]}
