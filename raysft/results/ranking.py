"""The most likely classes of an image, or why there are none, as a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from raysft.data.names import as_utf8
from raysft.errors import DataError

TOP = 3

Ranking = tuple[tuple[str, float], ...]  # (class, probability), best first


# `class` is a keyword of Python, so that these two cannot be written as classes.
ClassProbability = TypedDict("ClassProbability", {"class": str, "probability": float})
RankingDocument = TypedDict(
    "RankingDocument", {"class": str, "probability": float, "top": list[ClassProbability]}
)


class PredictionDocument(RankingDocument):
    """A prediction as `raysft predict --json` prints it."""

    image: str


class FailureDocument(TypedDict):
    """An image without a prediction, as `raysft predict --json` prints it."""

    image: str
    error: str


@dataclass(frozen=True)
class Prediction:
    """One image's most likely classes, best first."""

    image: str
    classes: Ranking
    notes: tuple[str, ...] = ()
    """How its pixels were special: keys of `raysft.data.images.QUIRKS`."""

    def json(self) -> PredictionDocument:
        """As a document."""
        # A file's name may be bytes that no text holds; JSON must be UTF-8 all the same.
        return {"image": as_utf8(self.image), **ranking_json(self.classes)}


@dataclass(frozen=True)
class Failed:
    """An image that could not be predicted, and why."""

    image: str
    error: DataError

    def json(self) -> FailureDocument:
        """As a document."""
        return {"image": as_utf8(self.image), "error": self.error.reason}


def ranking_json(ranking: Ranking) -> RankingDocument:
    """The best class, and all that were asked for."""
    best, probability = ranking[0]
    top: list[ClassProbability] = []
    for name, of_class in ranking:
        top.append({"class": name, "probability": of_class})
    return {"class": best, "probability": probability, "top": top}
