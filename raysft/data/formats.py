"""Formats of image files: told by their first bytes, and whether they can be decoded here."""

from __future__ import annotations

import importlib.util
import re
import struct
import zlib

from PIL import Image, features

# Endings of files that are taken for images unseen; of all others the contents decide.
IMAGE_EXTENSIONS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    }
)

# Pillow would also try decoders that hand the file to other programs.
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

HEAD_BYTES = 64  # that `sniff_format` looks at

# What `sniff_format` tells apart.
KNOWN = (*PILLOW_FORMATS, "AVIF", "HEIC")

# The first bytes of each format; what stands behind them is looked at where two bytes could be
# those of any text.
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)  # the last two: BigTIFF
_BMP_HEADERS = frozenset(
    {12, 16, 40, 52, 56, 64, 108, 124}
)  # sizes of the header behind that of the file
_PPM = re.compile(rb"P[1-6f]\s+[#\d]")
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})

# What Pillow raises for files that are torn, empty, of no known format, or dangerously large.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def sniff_format(head: bytes) -> str | None:
    """The image format of a file by its first bytes (64 are enough): one of `KNOWN`, None for no
    image.
    """
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
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else None


def missing_decoder(name: str) -> str | None:
    """What to do before images of a format (one of `KNOWN`) can be decoded here; None: nothing."""
    if name == "AVIF" and not features.check("avif"):
        return "install a Pillow that decodes AVIF (11.3 or newer)"
    if name == "HEIC" and importlib.util.find_spec("pillow_heif") is None:
        return "pip install 'raysft[heif]'"
    return None if name in KNOWN else f"convert it to one of {', '.join(KNOWN)}"
