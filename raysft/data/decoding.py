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
from typing import TypedDict

from raysft.data.names import readable

Colour = tuple[int, int, int]
Range = tuple[float, float]

WHITE: Colour = (255, 255, 255)

MAX_STRETCH = 8  # times the range of most images: three of the eight bits that a sample keeps
TYPICAL_SHARE = 0.95  # of the images, which the range of the others is compared with
MIN_TO_COMPARE = 5  # images
MAX_NAMES = 3  # of images in a warning


class StoredDecoding(TypedDict):
    """A `Decoding` as JSON holds it."""

    background: list[int] | None
    ranges: dict[str, list[float]]
    profiles: bool


@dataclass(frozen=True)
class Decoding:
    """How files become 8-bit RGB where they leave it open."""

    background: Colour | None = WHITE
    """The colour behind transparent pixels; None: transparency is ignored, as it once was."""
    ranges: dict[str, Range] = field(default_factory=dict)
    """(black, white) for each kind of sample of more than 8 bits (uint16, ...) in the data set."""
    profiles: bool = True
    """Whether colours are converted from the image's own profile to sRGB."""

    def document(self) -> StoredDecoding:
        """As JSON holds it."""
        background = None if self.background is None else list(self.background)
        ranges = {kind: list(values) for kind, values in self.ranges.items()}
        return {"background": background, "ranges": ranges, "profiles": self.profiles}


LEGACY_DECODING = Decoding(background=None, profiles=False)


def parse_decoding(stored: object) -> Decoding:
    """What dataset.json or model.json says; raises KeyError, TypeError or ValueError."""
    # Data sets and models of before there was a choice say nothing.
    if stored is None:
        return LEGACY_DECODING
    if not isinstance(stored, Mapping):
        raise TypeError(f"decoding is {stored!r:.80}, not an object")
    profiles = stored["profiles"]
    if not isinstance(profiles, bool):
        raise TypeError(f"profiles is {profiles!r:.80}, not true or false")
    return Decoding(
        _parse_background(stored["background"]), _parse_ranges(stored["ranges"]), profiles
    )


def _parse_background(stored: object) -> Colour | None:
    if stored is None:
        return None
    parts = stored if isinstance(stored, list) else []
    # Not `isinstance(part, int)`, by which true is an integer.
    valid = all(type(part) is int and 0 <= part <= 255 for part in parts)
    if valid and len(parts) == 3:
        return parts[0], parts[1], parts[2]
    raise ValueError(f"background is {stored!r:.80}, not three integers from 0 to 255")


def _parse_ranges(stored: object) -> dict[str, Range]:
    ranges = {}
    if isinstance(stored, dict):
        for kind, values in stored.items():
            if not _is_range(values):
                break
            ranges[kind] = (float(values[0]), float(values[1]))
        else:
            return ranges
    raise ValueError(
        f"ranges is {stored!r:.80}, not a black and a greater white for each kind of sample"
    )


def is_number(value: object) -> bool:
    """Whether something of a JSON file is a finite number."""
    # To Python true is a number, and JSON as Python reads it may hold NaN and Infinity.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < math.inf


def _is_range(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    black, white = value
    return is_number(black) and is_number(white) and black < white


@dataclass(frozen=True)
class ValueSpan:
    """The values of one kind of sample in one image or in several."""

    kind: str
    low: float
    high: float
    declared: bool = False
    """Whether the files themselves say so, in tags that not only repeat the bits of a sample."""
    file: str = ""


def choose_ranges(spans: Iterable[ValueSpan]) -> dict[str, Range]:
    """The range of each kind of sample in a data set, from those of its images."""
    ranges = {}
    for kind, found in sorted(_by_kind(spans).items()):
        ranges[kind] = _choose_range(kind, found)
    return ranges


def _choose_range(kind: str, spans: list[ValueSpan]) -> Range:
    low = min(span.low for span in spans)
    high = max(span.high for span in spans)
    if not all(span.declared for span in spans):
        if kind == "uint16":
            # Of a camera or scanner with so many bits: 4095 is white where all values are below it.
            bits = max(1, int(high).bit_length())
            return 0.0, float(2**bits - 1)
        if kind.startswith("float") and low >= 0 and 0.5 < high <= 1:
            # Scaled by whoever wrote them, though no image need be wholly white.
            return 0.0, 1.0
    # A range has a width, also where all images are of one value.
    return (low, high) if high > low else (low, low + 1)


def warn_of_outliers(spans: Iterable[ValueSpan]) -> list[str]:
    """A line for each kind of sample whose range a few images make too wide for the others."""
    lines = []
    for kind, found in sorted(_by_kind(spans).items()):
        line = _warn_of_kind(kind, found)
        if line is not None:
            lines.append(line)
    return lines


def _by_kind(spans: Iterable[ValueSpan]) -> dict[str, list[ValueSpan]]:
    found: dict[str, list[ValueSpan]] = {}
    for span in spans:
        found.setdefault(span.kind, []).append(span)
    return found


def _warn_of_kind(kind: str, spans: list[ValueSpan]) -> str | None:
    # Of a handful, none can be said to be unlike the others.
    if len(spans) < MIN_TO_COMPARE:
        return None
    lows = sorted((span.low for span in spans), reverse=True)
    highs = sorted(span.high for span in spans)
    most = int(TYPICAL_SHARE * (len(spans) - 1))  # all but at least one
    low = lows[most]
    high = highs[most]
    width = high - low
    if highs[-1] - lows[-1] <= MAX_STRETCH * width:
        return None
    outliers = []
    for span in spans:
        if span.high > high + width or span.low < low - width:
            outliers.append(readable(span.file))
    named = ", ".join(outliers[:MAX_NAMES])
    if len(outliers) > MAX_NAMES:
        named += f" and {len(outliers) - MAX_NAMES:,} more"
    return (
        f"{kind} samples reach from {lows[-1]:.10g} to {highs[-1]:.10g} because of "
        f"{len(outliers):,} of {len(spans):,} images ({named}), most others from {low:.10g} to "
        f"{high:.10g}, which leaves these few levels: repair or remove those images, or state "
        "black and white in the tags of TIFF files"
    )


def find_conflict(stored: Decoding, wanted: Decoding) -> str | None:
    """Why pixels that were stored one way differ from those of another; None where they may not."""
    for kind, there in stored.ranges.items():
        # What `Samples` takes where a model knows of no range.
        default = (0.0, 65535.0) if kind == "uint16" else None
        here = wanted.ranges.get(kind, default)
        if here != there:
            of_model = "none" if here is None else _format_range(here)
            return f"{kind} samples from {_format_range(there)}, those of the model {of_model}"
    return None


def describe_ranges(decoding: Decoding) -> list[str]:
    """The ranges in words, a line a kind of sample."""
    lines = []
    for kind, (low, high) in decoding.ranges.items():
        lines.append(f"{kind} samples: {low:.10g} is black, {high:.10g} is white")
    return lines


def _format_range(values: Range) -> str:
    low, high = values
    return f"{low:.10g} to {high:.10g}"


def hex_colour(colour: Colour) -> str:
    """A colour as #rrggbb."""
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"
