"""What happens to images between decoding and the network, in plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preparation:
    """The same in training, scoring and prediction; `raysft.data.pixels` does it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | None = None
    """Height and width that the network sees; None: as decoded."""
    interpolation: str = "bilinear"
    """How images are enlarged: nearest | bilinear | bicubic"""
