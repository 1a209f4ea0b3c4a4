"""Image files to RGB arrays, the same way at import, in training and in prediction."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from raysft.data import colours
from raysft.data.decoding import Decoding, ValueSpan, hex_colour
from raysft.data.samples import (
    DARK,
    SATURATED,
    WITHOUT_VALUE,
    Samples,
    needs_range,
    read_samples,
    read_tiff,
    read_tiff_size,
    transpose_samples,
)
from raysft.errors import DataError

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

FILLINGS = 16  # random ones: a single one may change nothing that is seen
PADDING = 4  # zeros at the end of a file that are no pixels
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

# EXIF orientation (tag 0x0112) to what turns the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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


@dataclass(frozen=True)
class Decoded:
    """An image in 8-bit RGB, and what was noted on the way to it (the keys of `QUIRKS`)."""

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
    behind = f" ({hex_colour(how.background)})" if how.background is not None else ""
    return [
        f"images {told}{behind if key == colours.COMPOSITED else ''}: {counts[key]:,}"
        for key, told in QUIRKS.items()
        if counts.get(key)
    ]


def open_rgb(source: Path | bytes, name: str = "image", how: Decoding = Decoding()) -> Image.Image:
    """The whole image, decoded, upright by its EXIF orientation, as 8-bit RGB in sRGB.

    how: what files leave open. Raises DataError that names the file when it cannot be decoded to
    its last byte, or when nothing says which of its values are black and white.
    """
    return decode(source, name, how).image


def decode(source: Path | bytes, name: str = "image", how: Decoding = Decoding()) -> Decoded:
    """As `open_rgb`, with what was noted."""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        notes: list[str] = []
        with _opened(content, name, notes.append) as image:
            made = _upright_rgb(image, content, str(name), how, notes.append)
        return Decoded(made, tuple(notes))
    except DECODE_ERRORS as error:
        # Of bytes, Pillow tells the address in memory.
        why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(str(name), f"is not a readable image ({why})") from None


def read_span(content: bytes, name: str) -> ValueSpan | None:
    """The values of an image with more than 8 bits a sample; None for any other, and for one that
    cannot be read.
    """
    try:
        if not needs_range(content[:HEAD_BYTES]):
            return None
        with _opened(content, name, lambda _: None) as image:
            found = read_samples(image, content) if isinstance(image, Image.Image) else image
        return found.span() if found is not None else None
    except (*DECODE_ERRORS, DataError):
        return None  # named when it is decoded


@contextmanager
def _opened(content: bytes, name: str, note: colours.Note) -> Iterator[Image.Image | Samples]:
    """The image with its pixels not yet decoded; of a TIFF that Pillow does not know, its
    samples.
    """
    known = sniff_format(content[:HEAD_BYTES])
    try:
        image = Image.open(io.BytesIO(content), formats=_pillow_formats(known, name))
    except UnidentifiedImageError:
        if known != "TIFF":
            raise
        yield read_tiff(content)
        return
    with image:
        whole = _whole_jpeg(image, content) if known == "JPEG" else content
        if whole is content:
            yield image
            return
        note(NO_END)
        with Image.open(io.BytesIO(whole), formats=("JPEG",)) as again:
            yield again


def _whole_jpeg(image: Image.Image, content: bytes) -> bytes:
    """The content, with the end marker where it has none; raises OSError where more is missing."""
    why = "image file is truncated"
    if not _has_no_end(content):
        try:
            image.load()
            return content
        except OSError as error:
            why = str(error)
    whole = (
        complete_jpeg(content) if _in_one_scan(content) else None
    )  # of several, none may be missing
    if whole is None:
        raise OSError(why)
    return whole


def _in_one_scan(content: bytes) -> bool:
    """Whether all of a JPEG's pixels come once: not progressive, and not a colour after the other.

    One that is torn between two scans looks complete to a decoder, blurred or without its colours.
    """
    at, components = 2, b""
    while at + 4 <= len(content):
        marker = content[at + 1]
        if marker == 0xDA:
            return components == content[at + 4 : at + 5]
        if marker in (0xC0, 0xC1):  # sequential
            components = content[at + 9 : at + 10]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return False


def _has_no_end(content: bytes) -> bool:
    """Whether a JPEG ends in zeros, which a decoder would take for the pixels that are missing."""
    return content.endswith(bytes(PADDING)) and not content.rstrip(b"\0").endswith(b"\xff\xd9")


def _pillow_formats(known: str | None, name: str) -> tuple[str, ...]:
    """The formats for Pillow to try, with their plugin registered; raises DataError where one is
    missing.
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
    stored = read_samples(image, content)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile") if how.profiles else None
    if stored is not None:
        made = _levels(
            stored if turn is None else transpose_samples(stored, turn), profile, name, how, note
        )
    else:
        made = colours.to_rgb(image.transpose(turn) if turn is not None else image, how, note)
    if image.format != "JPEG" and getattr(image, "is_animated", False):
        note(FIRST_OF_SEVERAL)
    return made


