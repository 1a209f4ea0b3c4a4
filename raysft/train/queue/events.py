"""What the queue tells the search and the driver: one record a kind of event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from raysft.data.preparation import Preparation
from raysft.errors import RaysftError
from raysft.job.values import Config
from raysft.records.documents import EpochMetrics, HeldOutScores, LoadedWeights

if TYPE_CHECKING:
    from raysft.records.predictions import Predictions

TrialStatus = Literal["finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True)
class Event:
    """Something happened, `at` seconds of the epoch."""

    kind: ClassVar[str]
    at: float = field(default_factory=time.time, kw_only=True)


# --- to a trial -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialEvent(Event):
    """Something happened to a trial."""

    trial: str


@dataclass(frozen=True)
class TrialProposed(TrialEvent):
    """The search has a configuration for it."""

    kind = "proposed"
    config: Config


@dataclass(frozen=True)
class TrialStarted(TrialEvent):
    """A team trains it from now on, or scores it; `attempt` counts deaths of workers."""

    kind = "started"
    doing: Literal["train", "score"]
    slot: int
    team: int
    attempt: int = 0
    last_seen: str = ""
    """Where each rank of its last team was when it was heard of last."""


@dataclass(frozen=True)
class TrialProgress(TrialEvent):
    """Its team is inside an epoch."""

    kind = "progress"
    step: int
    steps: int
    seconds: float | None = None
    """Since the epoch began."""
    waited: float | None = None
    """Seconds of these in which rank 0 waited for data."""
    gpu: float | None = None
    """Percent of the time that the GPU of rank 0 was busy."""


@dataclass(frozen=True)
class EpochEnded(TrialEvent):
    """It has trained an epoch; `before` are those before it that may not be known."""

    kind = "epoch"
    metrics: EpochMetrics
    last: bool
    before: Sequence[EpochMetrics] = ()


@dataclass(frozen=True)
class BatchHalved(TrialEvent):
    """Memory was short: it goes on with each batch in `accumulate` parts."""

    kind = "halved"
    accumulate: int


@dataclass(frozen=True)
class TrialCopied(TrialEvent):
    """It goes on from another trial's checkpoint with a configuration of its own."""

    kind = "copied"
    source: str
    config: Config
    history: Sequence[EpochMetrics]
    """All epochs that the checkpoint has behind it, whoever trained them."""


@dataclass(frozen=True)
class TrialPaused(TrialEvent):
    """It has left its team, and waits to be resumed or stopped."""

    kind = "paused"


@dataclass(frozen=True)
class TrialEnded(TrialEvent):
    """It is over."""

    kind = "ended"
    status: TrialStatus
    host: str | None = None
    error: str | None = None
    trace: str | None = None


@dataclass(frozen=True)
class CheckpointScored(TrialEvent):
    """A checkpoint has been scored on the test split."""

    kind = "scored"
    scores: HeldOutScores
    preparation: Preparation
    predictions: Predictions
    """Of the test images."""


# --- to a worker, a team or the run ---------------------------------------------------------------


@dataclass(frozen=True)
class SearchFinished(Event):
    """No further trial is begun, and those in training end after their epoch."""

    kind = "search finished"
    reason: str


@dataclass(frozen=True)
class WorkerArrived(Event):
    """A process of a slot's worker group has started."""

    kind = "arrived"
    slot: int
    rank: int


@dataclass(frozen=True)
class WorkerUnable(Event):
    """A process of a slot's worker group cannot import what it needs."""

    kind = "unable"
    slot: int
    host: str
    error: str


@dataclass(frozen=True)
class NetworkBuilt(Event):
    """A worker has made a network with pretrained weights."""

    kind = "built"
    weights: LoadedWeights


@dataclass(frozen=True)
class RunRefused(Event):
    """No trial of this job can be trained."""

    kind = "refused"
    error: RaysftError


@dataclass(frozen=True)
class TeamRestarted(Event):
    """The worker group of a team has been started again."""

    kind = "restarted"
    slot: int
    team: int
