"""Samples of more than 8 bits, signed ones and floats: kept as stored, made 8-bit by a range.

Pillow holds such samples of grey images only, and of others their upper 8 bits; `raysft.data.tiff`
and `raysft.data.png` read the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from raysft.data.colours import Note
from raysft.data.decoding import Range, ValueSpan
from raysft.errors import DataError

MAX_SAMPLES = 4  # a pixel: colours and alpha
# Pillow's limit, which a program may have raised or taken away for 8-bit images.
MAX_PIXELS = 2 * 89_478_485
_RGB16 = 6  # bytes a pixel: what an image of so many pixels may take in memory

SATURATED, WITHOUT_VALUE, DARK = "saturated", "without_value", "dark"

# Of the range of 16 bits: an image that stays below was likely made with 13 bits or fewer.
_DARK = 1 / 8
# Of the samples of an image may be brighter or darker than the range: saturated, not of another
# kind.
_OUTSIDE = 0.01


@dataclass(frozen=True)
class Samples:
    """The pixels of an image as stored: (height, width) of grey or (height, width, 3) of RGB."""

    kind: str
    """uint16, int16, float32, ...: where all bits mean something (uint12), the range is known."""
    values: np.ndarray
    alpha: np.ndarray | None = None
    """(height, width) uint8."""
    declared: Range | None = None
    """The range that the file states."""
    inverted: bool = False
    """Whether low values are bright."""
    missing: float | None = None
    """The value that stands for no value."""

    def span(self) -> ValueSpan:
        """The values of this image; of one without any value, a span of nothing but 0."""
        known = self.values[self._known()]
        low, high = 0.0, 0.0
        if known.size:
            low, high = float(known.min()), float(known.max())
        if self.declared is None:
            return ValueSpan(self.kind, low, high)
        # A file may state less than it holds.
        black, white = self.declared
        return ValueSpan(self.kind, min(low, black), max(high, white), declared=True)

    def _known(self) -> np.ndarray:
        known: np.ndarray = np.isfinite(self.values)
        if self.missing is not None:
            known &= self.values != self.missing
        return known

    def scaled(self, ranges: dict[str, Range], name: str, note: Note) -> np.ndarray:
        """(height, width[, 3]) uint8; notes what has no value or is a little beyond the range.

        Raises DataError where black and white are not known, or many values are beyond.
        """
        low, high = self._choose_range(ranges, name)
        known = self._known()
        values = np.where(known, self.values, low).astype(np.float64)
        beyond = np.count_nonzero((values < low) | (values > high)) / max(1, values.size)
        if beyond > _OUTSIDE:
            raise DataError(
                name,
                f"has {self.kind} samples from {values.min():.6g} to {values.max():.6g}, of which "
                f"{beyond:.0%} are outside of the range that is known, {low:.6g} to {high:.6g}",
                "scale it to that range",
            )
        if beyond:
            note(SATURATED)
        if not known.all():
            note(WITHOUT_VALUE)
        # Only where the range is a guess from the number of bits: nobody has said it.
        guessed = self.declared is None and self.kind not in ranges
        if self.kind == "uint16" and guessed and 0 < values.max() < _DARK * high:
            note(DARK)
        # In float64, in which no value of 32 bits is rounded before it is scaled.
        levels = np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        return 255 - levels if self.inverted else levels

    def _choose_range(self, ranges: dict[str, Range], name: str) -> Range:
        # That of the data set goes before the file's own: all images are to be scaled alike.
        if self.kind in ranges:
            return ranges[self.kind]
        if self.declared is not None:
            return self.declared
        bits = self.kind.removeprefix("uint")
        if bits.isdecimal() and int(bits) <= 16:
            return 0.0, float(2 ** int(bits) - 1)
        raise DataError(
            name,
            f"has {self.kind} samples, and neither the file nor the data that the model was "
            "made with says which values are black and white",
            "convert it to 8 bits a sample, or train on data with such images",
        )


def needs_range(head: bytes) -> bool:
    """Whether a file that begins with `head` (64 bytes) may hold samples of an unstated range."""
    if head.startswith(b"\x89PNG"):
        return is_png16(head)
    # TIFF of either byte order, and the float form of PPM: the first bytes do not say more.
    return head[:2] in (b"II", b"MM", b"Pf")


def is_png16(content: bytes) -> bool:
    """Whether a PNG has 16 bits a sample, which its header says at this place."""
    return content[24:25] == b"\x10"


def check_size(height: int, width: int, samples: int, size: int) -> None:
    """Refuse what would fill the memory once decoded, by its header alone.

    size: bytes of all samples.
    """
    if samples > MAX_SAMPLES:
        raise ValueError(f"{samples} samples a pixel, which are no colours: convert it to RGB")
    pixels = min(MAX_PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))
    if height * width > pixels or size > _RGB16 * pixels:
        raise Image.DecompressionBombError(
            f"{width} × {height} pixels of {samples} samples, {size:,} bytes, are too many"
        )


def scale_alpha(values: np.ndarray) -> np.ndarray:
    """Alpha of any type as uint8."""
    levels = np.rint(values.astype(np.float64) * (255 / full_value(values.dtype)))
    alpha: np.ndarray = levels.clip(0, 255).astype(np.uint8)
    return alpha


def full_value(kind: np.dtype) -> float:
    """What stands for all of a colour in samples of this type."""
    if kind.kind == "f":
        return 1.0
    return float(np.iinfo(kind).max)


def transpose_samples(samples: Samples, turn: Image.Transpose) -> Samples:
    """Samples turned as Pillow would turn the image."""
    height, width = samples.values.shape[:2]
    # Pillow turns an image of the pixels' numbers: what it does need not be written again here.
    numbers = np.arange(height * width, dtype=np.int32).reshape(height, width)
    order = np.asarray(Image.fromarray(numbers).transpose(turn))

    def turn_one(array: np.ndarray) -> np.ndarray:
        pixels = array.reshape(-1, *array.shape[2:])
        return np.take(pixels, order, axis=0)

    alpha = None if samples.alpha is None else turn_one(samples.alpha)
    return replace(samples, values=turn_one(samples.values), alpha=alpha)
