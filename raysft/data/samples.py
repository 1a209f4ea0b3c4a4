"""Samples of more than 8 bits, signed ones and floats: read as they are stored, made 8-bit by a
range.

Pillow holds such samples of grey images only, and of others their upper 8 bits.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from raysft.data.colours import Note
from raysft.data.decoding import Range, ValueSpan
from raysft.errors import DataError

MAX_SAMPLES = 4  # a pixel: colours and alpha
MAX_PIXELS = (
    2 * 89_478_485
)  # Pillow's limit, which a program may have raised or taken away for 8-bit images
_DEFLATE = (8, 32946)  # values of TIFF's Compression
_DEFLATE_MOST = 1032  # times what is packed may be unpacked
_UNHARMFUL = 1 << 26  # bytes of one strip or tile, whatever the header says
_RGB16 = 6  # bytes a pixel: what an image of so many pixels may take in memory

SATURATED, WITHOUT_VALUE, DARK = "saturated", "without_value", "dark"

_FORMATS = {1: "uint", 2: "int", 3: "float"}  # TIFF's SampleFormat
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _MIN, _MAX = 258, 262, 274, 277, 280, 281
_EXTRA, _FORMAT, _SMIN, _SMAX, _NODATA = 338, 339, 340, 341, 42113
_PREMULTIPLIED = 1  # of ExtraSamples: alpha that the colours were multiplied with
_DARK = (
    1 / 8
)  # of the range of 16 bits: an image that stays below was likely made with 13 bits or fewer
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4  # filters of PNG
_BAND = 512  # lines at once
# of the samples of an image may be brighter or darker than the range: saturated, not of another
# kind
_OUTSIDE = 0.01


@dataclass(frozen=True)
class Samples:
    """The pixels of an image as they are stored: (height, width) of grey or (height, width, 3) of
    RGB.
    """

    kind: str
    """uint16, int16, float32, ...: where all bits mean something (uint12), the range is known."""
    values: np.ndarray
    alpha: np.ndarray | None = None
    """(height, width) uint8."""
    told: Range | None = None
    """The range that the file states."""
    inverted: bool = False
    """Whether low values are bright."""
    missing: float | None = None
    """The value that stands for no value."""

    def span(self) -> ValueSpan:
        """The values of this image; of one without any value, a span of nothing but 0."""
        known = self.values[self._known()]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        if self.told is None:
            return ValueSpan(self.kind, low, high)
        return ValueSpan(self.kind, min(low, self.told[0]), max(high, self.told[1]), told=True)

    def _known(self) -> np.ndarray:
        known = np.isfinite(self.values)
        return known if self.missing is None else known & (self.values != self.missing)

    def scaled(self, ranges: dict[str, Range], name: str, note: Note) -> np.ndarray:
        """(height, width[, 3]) uint8; notes what has no value or is a little beyond the range.

        Raises DataError where black and white are not known, or many values are beyond.
        """
        chosen = self._range(ranges)
        if chosen is None:
            raise DataError(
                name,
                f"has {self.kind} samples, and neither the file nor the data that the model was "
                "made "
                "with says which values are black and white",
                "convert it to 8 bits a sample, or train on data with such images",
            )
        low, high = chosen
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
        if (
            self.kind == "uint16"
            and self.told is None
            and self.kind not in ranges
            and 0 < values.max() < _DARK * high
        ):
            note(DARK)
        levels = np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        return 255 - levels if self.inverted else levels

    def _range(self, ranges: dict[str, Range]) -> Range | None:
        if self.kind in ranges:
            return ranges[self.kind]
        if self.told is not None:
            return self.told
        bits = self.kind.removeprefix("uint")
        return (0.0, float(2 ** int(bits) - 1)) if bits.isdecimal() and int(bits) <= 16 else None


def needs_range(head: bytes) -> bool:
    """Whether a file that begins with `head` (64 bytes) may hold samples whose range it does not
    say.
    """
    if head.startswith(b"\x89PNG"):
        return head[24:25] == b"\x10"
    return head[:2] in (b"II", b"MM", b"Pf")


def read_samples(image: Image.Image, content: bytes) -> Samples | None:
    """The samples of an opened image, upright but by its EXIF data; None where Pillow's 8 bits are
    all there is.
    """
    if image.format == "PNG":
        return _of_png(image, content) if content[24:25] == b"\x10" else None
    if image.format == "PPM" and image.mode in ("I", "F"):
        image.load()
        values = np.asarray(image)  # what a PGM file says is white, is 65535 to Pillow
        return (
            Samples("float32", values)
            if image.mode == "F"
            else Samples("uint16", values, told=(0.0, 65535.0))
        )
    return _of_tiff(image, content) if isinstance(image, TiffImageFile) else None


def _check_size(height: int, width: int, samples: int, size: int) -> None:
    """Refuse what would fill the memory once decoded, by its header alone. size: bytes of all
    samples.
    """
    if samples > MAX_SAMPLES:
        raise ValueError(f"{samples} samples a pixel, which are no colours: convert it to RGB")
    pixels = min(MAX_PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))
    if height * width > pixels or size > _RGB16 * pixels:
        raise Image.DecompressionBombError(
            f"{width} × {height} pixels of {samples} samples, {size:,} bytes, are too many"
        )


def _check_deflated(packed: bytes, size: int) -> None:
    """Refuse a strip or tile that unpacks to much more than the `size` bytes that it shall hold."""
    most = max(2 * size, _UNHARMFUL)
    if len(packed) * _DEFLATE_MOST <= most:
        return
    unpacking, rest, seen = zlib.decompressobj(), packed, 0
    while rest and not unpacking.eof:
        seen += len(unpacking.decompress(rest, 1 << 20))
        rest = unpacking.unconsumed_tail
        if seen > most:
            raise ValueError("more pixels than its header says")


# --- TIFF --------------------------------------------------------------------------------------


def _of_tiff(image: TiffImageFile, content: bytes) -> Samples | None:
    tags = image.tag_v2
    bits, formats = int(max(_all(tags.get(_BITS, (1,))))), set(_all(tags.get(_FORMAT, (1,))))
    kind = _FORMATS.get(int(formats.pop()), "") + str(bits)
    if kind.startswith("uint") and bits <= 8:
        return None
    if tags.get(_SAMPLES, 1) > 1:
        return read_tiff(content)
    told, missing, photometric = (
        _told(tags, kind),
        _missing(tags.get(_NODATA)),
        tags.get(_PHOTOMETRIC),
    )
    image.load()
    values = np.asarray(image)
    if kind in ("uint32", "int8"):  # which Pillow takes for int32 and uint8
        values = values.view(kind)
    return Samples(kind, values, None, told, photometric == 0, missing)


def read_tiff(content: bytes) -> Samples:
    """The samples of a TIFF file that Pillow cannot hold; raises ValueError or OSError."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        itemsize = page.dtype.itemsize if page.dtype is not None else 1
        piece = (
            math.prod(page.chunks) * itemsize
        )  # a strip or tile, which may be larger than the image
        _check_size(
            page.imagelength, page.imagewidth, page.samplesperpixel, max(page.nbytes, piece)
        )
        if page.compression in _DEFLATE:
            for at, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                _check_deflated(content[at : at + size], piece)
        values = _last_axis_samples(page.asarray(), page.axes)
        tags = {tag.code: tag.value for tag in page.tags}
        photometric, orientation = tags.get(_PHOTOMETRIC), int(tags.get(_ORIENTATION, 1))
    kind = _FORMATS.get(int(max(_all(tags.get(_FORMAT, 1)))), "") + str(
        int(max(_all(tags.get(_BITS, 1))))
    )
    colours = {0: 1, 1: 1, 2: 3}.get(int(photometric) if photometric is not None else 1)
    count = values.shape[2]
    if values.dtype.kind not in "uif" or colours is None or count not in (colours, colours + 1):
        raise ValueError(
            f"{count} samples a pixel of type {values.dtype}, which are no colours: convert it "
            "to RGB"
        )
    values = _upright(values, orientation)
    alpha = None
    if count > colours:
        alpha, values = _alpha(values[..., -1]), values[..., :-1]
        if _PREMULTIPLIED in _all(tags.get(_EXTRA, 0)):
            whole = values * (255 / np.maximum(alpha, 1)[..., None].astype(np.float64))
            values = whole.clip(0, _most(values.dtype)).astype(values.dtype)
    grey = values[..., 0] if colours == 1 else values
    return Samples(
        kind, grey, alpha, _told(tags, kind), photometric == 0, _missing(tags.get(_NODATA))
    )