def _levels(
    samples: Samples, profile: bytes | None, name: str, how: Decoding, note: colours.Note
) -> Image.Image:
    """Samples of more than 8 bits as RGB."""
    levels = Image.fromarray(np.ascontiguousarray(samples.scaled(how.ranges, name, note)))
    made = colours.in_srgb(levels, profile, note) if profile else levels.convert("RGB")
    alpha = None if samples.alpha is None else Image.fromarray(np.ascontiguousarray(samples.alpha))
    return colours.on_background(made, alpha, how, note)


def complete_jpeg(content: bytes) -> bytes | None:
    """A JPEG with the end marker that it lacks; None where more than that is missing.

    A decoder takes what follows the last byte for pixels that are still to come, if there are any:
    where the image is the same with any other bytes behind it, there were none.
    """
    if not content.endswith(bytes(PADDING)):
        return _ended(content.rstrip(b"\xff"))
    return _ended(content.rstrip(b"\0"))


def _ended(body: bytes) -> bytes | None:
    others = np.random.default_rng(0).integers(
        0, 255, (FILLINGS, 64), np.uint8
    )  # 255 would begin a marker
    ended = [body + filling + b"\xff\xd9" for filling in (b"", bytes(64), *map(bytes, others))]
    try:
        first = _pixels(ended[0])
        same = all(np.array_equal(first, _pixels(each)) for each in ended[1:])
    except DECODE_ERRORS:
        return None
    return ended[0] if same else None


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.asarray(image)


def stored_rgb(stored: bytes | np.ndarray, name: str, how: Decoding) -> Image.Image:
    """The image of a shard's row: an encoded file, or (height, width, 3) uint8. Raises DataError as
    `open_rgb`.
    """
    return decode_stored(stored, name, how).image


def decode_stored(stored: bytes | np.ndarray, name: str, how: Decoding) -> Decoded:
    """As `stored_rgb`, with what was noted."""
    return (
        decode(stored, name, how) if isinstance(stored, bytes) else Decoded(Image.fromarray(stored))
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; damaged EXIF data says nothing about the pixels and counts as
    upright.
    """
    try:
        value = image.getexif().get(0x0112, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def fit(image: Image.Image, height: int, width: int, resampling: str = "bilinear") -> np.ndarray:
    """(height, width, 3) uint8: scaled so that it covers the area, then cropped around its centre.

    resampling: nearest | bilinear | bicubic. Rows are resized first, then columns. Left to itself,
    Pillow takes them in an order that is not the same in all of its versions, and rounds in
    between.
    """
    if image.size != (width, height):
        wide, tall = image.size
        kept_wide, kept_tall = (
            min(wide, tall * (width / height)),
            min(tall, wide / (width / height)),
        )
        left, top = (wide - kept_wide) / 2, (tall - kept_tall) / 2
        kernel = Image.Resampling[resampling.upper()]
        image = image.resize((width, tall), kernel, (left, 0, left + kept_wide, tall))
        image = image.resize((width, height), kernel, (0, top, width, top + kept_tall))
    return np.asarray(image, dtype=np.uint8)


def read_size(source: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """(height, width) from the header alone, as shown upright; raises DataError that names the
    file.
    """
    where = name or str(source)
    try:
        with ExitStack() as stack:
            file = (
                io.BytesIO(source)
                if isinstance(source, bytes)
                else stack.enter_context(source.open("rb"))
            )
            known = sniff_format(file.read(HEAD_BYTES))
            file.seek(0)
            try:
                image = stack.enter_context(Image.open(file, formats=_pillow_formats(known, where)))
            except UnidentifiedImageError:
                if known != "TIFF":
                    raise
                file.seek(0)
                return read_tiff_size(file.read())
            # Pillow tells the size of a TIFF as it is shown.
            turned = known != "TIFF" and _orientation(image) >= 5
            return image.size if turned else image.size[::-1]
    except DECODE_ERRORS as error:
        raise DataError(where, f"is not a readable image ({error})") from None
