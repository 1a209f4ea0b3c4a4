"""What a report shows, as types: the document that `raysft report --json` prints."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from raysft.records.documents import (
    BestDocument,
    DataDocument,
    EpochMetrics,
    LoadedWeights,
    Timing,
    TrialRow,
)

# A key of this one is a keyword of Python, so that it cannot be written as a class.
ClassFigures = TypedDict(
    "ClassFigures",
    {"class": str, "precision": float, "recall": float, "f1": float, "support": int},
)
"""Precision, recall and F1 of a class, and its images."""


class ConfusedPair(TypedDict):
    """Two classes, by their numbers, one of which is taken for the other."""

    label: int
    predicted: int
    images: int
    share: float
    """Of the images of the class."""


class Bin(TypedDict):
    """Images whose predicted class has about the same probability; None where there are none."""

    low: float
    high: float
    images: int
    accuracy: float | None
    probability: float | None
    """The mean."""


class Calibration(TypedDict):
    """How far the probabilities of a model can be trusted."""

    bins: list[Bin]
    error: float


class Mistake(TypedDict):
    """A test image that was taken for another class."""

    id: int
    label: int
    predicted: int
    probability: float
    label_probability: float


class AnswerFigures(TypedDict):
    """The figures of the test images; `confusion` is None for more than 30 classes."""

    images: int
    mistakes: int
    accuracy: float
    classes: list[ClassFigures]
    confusion: list[list[int]] | None
    confused: list[ConfusedPair]
    calibration: Calibration
    worst: list[Mistake]


class TrialFigures(TrialRow):
    """A row of the leaderboard with its epochs and what it was trained with."""

    optimizer: str
    lr: float
    model: str
    history: list[EpochMetrics]
    best_epoch: int | None
    trace: str | None


class SearchFigures(TypedDict):
    """How a job searched."""

    algorithm: str
    scheduler: str
    changes_trials: bool
    """Whether it gives a trial the weights of another one."""
    target: float | None
    by_rate: bool
    """Whether its trials differ in their learning rates."""
    ended_early: int


class DataFigures(DataDocument):
    """What is known of the data, of its images too where they can be reached."""

    source: str
    limit: int | None
    skipped: int | None
    counts: dict[str, list[int]] | None
    """Images of each class by split."""
    notes: list[str]
    unreached: str | None
    """Why the images cannot be reached."""


class HostFigures(TypedDict):
    """What the trials that ended on a host took."""

    host: str
    trials: int
    epochs: int
    images: int
    seconds: float
    train_seconds: float
    data_wait_seconds: float


class ProvenanceFigures(TypedDict):
    """Where the model came from."""

    git: str | None
    versions: dict[str, str]
    host: str
    job_sha256: str
    weights: list[LoadedWeights]
    model_sha256: str | None


class Figures(TypedDict):
    """Everything the report of a run shows but the images."""

    run: str
    status: str
    metric: str
    mode: Literal["min", "max"]
    started: str
    resumed: list[str]
    job: dict[str, Any]
    """The whole job as its file could have it."""
    best: BestDocument | None
    doubts: list[str]
    trials: list[TrialFigures]
    search: SearchFigures | None
    test: AnswerFigures | None
    no_test: str | None
    """Why there are no figures of test images."""
    data: DataFigures
    timing: Timing
    hosts: list[HostFigures]
    cost: float | None
    provenance: ProvenanceFigures
