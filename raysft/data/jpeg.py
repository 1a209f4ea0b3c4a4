"""JPEGs without their end marker: whether all of their pixels are there all the same."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from raysft.data.formats import DECODE_ERRORS

FILLINGS = 16  # random ones: a single one may change nothing that is seen
PADDING = 4  # zeros at the end of a file that are no pixels
_END = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_SEQUENTIAL = (0xC0, 0xC1)  # headers of frames that are not progressive


def ensure_whole(image: Image.Image, content: bytes) -> bytes:
    """The content, with the end marker where it has none; raises OSError where more is missing.

    image: of the content, opened and not yet decoded.
    """
    why = "image file is truncated"
    if not _ends_in_zeros(content):
        try:
            image.load()
            return content
        except OSError as error:
            why = str(error)
    # Of several scans, none may be missing.
    whole = complete_jpeg(content) if _in_one_scan(content) else None
    if whole is None:
        raise OSError(why)
    return whole


def _in_one_scan(content: bytes) -> bool:
    """Whether all of a JPEG's pixels come once: not progressive, and not a colour after the other.

    One that is cut between two scans looks complete to a decoder, blurred or without its colours.
    """
    components = b""
    for marker, at in _markers(content):
        if marker == _START_OF_SCAN:
            # The first scan is the only one where it has all components of the frame.
            return components == content[at + 4 : at + 5]
        if marker in _SEQUENTIAL:
            components = content[at + 9 : at + 10]
    return False


def _markers(content: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where it begins) of each segment of the header."""
    at = 2
    while at + 4 <= len(content):
        marker = content[at + 1]
        yield marker, at
        # A marker may be preceded by any number of fill bytes, 255 each.
        if marker == 0xFF:
            at += 1
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")


def _ends_in_zeros(content: bytes) -> bool:
    """Whether a JPEG ends in zeros, which a decoder would take for the pixels that are missing."""
    padded = content.endswith(bytes(PADDING))
    return padded and not content.rstrip(b"\0").endswith(_END)


def complete_jpeg(content: bytes) -> bytes | None:
    """A JPEG with the end marker that it lacks; None where more than that is missing.

    A decoder takes what follows the last byte for pixels that are still to come, if there are any:
    where the image is the same with any other bytes behind it, there were none.
    """
    padding = b"\0" if content.endswith(bytes(PADDING)) else b"\xff"
    return _add_end(content.rstrip(padding))


def _add_end(body: bytes) -> bytes | None:
    first: np.ndarray | None = None
    for filling in _fillings():
        try:
            pixels = _decode(body + filling + _END)
        except DECODE_ERRORS:
            return None
        if first is None:
            first = pixels
        elif not np.array_equal(first, pixels):
            return None
    return body + _END


def _fillings() -> Iterator[bytes]:
    yield b""
    yield bytes(64)
    # Below 255, which would begin a marker.
    yield from map(bytes, np.random.default_rng(0).integers(0, 255, (FILLINGS, 64), np.uint8))


def _decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.asarray(image)
