"""The most likely classes of an image, as a document."""

from __future__ import annotations

from typing import Any

TOP = 3

Ranking = tuple[tuple[str, float], ...]  # (class, probability), best first


def ranking_json(ranking: Ranking) -> dict[str, Any]:
    """The best class, and all that were asked for."""
    return {"class": ranking[0][0], "probability": ranking[0][1],
            "top": [{"class": name, "probability": share} for name, share in ranking]}