def read_tiff_size(content: bytes) -> tuple[int, int]:
    """(height, width) as shown upright of a TIFF file that Pillow cannot hold; raises ValueError or
    OSError.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        tag = page.tags.get(_ORIENTATION)
        size = page.imagelength, page.imagewidth
        return size[::-1] if tag is not None and int(tag.value) >= 5 else size


def _last_axis_samples(values: np.ndarray, axes: str) -> np.ndarray:
    """(height, width, samples), whatever the order in the file."""
    if not {"Y", "X"} <= set(axes) <= {"Y", "X", "S"}:
        raise ValueError(f"has the axes {axes}, not those of an image")
    full = values if "S" in axes else values[..., None]
    named = axes if "S" in axes else axes + "S"
    return np.moveaxis(full, [named.index(axis) for axis in "YXS"], [0, 1, 2])


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8) if orientation < 5 else orientation in (7, 8)
    left = orientation in (2, 3) if orientation < 5 else orientation in (6, 7)
    return values[:: -1 if down else 1, :: -1 if left else 1]


def _alpha(values: np.ndarray) -> np.ndarray:
    return (
        np.rint(values.astype(np.float64) * (255 / _most(values.dtype)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def _most(kind: np.dtype) -> float:
    """What stands for all of a colour."""
    return 1.0 if kind.kind == "f" else float(np.iinfo(kind).max)


def _told(tags: Mapping[int, Any], kind: str) -> Range | None:
    """The range in a TIFF's tags, unless it is that of the bits of a sample, which writers put
    there unasked.
    """
    for low_tag, high_tag in ((_SMIN, _SMAX), (_MIN, _MAX)):
        if high_tag not in tags or (low_tag not in tags and not kind.startswith("uint")):
            continue
        low, high = min(_all(tags.get(low_tag, 0))), max(_all(tags[high_tag]))
        bits = kind.removeprefix("uint")
        whole = bits.isdecimal() and high >= 2 ** int(bits) - 1
        if high > low and not whole:
            return float(low), float(high)
    return None


def _missing(text: object) -> float | None:
    """GDAL's value for no value."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _all(value: object) -> tuple[float, ...]:
    return tuple(np.ravel(np.asarray(value)).tolist())


