"""What an image file alone does not say about its pixels, in plain values: the same wherever a
model's images are read.

Eight bits a sample say themselves what is black and what is white. Floats, and integers of more
bits, do not: 4095 is white to a camera of 12 bits and almost black in 16. What is black and white
is one range for the whole data set, found when it is imported; a range for each image would make a
dark image and a bright one the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from raysft.data.names import readable

Colour = tuple[int, int, int]
Range = tuple[float, float]

WHITE: Colour = (255, 255, 255)

MAX_STRETCH = 8  # times the range of most images: three of the eight bits that a sample keeps
TYPICAL_SHARE = 0.95
MIN_TO_COMPARE = 5  # images
MAX_NAMES = 3


class StoredDecoding(TypedDict):
    """A `Decoding` as JSON holds it."""

    background: list[int] | None
    ranges: dict[str, list[float]]
    profiles: bool


@dataclass(frozen=True)
class Decoding:
    """How files become 8-bit RGB where they leave it open."""

    background: Colour | None = WHITE
    """The colour behind transparent pixels; None: transparency is ignored, as in data sets and
    models of before.
    """
    ranges: dict[str, Range] = field(default_factory=dict)
    """(black, white) for each kind of sample of more than 8 bits (uint16, float32, ...) that the
    data set holds.
    """
    profiles: bool = True
    """Whether colours are converted from the image's own profile to sRGB."""

    def document(self) -> StoredDecoding:
        """As JSON holds it."""
        return {
            "background": None if self.background is None else list(self.background),
            "ranges": {kind: list(values) for kind, values in self.ranges.items()},
            "profiles": self.profiles,
        }


LEGACY_DECODING = Decoding(background=None, profiles=False)


def parse_decoding(stored: Mapping[str, Any] | None) -> Decoding:
    """What dataset.json or model.json says; one of before says nothing. Raises KeyError, TypeError
    or ValueError.
    """
    if stored is None:
        return LEGACY_DECODING
    ranges, background, profiles = stored["ranges"], stored["background"], stored["profiles"]
    if not isinstance(ranges, dict) or not all(map(_is_range, ranges.values())):
        raise ValueError(
            f"ranges is {ranges!r:.80}, not a black and a greater white for each kind of sample"
        )
    if background is not None and not _is_colour(background):
        raise ValueError(f"background is {background!r:.80}, not three integers from 0 to 255")
    if not isinstance(profiles, bool):
        raise TypeError(f"profiles is {profiles!r:.80}, not true or false")
    return Decoding(
        None if background is None else (background[0], background[1], background[2]),
        {kind: (float(low), float(high)) for kind, (low, high) in ranges.items()},
        profiles,
    )


def is_number(value: Any) -> bool:
    """Whether something of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(is_number, value))
        and value[0] < value[1]
    )


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in value)
    )


@dataclass(frozen=True)
class ValueSpan:
    """The values of one kind of sample in one image or in several."""

    kind: str
    low: float
    high: float
    told: bool = False
    """Whether the files themselves say so, in tags that not only repeat the bits of a sample."""
    file: str = ""


def choose_ranges(spans: Iterable[ValueSpan]) -> dict[str, Range]:
    """The range of each kind of sample in a data set, from those of its images."""
    return {kind: _settled(kind, found) for kind, found in sorted(_by_kind(spans).items())}


def warn_of_outliers(spans: Iterable[ValueSpan]) -> list[str]:
    """A line for each kind of sample whose range a few images make so wide that the others have few
    levels left.
    """
    lines = [_stretched(kind, found) for kind, found in sorted(_by_kind(spans).items())]
    return [line for line in lines if line is not None]


def _by_kind(spans: Iterable[ValueSpan]) -> dict[str, list[ValueSpan]]:
    found: dict[str, list[ValueSpan]] = {}
    for span in spans:
        found.setdefault(span.kind, []).append(span)
    return found


def _stretched(kind: str, spans: list[ValueSpan]) -> str | None:
    if len(spans) < MIN_TO_COMPARE:
        return None
    lows, highs = (
        sorted((span.low for span in spans), reverse=True),
        sorted(span.high for span in spans),
    )
    most = int(TYPICAL_SHARE * (len(spans) - 1))  # all but at least one
    low, high = lows[most], highs[most]
    width = high - low
    if highs[-1] - lows[-1] <= MAX_STRETCH * width:
        return None
    guilty = [
        readable(span.file) for span in spans if span.high > high + width or span.low < low - width
    ]
    named = ", ".join(guilty[:MAX_NAMES]) + (
        f" and {len(guilty) - MAX_NAMES:,} more" if len(guilty) > MAX_NAMES else ""
    )
    return (
        f"{kind} samples reach from {lows[-1]:.10g} to {highs[-1]:.10g} because of "
        f"{len(guilty):,} of "
        f"{len(spans):,} images ({named}), most others from {low:.10g} to {high:.10g}, which "
        "leaves these few "
        "levels: repair or remove those images, or state black and white in the tags of TIFF files"
    )


def _settled(kind: str, spans: list[ValueSpan]) -> Range:
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    if not all(span.told for span in spans):
        if kind == "uint16":  # of a camera or scanner with so many bits
            return 0.0, float(2 ** max(1, int(high).bit_length()) - 1)
        if kind.startswith("float") and low >= 0 and 0.5 < high <= 1:
            return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1)


def find_conflict(stored: Decoding, wanted: Decoding) -> str | None:
    """Why pixels that were stored one way are not those that another way would give; None where
    they may be.
    """
    for kind, there in stored.ranges.items():
        here = wanted.ranges.get(kind, (0.0, 65535.0) if kind == "uint16" else None)
        if here != there:
            told = "none" if here is None else f"{here[0]:.10g} to {here[1]:.10g}"
            return (
                f"{kind} samples from {there[0]:.10g} to {there[1]:.10g}, those of the model {told}"
            )
    return None


def describe_ranges(how: Decoding) -> list[str]:
    """The ranges in words, a line a kind of sample."""
    return [
        f"{kind} samples: {low:.10g} is black, {high:.10g} is white"
        for kind, (low, high) in how.ranges.items()
    ]


def hex_colour(colour: Colour) -> str:
    """A colour as #rrggbb."""
    return "#" + "".join(f"{part:02x}" for part in colour)
