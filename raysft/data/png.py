"""PNG images of 16 bits a sample, of which Pillow keeps 8 where they have colours or alpha."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from raysft.data.samples import Samples, check_size, scale_alpha

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of each type of colours
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4  # filters of a line
_BAND = 512  # lines at once


def read_png(image: Image.Image, content: bytes) -> Samples:
    """A PNG of 16 bits a sample: grey or RGB, each with transparency or without."""
    key = image.info.get("transparency")
    if image.mode == "I;16":
        # Grey without transparency is what Pillow does hold, and reads faster.
        image.load()
        values = np.asarray(image)
        if not isinstance(key, int):
            return Samples("uint16", values)
        return Samples("uint16", values, _alpha_of_key(values == key))
    values = png_samples(content)
    channels = values.shape[2]
    if channels in (2, 4):
        alpha = scale_alpha(values[..., -1])
        colours = values[..., :-1]
        return Samples("uint16", colours[..., 0] if channels == 2 else colours, alpha)
    if isinstance(key, tuple):
        return Samples("uint16", values, _alpha_of_key((values == key).all(axis=2)))
    return Samples("uint16", values)


def _alpha_of_key(transparent: np.ndarray) -> np.ndarray:
    """Of an image in which all pixels of one colour are transparent."""
    return np.where(transparent, 0, 255).astype(np.uint8)


def png_samples(content: bytes) -> np.ndarray:
    """(height, width, channels) uint16; raises OSError, ValueError or zlib.error."""
    # The header is the first piece, behind 8 bytes of signature and 8 of its own size and name.
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    channels = _CHANNELS[colour]
    if depth != 16 or interlaced:
        raise ValueError("an interlaced PNG of 16 bits a sample; store it without interlacing")
    line_bytes = width * channels * 2
    size = height * (1 + line_bytes)
    check_size(height, width, channels, size)
    packed = b"".join(_pixel_pieces(content))
    lines = np.frombuffer(_inflate(packed, size), np.uint8).reshape(height, -1)
    # Each line begins with the number of its filter.
    filtered = lines[:, 1:].reshape(height, width, channels * 2)
    plain = _unfilter(lines[:, 0], filtered)
    return plain.view(">u2").astype(np.uint16)


def _inflate(packed: bytes, size: int) -> bytes:
    """Data of zlib that must hold `size` bytes; of more, at most one is unpacked."""
    unpacking = zlib.decompressobj()
    # A small file can unpack to a thousand times its size, and fill the memory.
    plain = unpacking.decompress(packed, size + 1)
    if len(plain) > size:
        raise ValueError("more pixels than its header says")
    if len(plain) < size or not unpacking.eof:
        raise OSError("image file is truncated")
    return plain


def _pixel_pieces(content: bytes) -> Iterator[bytes]:
    """The compressed pixels, piece by piece, each compared with its checksum."""
    at = 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8]
        data = content[at + 8 : at + 8 + size]
        if name == b"IDAT":
            checksum = int.from_bytes(content[at + 8 + size : at + 12 + size], "big")
            if zlib.crc32(name + data) != checksum:
                raise OSError("a part does not match its checksum")
            yield data
        if name == b"IEND":
            return
        at += 12 + size
    raise OSError("image file is truncated")


def _unfilter(kinds: np.ndarray, filtered: np.ndarray) -> np.ndarray:
    """PNG's filters undone: (height, width, bytes a pixel) uint8.

    kinds: (height,), the filter of each line.
    """
    if kinds.max(initial=0) > _PAETH:
        raise ValueError("a line has no filter of PNG")
    done = np.empty_like(filtered)
    above = np.zeros(filtered.shape[1:], np.uint8)
    # In bands, for diagonals of the whole image would take four times its memory.
    for first in range(0, len(kinds), _BAND):
        band = slice(first, first + _BAND)
        # By lines it is many times as fast, where no pixel needs both of its neighbours.
        undo = _by_line if kinds[band].max() <= _UP else _by_diagonal
        undo(kinds[band], filtered[band], above, done[band])
        above = done[band][-1]
    return done


def _by_line(kinds: np.ndarray, filtered: np.ndarray, above: np.ndarray, done: np.ndarray) -> None:
    """Undo filters that look to one side only, a line at a time."""
    for kind, line, out in zip(kinds, filtered, done, strict=True):
        # Bytes wrap around, as the format wants it.
        if kind == _SUB:
            np.cumsum(line, axis=0, dtype=np.uint8, out=out)
        elif kind == _UP:
            np.add(line, above, out=out)
        else:
            out[...] = line
        above = out


def _by_diagonal(
    kinds: np.ndarray, filtered: np.ndarray, above: np.ndarray, done: np.ndarray
) -> None:
    """Undo any filters, a diagonal at a time.

    A pixel depends on those left of it and above it, so all pixels of a diagonal can be had at
    once, where Python would need a step for each.
    """
    height, width, size = filtered.shape
    # A diagonal of the image is a row of this array, shifted by its line: (width + height,
    # height + 1, bytes a pixel), whose first column is the line above the band.
    skewed = np.zeros((width + height, height + 1, size), np.int16)
    skewed[:width, 0] = above
    for row in range(height):
        skewed[row + 1 : row + 1 + width, row + 1] = filtered[row]
    # Every guess is made for every line and masked, for a diagonal crosses lines of all filters.
    sub, up, average, paeth = (
        np.where(kinds == kind, 255, 0).astype(np.int16)[:, None]
        for kind in (_SUB, _UP, _AVERAGE, _PAETH)
    )
    for at in range(1, width + height):
        rows = slice(max(0, at - width), min(height, at))  # that the diagonal crosses
        left = skewed[at - 1, 1:][rows]
        over = skewed[at - 1, :-1][rows]
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
    to_left = abs(above - corner)
    to_above = abs(left - corner)
    to_corner = abs(left + above - 2 * corner)
    # Ties go to the left, then to what is above: the format says so.
    rest = np.where(to_above <= to_corner, above, corner)
    left_is_closest = (to_left <= to_above) & (to_left <= to_corner)
    return np.where(left_is_closest, left, rest)
