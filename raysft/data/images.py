"""Image files to RGB arrays, the same way at import, in training and in prediction."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from raysft.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

# What Pillow raises for files that are torn, empty, of no known format, or dangerously large.
BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def open_rgb(source: Path | bytes, name: str = "image") -> Image.Image:
    """The whole image, decoded, upright by its EXIF orientation, as 8-bit RGB.

    Raises DataError that names the file when it cannot be decoded to its last byte.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow clips 16-bit grey to 255 instead of scaling it
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except BAD_IMAGE as error:
        raise DataError(str(name), f"is not a readable image ({error})") from None


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: scaled so that it covers the area, then cropped around its centre."""
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) from the header alone, as shown upright; raises DataError."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size if turned else image.size[::-1]
    except BAD_IMAGE as error:
        raise DataError(str(path), f"is not a readable image ({error})") from None