# --- PNG ---------------------------------------------------------------------------------------


def _of_png(image: Image.Image, content: bytes) -> Samples:
    """A PNG of 16 bits a sample: grey or RGB, each with transparency or without."""
    key = image.info.get("transparency")
    if image.mode == "I;16":
        image.load()
        values = np.asarray(image)
        alpha = np.where(values == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
        return Samples("uint16", values, alpha)
    values = png_samples(content)
    count = values.shape[2]
    if count in (2, 4):
        alpha, values = _alpha(values[..., -1]), values[..., :-1]
    else:
        alpha = (
            np.where((values == key).all(axis=2), 0, 255).astype(np.uint8)
            if isinstance(key, tuple)
            else None
        )
    return Samples("uint16", values[..., 0] if count == 2 else values, alpha)


def png_samples(content: bytes) -> np.ndarray:
    """(height, width, channels) uint16 of a PNG with 16 bits a sample; raises OSError, ValueError
    or zlib.error.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    if depth != 16 or interlaced:
        raise ValueError("an interlaced PNG of 16 bits a sample; store it without interlacing")
    size = height * (1 + width * channels * 2)
    _check_size(height, width, channels, size)
    lines = np.frombuffer(_inflated(b"".join(_idat(content)), size), np.uint8).reshape(height, -1)
    plain = _unfiltered(lines[:, 0], lines[:, 1:].reshape(height, width, channels * 2))
    return plain.view(">u2").astype(np.uint16)


def _inflated(packed: bytes, size: int) -> bytes:
    """Data of zlib that must hold `size` bytes; of more, at most one is unpacked."""
    unpacking = zlib.decompressobj()
    plain = unpacking.decompress(packed, size + 1)
    if len(plain) > size:
        raise ValueError("more pixels than its header says")
    if len(plain) < size or not unpacking.eof:
        raise OSError("image file is truncated")
    return plain


def _idat(content: bytes) -> list[bytes]:
    """The compressed pixels; checks each piece."""
    pieces, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        name, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        if name == b"IDAT":
            if zlib.crc32(name + data) != int.from_bytes(
                content[at + 8 + size : at + 12 + size], "big"
            ):
                raise OSError("a part has not its checksum")
            pieces.append(data)
        at += 12 + size
        if name == b"IEND":
            return pieces
    raise OSError("image file is truncated")


def _unfiltered(kinds: np.ndarray, filtered: np.ndarray) -> np.ndarray:
    """(height, width, bytes a pixel) uint8: PNG's filters undone. kinds: (height,), the filter of
    each line.
    """
    if kinds.max(initial=0) > _PAETH:
        raise ValueError("a line has no filter of PNG")
    done = np.empty_like(filtered)
    above = np.zeros(filtered.shape[1:], np.uint8)
    for first in range(0, len(kinds), _BAND):
        band = slice(first, first + _BAND)
        undo = _by_line if kinds[band].max() <= _UP else _by_diagonal
        undo(kinds[band], filtered[band], above, done[band])
        above = done[band][-1]
    return done


def _by_line(kinds: np.ndarray, filtered: np.ndarray, above: np.ndarray, done: np.ndarray) -> None:
    """Undo filters that look to one side only, a line at a time; bytes wrap around as they
    shall.
    """
    for kind, line, out in zip(kinds, filtered, done, strict=True):
        if kind == _SUB:
            np.cumsum(line, axis=0, dtype=np.uint8, out=out)
        else:
            np.add(line, above if kind == _UP else 0, out=out)
        above = out


def _by_diagonal(
    kinds: np.ndarray, filtered: np.ndarray, above: np.ndarray, done: np.ndarray
) -> None:
    """Undo any filters: a pixel depends on those left of it and above it, so that a diagonal can be
    had at once.

    Diagonals are the rows of `skewed`, (width + height, height + 1, bytes a pixel): its first
    column is the line above.
    """
    height, width, size = filtered.shape
    skewed = np.zeros((width + height, height + 1, size), np.int16)
    skewed[:width, 0] = above
    for row in range(height):
        skewed[row + 1 : row + 1 + width, row + 1] = filtered[row]
    sub, up, average, paeth = (
        np.where(kinds == kind, 255, 0).astype(np.int16)[:, None]
        for kind in (_SUB, _UP, _AVERAGE, _PAETH)
    )
    for at in range(1, width + height):
        first, last = max(0, at - width), min(height, at)  # the rows that the diagonal crosses
        rows = slice(first, last)
        left, over = skewed[at - 1, 1:][rows], skewed[at - 1, :-1][rows]
        corner = skewed[at - 2, :-1][rows] if at > 1 else np.zeros_like(over)
        guess = left & sub[rows]
        guess |= over & up[rows]
        guess |= ((left + over) >> 1) & average[rows]
        guess |= _paeth(left, over, corner) & paeth[rows]
        pixels = skewed[at, 1:][rows]
        pixels += guess
        pixels &= 255
    for row in range(height):
        done[row] = skewed[row + 1 : row + 1 + width, row + 1]


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Of the three neighbours the one closest to left + above - corner."""
    to_left, to_above = abs(above - corner), abs(left - corner)
    to_corner = abs(left + above - 2 * corner)
    rest = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, rest)


def transpose_samples(samples: Samples, turn: Image.Transpose) -> Samples:
    """Samples turned as Pillow would turn the image."""
    places = Image.fromarray(
        np.arange(samples.values.shape[0] * samples.values.shape[1], dtype=np.int32).reshape(
            samples.values.shape[:2]
        )
    ).transpose(turn)
    order = np.asarray(places)

    def turn_one(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, *array.shape[2:])[order]

    alpha = None if samples.alpha is None else turn_one(samples.alpha)
    return replace(samples, values=turn_one(samples.values), alpha=alpha)
