"""What an image file alone does not say about its pixels, in plain values: the same wherever a model's images are read.

Eight bits a sample say themselves what is black and what is white. Floats, and integers of more bits, do not: 4095 is
white to a camera of 12 bits and almost black in 16. What is black and white is one range for the whole data set, found
when it is imported; a range for each image would make a dark image and a bright one the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Colour = tuple[int, int, int]
Range = tuple[float, float]

WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Decoding:
    """How files become 8-bit RGB where they leave it open."""

    background: Colour | None = WHITE
    """The colour behind transparent pixels; None: transparency is ignored, as in data sets and models of before."""
    ranges: dict[str, Range] = field(default_factory=dict)
    """(black, white) for each kind of sample of more than 8 bits (uint16, float32, ...) that the data set holds."""
    profiles: bool = True
    """Whether colours are converted from the image's own profile to sRGB."""


    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"background": None if self.background is None else list(self.background),
                "ranges": {kind: list(values) for kind, values in self.ranges.items()}, "profiles": self.profiles}


BEFORE = Decoding(background=None, profiles=False)


def decoding_of(stored: dict[str, Any] | None) -> Decoding:
    """What dataset.json or model.json says; one of before says nothing. Raises KeyError, TypeError or ValueError."""
    if stored is None:
        return BEFORE
    ranges = {kind: (float(low), float(high)) for kind, (low, high) in stored["ranges"].items()}
    if stored["background"] is None:
        return Decoding(None, ranges, stored["profiles"])
    red, green, blue = stored["background"]
    return Decoding((int(red), int(green), int(blue)), ranges, stored["profiles"])


@dataclass(frozen=True)
class Span:
    """The values of one kind of sample in one image or in several."""

    kind: str
    low: float
    high: float
    told: bool = False
    """Whether the files themselves say so, in tags that not only repeat the bits of a sample."""


def settle(spans: Iterable[Span]) -> dict[str, Range]:
    """The range of each kind of sample in a data set, from those of its images."""
    by_kind: dict[str, list[Span]] = {}
    for span in spans:
        by_kind.setdefault(span.kind, []).append(span)
    return {kind: _settled(kind, found) for kind, found in sorted(by_kind.items())}


def _settled(kind: str, spans: list[Span]) -> Range:
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    if not all(span.told for span in spans):
        if kind == "uint16":  # of a camera or scanner with so many bits
            return 0.0, float(2 ** max(1, int(high).bit_length()) - 1)
        if kind.startswith("float") and low >= 0 and 0.5 < high <= 1:
            return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1)


def conflict(stored: Decoding, wanted: Decoding) -> str | None:
    """Why pixels that were stored one way are not those that another way would give; None where they may be."""
    for kind, there in stored.ranges.items():
        here = wanted.ranges.get(kind, (0.0, 65535.0) if kind == "uint16" else None)
        if here != there:
            told = "none" if here is None else f"{here[0]:.10g} to {here[1]:.10g}"
            return f"{kind} samples from {there[0]:.10g} to {there[1]:.10g}, those of the model {told}"
    return None


def described(how: Decoding) -> list[str]:
    """The ranges in words, a line a kind of sample."""
    return [f"{kind} samples: {low:.10g} is black, {high:.10g} is white" for kind, (low, high) in how.ranges.items()]


def hexadecimal(colour: Colour) -> str:
    """A colour as #rrggbb."""
    return "#" + "".join(f"{part:02x}" for part in colour)
