"""The most likely classes of an image, or why there are none, as a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysft.data.names import as_utf8
from raysft.errors import DataError

TOP = 3

Ranking = tuple[tuple[str, float], ...]  # (class, probability), best first


@dataclass(frozen=True)
class Prediction:
    """One image's most likely classes, best first."""

    image: str
    classes: Ranking
    notes: tuple[str, ...] = ()
    """How its pixels were special: keys of `raysft.data.images.QUIRKS`."""

    def json(self) -> dict[str, Any]:
        """As a document."""
        return {"image": as_utf8(self.image)} | ranking_json(self.classes)


@dataclass(frozen=True)
class Failed:
    """An image that could not be predicted, and why."""

    image: str
    error: DataError

    def json(self) -> dict[str, Any]:
        """As a document."""
        return {"image": as_utf8(self.image), "error": self.error.reason}


def ranking_json(ranking: Ranking) -> dict[str, Any]:
    """The best class, and all that were asked for."""
    return {
        "class": ranking[0][0],
        "probability": ranking[0][1],
        "top": [{"class": name, "probability": share} for name, share in ranking],
    }
