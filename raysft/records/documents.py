"""The JSON documents of a run directory as types: run, trial, results and progress.json.

Their keys are a stored format. A key that an older raysft did not write is NotRequired, and whoever
reads it says what its absence means.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from typing_extensions import NotRequired

from raysft.data.decoding import StoredDecoding
from raysft.job.values import Config

JOB, INFO, TRIAL, RESULTS = "job.yaml", "run.json", "trial.json", "results.json"
PROGRESS = "progress.json"  # where a run stood a moment ago, for those who watch it
CLOCK = "%Y-%m-%dT%H:%M:%S%z"  # of times in run.json


class ValidationMetrics(TypedDict):
    """The metrics of an epoch on the validation split."""

    val_loss: float
    val_accuracy: float
    val_top5_accuracy: NotRequired[float]
    """Of more than five classes."""
    val_macro_f1: NotRequired[float]
    val_balanced_accuracy: NotRequired[float]
    val_calibration_error: NotRequired[float]


MORE_METRICS: tuple[
    Literal["val_top5_accuracy", "val_macro_f1", "val_balanced_accuracy", "val_calibration_error"],
    ...,
] = ("val_top5_accuracy", "val_macro_f1", "val_balanced_accuracy", "val_calibration_error")


class EpochMetrics(ValidationMetrics):
    """One epoch of a trial, in the `history` of trial.json."""

    epoch: int
    """1 for the first."""
    train_loss: float
    train_accuracy: float
    learning_rate: float
    """Of the last step."""
    seconds: float
    """Of the whole epoch, validation included."""
    train_seconds: float
    data_wait_seconds: float
    """Of the training time, what was spent waiting for data."""
    images: int
    workers: int


class HeldOutScores(TypedDict, total=False):
    """The metrics of the delivered model on the test split."""

    test_loss: float
    test_accuracy: float
    test_top5_accuracy: float
    test_macro_f1: float
    test_balanced_accuracy: float
    test_calibration_error: float


class BestEpochMetrics(TypedDict):
    """The validation metrics of a trial's best epoch; None for a trial that has no epoch."""

    val_loss: float | None
    val_accuracy: float | None
    val_top5_accuracy: NotRequired[float | None]
    val_macro_f1: NotRequired[float | None]
    val_balanced_accuracy: NotRequired[float | None]
    val_calibration_error: NotRequired[float | None]


class Takeover(TypedDict):
    """A trial of a population went on from another one's weights, with new values."""

    trial: str
    """The other one."""
    epoch: int
    """The last of the other one's epochs that went into the weights."""
    left: int
    """The last of its own epochs, whose weights were given up."""
    was: Config
    """Its configuration until then."""
    config: Config
    """And from then on."""


class TrialRow(BestEpochMetrics):
    """A trial in results.json: how it ended, and how good it was at its best."""

    trial: str
    status: str
    config: Config
    epochs: int
    seconds: float
    host: str | None
    error: str | None
    came_from: NotRequired[list[Takeover]]
    """Of a trial of a population, in the order of time; its history is then that of its weights."""


class TrialDocument(TrialRow):
    """A trial.json."""

    history: list[EpochMetrics]
    trace: NotRequired[str | None]
    """The traceback of a failure; `raysft status` leaves it out."""


class OwnerDocument(TypedDict):
    """The process that a run belongs to, as `raysft.records.owner.Owner` knows it."""

    host: str
    boot: str | None
    namespace: str | None
    pid: int
    began: float


class DataIdentity(TypedDict):
    """What of a data set must be the same when a run is resumed."""

    fingerprint: str
    classes: list[str]
    stored: dict[str, int]
    """Rows of each split of the data set."""
    decoding: NotRequired[StoredDecoding]


class DataDocument(DataIdentity):
    """The data of a run, in run.json."""

    path: str
    rows: dict[str, int]
    """Rows that the run uses of train, val and test."""
    read: str
    """kept or streamed."""


class LoadedWeights(TypedDict):
    """What of a network came from its pretrained weights, in run.json."""

    name: str
    weights: str
    loaded: int
    """Tensors."""
    new: list[str]
    """Tensors drawn at random."""
    unfit: list[str]
    """Tensors of the weights that were left out."""
    total: NotRequired[int]
    source: NotRequired[str]
    mean: NotRequired[list[float]]
    """Of each channel, as the network's images are prepared."""
    std: NotRequired[list[float]]
    image_size: NotRequired[int | None]
    interpolation: NotRequired[str]


class Timing(TypedDict):
    """Where the time of a run went."""

    total_s: float
    startup_s: float
    train_s: float
    images_per_s: float | None
    """Over all teams; None where nothing was trained."""
    data_wait_fraction: float | None


class RunFacts(TypedDict):
    """What run.json says, but for the number of trials."""

    run: str
    status: str
    started: str
    ended: NotRequired[str | None]
    versions: NotRequired[dict[str, str]]
    git: NotRequired[str | None]
    metric: NotRequired[str]
    host: NotRequired[str]
    owner: NotRequired[OwnerDocument]
    pid: NotRequired[int]
    """Of the process, in files of an older raysft, which have no owner."""
    folder: NotRequired[str]
    cwd: NotRequired[str]
    job: NotRequired[str]
    """SHA-256 of job.yaml."""
    weights_sha256: NotRequired[str | None]
    resumed: NotRequired[list[str]]
    places: NotRequired[dict[str, str]]
    """Where files of the job are by now, by their keys in the job."""
    data: NotRequired[DataDocument]
    weights: NotRequired[list[LoadedWeights]]
    timing: NotRequired[Timing]


class RunDocument(RunFacts):
    """A run.json."""

    trials: NotRequired[int]


class RunChanges(TypedDict, total=False):
    """What a run writes into its run.json as it goes on."""

    status: str
    trials: int
    job: str
    weights_sha256: str | None
    data: DataDocument
    weights: list[LoadedWeights]
    timing: Timing


class EpochsProgress(TypedDict):
    """Epochs of a run: done and in all, and the most that a trial has."""

    done: float
    total: float
    each: int


class TeamProgress(TypedDict):
    """What one team does at the moment."""

    slot: int
    team: int
    doing: str
    trial: str | None
    step: int | None
    steps: int | None
    images_per_s: float | None
    data_wait: float | None
    gpu: float | None


class ProgressDocument(TypedDict):
    """A progress.json."""

    at: float
    """Seconds of the epoch."""
    epochs: EpochsProgress
    left_s: float | None
    may_end_early: bool
    inside: dict[str, float]
    """The part of its epoch that each trial has done."""
    teams: list[TeamProgress]


class StatusDocument(RunFacts):
    """What `raysft status` shows of a run: its run.json with its trials and its progress."""

    trials: list[TrialDocument]
    progress: ProgressDocument | None


class Confirmation(TypedDict):
    """The metric of the best configuration over several seeds."""

    metric: str
    seeds: list[int]
    values: list[float]
    mean: float
    std: float


class BestDocument(ValidationMetrics, HeldOutScores):
    """The best trial of a run with the scores of its model, in results.json."""

    trial: str
    config: Config
    epoch: int
    model: str
    """The folder of the model."""
    module: NotRequired[str | None]
    """The module of somebody's own that the network is made by."""
    confirmed: NotRequired[Confirmation]


class ResultsDocument(TypedDict):
    """A results.json."""

    run: str
    status: str
    metric: str
    mode: Literal["min", "max"]
    best: BestDocument | None
    trials: list[TrialRow]
    """The best first."""
    doubts: NotRequired[list[str]]
    timing: Timing
