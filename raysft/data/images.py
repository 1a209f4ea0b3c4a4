"""Image files to RGB arrays, the same way at import, in training and in prediction."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from raysft.errors import DataError

# Endings of files that are taken for images unseen; of all others the contents decide.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
                        ".pgm", ".pbm", ".pnm"})

# Pillow would also try decoders that hand the file to other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

# What `sniff` tells apart.
KNOWN = (*FORMATS, "AVIF", "HEIC")

# The first bytes of each format; what stands behind them is looked at where two bytes could be those of any text.
_SIGNATURES = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
               (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"))  # the last two: BigTIFF
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})  # sizes of the header behind that of the file
_PPM = re.compile(rb"P[1-6f]\s+[#\d]")
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})

# What Pillow raises for files that are torn, empty, of no known format, or dangerously large.
BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error, zlib.error,
             Image.DecompressionBombError)

# EXIF orientation (tag 0x0112) to what turns the image upright.
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}


def sniff(head: bytes) -> str | None:
    """The image format of a file by its first bytes (64 are enough): one of `KNOWN`, None for no image."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if _PPM.match(head):
        return "PPM"
    return _brand(head) if head[4:8] == b"ftyp" else None


def _brand(head: bytes) -> str | None:
    """AVIF or HEIC by the brands of an ISO media file (those of a video say neither)."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at:at + 4] for at in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else None


def can_decode(name: str) -> str | None:
    """None where images of the format (as `sniff` names it) can be decoded here, else what to do about it."""
    if name == "AVIF" and not features.check("avif"):
        return "install a Pillow that decodes AVIF (11.3 or newer)"
    if name == "HEIC" and importlib.util.find_spec("pillow_heif") is None:
        return "pip install 'raysft[heif]'"
    return None if name in KNOWN else f"convert it to one of {', '.join(KNOWN)}"


def open_rgb(source: Path | bytes, name: str = "image") -> Image.Image:
    """The whole image, decoded, upright by its EXIF orientation, as 8-bit RGB.

    Raises DataError that names the file when it cannot be decoded to its last byte.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            upright = image.transpose(turn) if turn is not None else image
            if upright.mode.startswith("I;16"):  # Pillow clips 16-bit grey to 255 instead of scaling it
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except BAD_IMAGE as error:
        # Of bytes, Pillow tells the address in memory.
        why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(str(name), f"is not a readable image ({why})") from None


def stored_rgb(stored: bytes | np.ndarray, name: str = "image") -> Image.Image:
    """The image of a shard's row: an encoded file, or (height, width, 3) uint8. Raises DataError as `open_rgb`."""
    return open_rgb(stored, name) if isinstance(stored, bytes) else Image.fromarray(stored)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; damaged EXIF data says nothing about the pixels and counts as upright."""
    try:
        value = image.getexif().get(0x0112, 1)
    except BAD_IMAGE:
        return 1
    return value if isinstance(value, int) else 1


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: scaled so that it covers the area, then cropped around its centre.

    Rows are resized first, then columns. Left to itself, Pillow takes them in an order that is not the same in all of
    its versions, and rounds in between.
    """
    if image.size != (width, height):
        wide, tall = image.size
        kept_wide, kept_tall = min(wide, tall * (width / height)), min(tall, wide / (width / height))
        left, top = (wide - kept_wide) / 2, (tall - kept_tall) / 2
        image = image.resize((width, tall), Image.Resampling.BILINEAR, (left, 0, left + kept_wide, tall))
        image = image.resize((width, height), Image.Resampling.BILINEAR, (0, top, width, top + kept_tall))
    return np.asarray(image, dtype=np.uint8)


def size_of(source: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """(height, width) from the header alone, as shown upright; raises DataError that names the file."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            turned = _orientation(image) >= 5
            return image.size if turned else image.size[::-1]
    except BAD_IMAGE as error:
        raise DataError(name or str(source), f"is not a readable image ({error})") from None
