"""A prediction in bulk: what is asked for and what it came to, in plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PredictionRequest:
    """A model, and the folder or data set that it is to predict; paths as a person gave them."""

    model: str
    source: str
    out: str
    split: str | None = None
    """Of a data set; None: all."""
    probabilities: bool = False
    """Whether each row also has the probabilities of all classes."""
    trust_code: bool = False


@dataclass(frozen=True)
class Predicted:
    """What a prediction came to."""

    out: str
    images: int
    errors: int
    images_per_s: float | None
    """Once the processes are up; None where nothing was left to predict."""
    classes: dict[str, int]
    """Images of each class, as predicted."""
    left_out: dict[str, int]
    """Files of the folder that are no images, by kind."""
