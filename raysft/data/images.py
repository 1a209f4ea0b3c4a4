"""Image files to RGB arrays, the same way at import, in training and in prediction."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from raysft.data import colours
from raysft.data.decoding import Decoding, ValueSpan, hex_colour
from raysft.data.formats import (
    DECODE_ERRORS,
    HEAD_BYTES,
    PILLOW_FORMATS,
    missing_decoder,
    sniff_format,
)
from raysft.data.jpeg import ensure_whole
from raysft.data.png import read_png
from raysft.data.samples import (
    DARK,
    SATURATED,
    WITHOUT_VALUE,
    Samples,
    is_png16,
    needs_range,
    transpose_samples,
)
from raysft.data.tiff import read_pillow_tiff, read_tiff, read_tiff_size
from raysft.errors import DataError

_ORIENTATION = 0x0112  # the tag of EXIF
# Its values to what turns the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """An image in 8-bit RGB, and what was special about it (keys of `QUIRKS`)."""

    image: Image.Image
    quirks: tuple[str, ...] = ()


NO_END, FIRST_OF_SEVERAL = "no_end", "first_of_several"

QUIRKS = {
    NO_END: "without the end marker of a JPEG, otherwise complete",
    FIRST_OF_SEVERAL: "with several pages or frames, of which the first is used",
    SATURATED: "with some samples (at most 1 %) outside of the range, saturated",
    WITHOUT_VALUE: "with pixels that have no value (not a number, or marked as missing), made "
    "black",
    DARK: "of 16 bits with no known range, read from 0 to 65535, and nearly black: convert them "
    "to 8 bits",
    colours.COMPOSITED: "with transparency, put on the background",
    colours.BLANK: "whose background hides all that is in them: give another data.background",
    colours.CONVERTED: "converted from their colour profile to sRGB",
    colours.BAD_PROFILE: "with a colour profile that cannot be used, read without it",
}


def describe_quirks(counts: Mapping[str, int], how: Decoding) -> list[str]:
    """How many images were special in what way, a line each. counts: by the keys of `QUIRKS`."""
    lines = []
    for quirk, text in QUIRKS.items():
        count = counts.get(quirk)
        if not count:
            continue
        if quirk == colours.COMPOSITED and how.background is not None:
            text = f"{text} ({hex_colour(how.background)})"
        lines.append(f"images {text}: {count:,}")
    return lines


def open_rgb(source: Path | bytes, name: str = "image", how: Decoding = Decoding()) -> Image.Image:
    """The whole image, decoded, upright by its EXIF orientation, as 8-bit RGB in sRGB.

    how: what files leave open. Raises DataError that names the file when it cannot be decoded to
    its last byte, or when nothing says which of its values are black and white.
    """
    return decode(source, name, how).image


def decode(source: Path | bytes, name: str = "image", how: Decoding = Decoding()) -> Decoded:
    """As `open_rgb`, with what was special about it."""
    quirks: list[str] = []
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        with _opened(content, name, quirks.append) as image:
            made = _upright_rgb(image, content, str(name), how, quirks.append)
    except DECODE_ERRORS as error:
        why = str(error)
        if isinstance(error, UnidentifiedImageError):
            # Of bytes, Pillow tells the address in memory.
            why = "of no known format"
        raise DataError(str(name), f"is not a readable image ({why})") from None
    return Decoded(made, tuple(quirks))


def read_span(content: bytes, name: str) -> ValueSpan | None:
    """The values of an image with more than 8 bits a sample; None for any other."""
    try:
        if not needs_range(content[:HEAD_BYTES]):
            return None
        with _opened(content, name, lambda _: None) as image:
            found = read_samples(image, content) if isinstance(image, Image.Image) else image
        return found.span() if found is not None else None
    except (*DECODE_ERRORS, DataError):
        return None  # named when it is decoded


def read_samples(image: Image.Image, content: bytes) -> Samples | None:
    """The samples of an opened image, upright but by its EXIF data.

    None where Pillow's 8 bits are all there is.
    """
    if image.format == "PNG":
        return read_png(image, content) if is_png16(content) else None
    if image.format == "PPM" and image.mode in ("I", "F"):
        image.load()
        values = np.asarray(image)
        if image.mode == "F":
            return Samples("float32", values)
        # What a PGM file says is white, is 65535 to Pillow.
        return Samples("uint16", values, declared=(0.0, 65535.0))
    if isinstance(image, TiffImageFile):
        return read_pillow_tiff(image, content)
    return None


@contextmanager
def _opened(content: bytes, name: str, note: colours.Note) -> Iterator[Image.Image | Samples]:
    """The image with its pixels not yet decoded; the samples of a TIFF that Pillow cannot open."""
    known = sniff_format(content[:HEAD_BYTES])
    try:
        image = Image.open(io.BytesIO(content), formats=_pillow_formats(known, name))
    except UnidentifiedImageError:
        if known != "TIFF":
            raise
        yield read_tiff(content)
        return
    with image:
        # A decoder of JPEG fills what is missing with grey and says nothing.
        whole = ensure_whole(image, content) if known == "JPEG" else content
        if whole is content:
            yield image
            return
        note(NO_END)
        with Image.open(io.BytesIO(whole), formats=("JPEG",)) as again:
            yield again


def _pillow_formats(known: str | None, name: str) -> tuple[str, ...]:
    """The formats for Pillow to try, with their plugin registered.

    Raises DataError where one is missing.
    """
    if known in ("AVIF", "HEIC"):
        missing = missing_decoder(known)
        if missing is not None:
            raise DataError(name, f"is an {known} image, which cannot be read here", missing)
    if known == "HEIC":
        import pillow_heif

        pillow_heif.register_heif_opener()
        return ("HEIF",)
    return PILLOW_FORMATS if known is None else (known,)


def _upright_rgb(
    image: Image.Image | Samples, content: bytes, name: str, how: Decoding, note: colours.Note
) -> Image.Image:
    if isinstance(image, Samples):  # turned upright already
        return _levels(image, None, name, how, note)
    samples = read_samples(image, content)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if samples is not None:
        profile = image.info.get("icc_profile") if how.profiles else None
        upright = samples if turn is None else transpose_samples(samples, turn)
        made = _levels(upright, profile, name, how, note)
    else:
        turned = image if turn is None else image.transpose(turn)
        made = colours.to_rgb(turned, how, note)
    # Some cameras store a JPEG with a preview as two frames, of which the first is the photo.
    if image.format != "JPEG" and getattr(image, "is_animated", False):
        note(FIRST_OF_SEVERAL)
    return made


def _levels(
    samples: Samples, profile: bytes | None, name: str, how: Decoding, note: colours.Note
) -> Image.Image:
    """Samples of more than 8 bits as RGB."""
    scaled = samples.scaled(how.ranges, name, note)
    levels = Image.fromarray(np.ascontiguousarray(scaled))
    made = colours.in_srgb(levels, profile, note) if profile else levels.convert("RGB")
    if samples.alpha is None:
        return made
    alpha = Image.fromarray(np.ascontiguousarray(samples.alpha))
    return colours.on_background(made, alpha, how, note)


def stored_rgb(stored: bytes | np.ndarray, name: str, how: Decoding) -> Image.Image:
    """The image of a shard's row; raises DataError as `open_rgb`.

    stored: an encoded file, or (height, width, 3) uint8.
    """
    return decode_stored(stored, name, how).image


def decode_stored(stored: bytes | np.ndarray, name: str, how: Decoding) -> Decoded:
    """As `stored_rgb`, with what was special about it."""
    if isinstance(stored, bytes):
        return decode(stored, name, how)
    # Its quirks were counted when it was imported.
    return Decoded(Image.fromarray(stored))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DECODE_ERRORS:
        # Damaged EXIF data says nothing about the pixels.
        return 1
    return value if isinstance(value, int) else 1


def fit(image: Image.Image, height: int, width: int, resampling: str = "bilinear") -> np.ndarray:
    """(height, width, 3) uint8: scaled so that it covers the area, then cropped around its centre.

    resampling: nearest | bilinear | bicubic.
    """
    if image.size != (width, height):
        wide, tall = image.size
        kept_wide = min(wide, tall * (width / height))
        kept_tall = min(tall, wide / (width / height))
        left = (wide - kept_wide) / 2
        top = (tall - kept_tall) / 2
        kernel = Image.Resampling[resampling.upper()]
        # Rows first, then columns. Left to itself, Pillow takes them in an order that is not the
        # same in all of its versions, and rounds in between.
        image = image.resize((width, tall), kernel, (left, 0, left + kept_wide, tall))
        image = image.resize((width, height), kernel, (0, top, width, top + kept_tall))
    return np.asarray(image, dtype=np.uint8)


def read_size(source: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """(height, width) as shown upright, from the header alone; raises DataError."""
    where = name or str(source)
    try:
        with ExitStack() as stack:
            if isinstance(source, bytes):
                file: io.BytesIO | io.BufferedReader = io.BytesIO(source)
            else:
                file = stack.enter_context(source.open("rb"))
            known = sniff_format(file.read(HEAD_BYTES))
            file.seek(0)
            try:
                image = stack.enter_context(Image.open(file, formats=_pillow_formats(known, where)))
            except UnidentifiedImageError:
                if known != "TIFF":
                    raise
                file.seek(0)
                return read_tiff_size(file.read())
            width, height = image.size
            # Pillow tells the size of a TIFF as it is shown.
            on_its_side = known != "TIFF" and _orientation(image) >= 5
            return (width, height) if on_its_side else (height, width)
    except DECODE_ERRORS as error:
        raise DataError(where, f"is not a readable image ({error})") from None
