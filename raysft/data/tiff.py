"""TIFF images of more than 8 bits a sample, signed ones and floats; Pillow holds grey ones only."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL.TiffImagePlugin import TiffImageFile

from raysft.data.decoding import Range
from raysft.data.samples import Samples, check_size, full_value, scale_alpha

_DEFLATE = (8, 32946)  # values of TIFF's Compression
_MAX_DEFLATE_RATIO = 1032  # how many times what is packed may be unpacked
_HARMLESS = 1 << 26  # bytes of one strip or tile, whatever the header says
_INFLATE_STEP = 1 << 20

_FORMATS = {1: "uint", 2: "int", 3: "float"}  # TIFF's SampleFormat
_COLOURS = {0: 1, 1: 1, 2: 3}  # samples of TIFF's PhotometricInterpretation: grey, grey, RGB
_WHITE_IS_ZERO = 0  # of PhotometricInterpretation
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _MIN, _MAX = 258, 262, 274, 277, 280, 281
_EXTRA, _FORMAT, _SMIN, _SMAX, _NODATA = 338, 339, 340, 341, 42113
_PREMULTIPLIED = 1  # of ExtraSamples: alpha that the colours were multiplied with

Tags = Mapping[int, object]


def read_pillow_tiff(image: TiffImageFile, content: bytes) -> Samples | None:
    """The samples of a TIFF that Pillow has opened; None where its 8 bits are all there is."""
    tags: Tags = image.tag_v2
    form = min(_numbers(tags.get(_FORMAT, 1)))
    bits = int(max(_numbers(tags.get(_BITS, 1))))
    kind = _FORMATS.get(int(form), "") + str(bits)
    if kind.startswith("uint") and bits <= 8:
        return None
    if _int(tags.get(_SAMPLES, 1)) > 1:
        # Of colours, Pillow keeps the upper 8 bits.
        return read_tiff(content)
    samples = _without_pixels(tags, kind)
    image.load()
    values = np.asarray(image)
    if kind in ("uint32", "int8"):  # which Pillow takes for int32 and uint8
        values = values.view(kind)
    return replace(samples, values=values)


def read_tiff(content: bytes) -> Samples:
    """The samples of a TIFF file that Pillow cannot hold; raises ValueError or OSError."""
    # Loaded when it is needed: few data sets hold such files.
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        itemsize = page.dtype.itemsize if page.dtype is not None else 1
        # A strip or tile, which may be larger than the image.
        piece = math.prod(page.chunks) * itemsize
        size = max(page.nbytes, piece)
        check_size(page.imagelength, page.imagewidth, page.samplesperpixel, size)
        if page.compression in _DEFLATE:
            for at, length in zip(page.dataoffsets, page.databytecounts, strict=True):
                _check_deflated(content[at : at + length], piece)
        values = _last_axis_samples(page.asarray(), page.axes)
        tags: dict[int, object] = {tag.code: tag.value for tag in page.tags}
    colours = _COLOURS.get(_int(tags.get(_PHOTOMETRIC, 1)))
    count = values.shape[2]
    # One sample more than colours is alpha.
    if values.dtype.kind not in "uif" or colours is None or count not in (colours, colours + 1):
        raise ValueError(
            f"{count} samples a pixel of type {values.dtype}, which are no colours: convert it "
            "to RGB"
        )
    values = _upright(values, _int(tags.get(_ORIENTATION, 1)))
    alpha = None
    if count > colours:
        alpha = scale_alpha(values[..., -1])
        values = values[..., :-1]
        if _PREMULTIPLIED in _numbers(tags.get(_EXTRA, 0)):
            values = _divide_by_alpha(values, alpha)
    samples = _without_pixels(tags, _widest_kind(tags))
    return replace(samples, values=values[..., 0] if colours == 1 else values, alpha=alpha)


def _without_pixels(tags: Tags, kind: str) -> Samples:
    """What the tags say of the pixels."""
    return Samples(
        kind,
        np.empty(0),
        declared=_declared_range(tags, kind),
        inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
        missing=_missing_value(tags.get(_NODATA)),
    )


def _divide_by_alpha(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    # Where alpha is 0 nothing is left of the colours, which the background hides anyway.
    factor = 255 / np.maximum(alpha, 1)[..., None].astype(np.float64)
    whole = values * factor
    divided: np.ndarray = whole.clip(0, full_value(values.dtype)).astype(values.dtype)
    return divided


def _check_deflated(packed: bytes, size: int) -> None:
    """Refuse a strip or tile that unpacks to much more than the `size` bytes that it shall hold."""
    most = max(2 * size, _HARMLESS)
    if len(packed) * _MAX_DEFLATE_RATIO <= most:
        return
    # Step by step and thrown away, so that no more than a step is in memory.
    unpacking = zlib.decompressobj()
    rest = packed
    seen = 0
    while rest and not unpacking.eof:
        seen += len(unpacking.decompress(rest, _INFLATE_STEP))
        rest = unpacking.unconsumed_tail
        if seen > most:
            raise ValueError("more pixels than its header says")


def read_tiff_size(content: bytes) -> tuple[int, int]:
    """(height, width) as shown upright of a TIFF file that Pillow cannot hold.

    Raises ValueError or OSError.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        tag = page.tags.get(_ORIENTATION)
        on_its_side = tag is not None and int(tag.value) >= 5
        if on_its_side:
            return page.imagewidth, page.imagelength
        return page.imagelength, page.imagewidth


def _last_axis_samples(values: np.ndarray, axes: str) -> np.ndarray:
    """(height, width, samples), whatever the order in the file."""
    if not {"Y", "X"} <= set(axes) <= {"Y", "X", "S"}:
        raise ValueError(f"has the axes {axes}, not those of an image")
    if "S" not in axes:
        values = values[..., None]
        axes += "S"
    order = [axes.index(axis) for axis in "YXS"]
    return np.moveaxis(values, order, [0, 1, 2])


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    # From 5 on rows are columns; then each of the four has its own corner for the first pixel.
    if orientation >= 5:
        values = values.swapaxes(0, 1)
        from_below, from_right = orientation in (7, 8), orientation in (6, 7)
    else:
        from_below, from_right = orientation in (3, 4), orientation in (2, 3)
    rows = values[::-1] if from_below else values
    return rows[:, ::-1] if from_right else rows


def _widest_kind(tags: Tags) -> str:
    """uint16, float32, ...; of samples that differ, the widest."""
    form = int(max(_numbers(tags.get(_FORMAT, 1))))
    bits = int(max(_numbers(tags.get(_BITS, 1))))
    return _FORMATS.get(form, "") + str(bits)


def _declared_range(tags: Tags, kind: str) -> Range | None:
    """The range in the tags, unless it is that of the bits of a sample.

    That one is put there by writers that nobody asked to.
    """
    for low_tag, high_tag in ((_SMIN, _SMAX), (_MIN, _MAX)):
        has_low = low_tag in tags or kind.startswith("uint")
        if high_tag not in tags or not has_low:
            continue
        low = min(_numbers(tags.get(low_tag, 0)))
        high = max(_numbers(tags[high_tag]))
        bits = kind.removeprefix("uint")
        all_bits = bits.isdecimal() and high >= 2 ** int(bits) - 1
        if high > low and not all_bits:
            return float(low), float(high)
    return None


def _missing_value(text: object) -> float | None:
    """GDAL's value for no value."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _int(value: object) -> int:
    return int(_numbers(value)[0])


def _numbers(value: object) -> tuple[float, ...]:
    """One or several, as the readers of TIFF give either."""
    flat = np.ravel(np.asarray(value))
    return tuple(flat.tolist())
