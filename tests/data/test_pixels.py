"""Every kind of pixels becomes the 8-bit RGB that a reference makes of it."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from raysft.data import png, samples
from raysft.data.decoding import (
    LEGACY_DECODING,
    Decoding,
    ValueSpan,
    choose_ranges,
    warn_of_outliers,
)
from raysft.data.images import NO_END, QUIRKS, decode, open_rgb, read_size, read_span
from raysft.data.samples import DARK, SATURATED, WITHOUT_VALUE
from raysft.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 13), np.uint8)
RGB = RNG.integers(0, 256, (9, 13, 3), np.uint8)
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 24)), -1).astype(
    np.uint8
)
SMOOTH = np.concatenate([SMOOTH, SMOOTH[..., :1] // 2], axis=2)
ALPHA = RNG.integers(0, 256, (9, 13), np.uint8)


def pillow(array, kind, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    written = io.BytesIO()
    (image.convert(mode) if mode else image).save(written, kind, **options)
    return written.getvalue()


def tiff(array, **options):
    written = io.BytesIO()
    tifffile.imwrite(written, array, **options)
    return written.getvalue()


def png16(array, filters=(0, 1, 2, 3, 4)):
    """A PNG of 16 bits with the filters in turn, as libpng writes it."""
    height, width, channels = array.shape
    plain = array.astype(">u2").tobytes()
    size, step = width * channels * 2, channels * 2
    above, lines = bytes(size), []
    for y in range(height):
        line, kind = plain[y * size : (y + 1) * size], filters[y % len(filters)]
        out = bytearray([kind])
        for i in range(size):
            a, b, c = (
                line[i - step] if i >= step else 0,
                above[i],
                above[i - step] if i >= step else 0,
            )
            paeth = min((a, b, c), key=lambda v: abs(a + b - c - v))
            out.append((line[i] - [0, a, b, (a + b) // 2, paeth][kind]) % 256)
        above = line
        lines.append(bytes(out))

    def part(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + part(b"IDAT", zlib.compress(b"".join(lines)))
        + part(b"IEND", b"")
    )


def rgb(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def levels(values, low, high):
    return np.rint((values.astype(np.float64) - low) * 255 / (high - low))


def over_white(colours, alpha):
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share))


def deep(low, high, dtype, shape=(9, 13)):
    """Values that reach from `low` to `high`."""
    values = (RNG.random(shape) * (high - low) + low).astype(dtype)
    values.flat[0], values.flat[-1] = low, high
    return values


def of_profile(profile, array):
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    return np.asarray(ImageCms.applyTransform(Image.fromarray(array), transform))


def wide_gamut():
    """An RGB profile with the primaries of Display P3 and a gamma of 2.2."""

    def s15(value):
        return struct.pack(">i", round(value * 65536))

    columns = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
        b"wtpt": (0.96420, 1, 0.82491),
    }
    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(s15, xyz)) for name, xyz in columns.items()}
    tags |= {
        name: b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
        for name in (b"rTRC", b"gTRC", b"bTRC")
    }
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(79)
    tags[b"cprt"] = b"text\0\0\0\0none\0\0\0\0"
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4sI4s4s4s12s4sIIIIIIII",
        at + len(body),
        b"lcms",
        0x02100000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        bytes(12),
        b"acsp",
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    head = head[:64] + struct.pack(">I", 0) + s15(0.9642) + s15(1) + s15(0.82491) + bytes(48)
    return head[:128] + table + body


WIDE = wide_gamut()
CMYK = RNG.integers(0, 256, (9, 13, 4), np.uint8)
OF_CMYK = np.rint((255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255)
PALETTE = Image.fromarray(RGB).quantize(16)
KEYED = np.asarray(PALETTE.convert("RGB")).copy()
KEYED[np.asarray(PALETTE) == 3] = 255
U12, U16 = deep(0, 4095, np.uint16), deep(0, 65535, np.uint16)
RGB16, RGBA16 = deep(0, 65535, np.uint16, (9, 13, 3)), deep(0, 65535, np.uint16, (9, 13, 4))
F1, F1000, F64 = deep(0, 1, np.float32), deep(0, 1000, np.float32), deep(-2, 7.5, np.float64)
I32, I16, U32 = (
    deep(-70_000, 90_000, np.int32),
    deep(-1024, 3071, np.int16),
    deep(5, 4_000_000_000, np.uint32),
)
F_RGB = deep(0, 1, np.float32, (9, 13, 3))
LAB = Image.fromarray(np.stack([GREY, GREY // 2 + 64, 192 - GREY // 2], -1), "RGB")
PAGES = np.stack([RGB, 255 - RGB])

CASES = {
    "1 bit": (
        pillow(
            GREY,
            "PNG",
            "1",
        ),
        rgb(np.asarray(Image.fromarray(GREY).convert("1")) * 255),
    ),
    "grey 8 bit": (pillow(GREY, "PNG"), rgb(GREY)),
    "grey with alpha": (pillow(np.stack([GREY, ALPHA], -1), "PNG"), over_white(rgb(GREY), ALPHA)),
    "RGB with alpha": (
        pillow(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True),
        over_white(RGB, ALPHA),
    ),
    "palette": (pillow(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette with a transparent colour": (pillow(PALETTE, "PNG", transparency=3), KEYED),
    "grey 16 bit PNG": (pillow(U16, "PNG"), rgb(levels(U16, 0, 65535))),
    "grey 12 in 16 bit PNG": (pillow(U12, "PNG"), rgb(levels(U12, 0, 4095))),
    "grey 16 bit PNG with alpha": (
        png16(np.stack([U16, U16[::-1]], -1)),
        over_white(rgb(levels(U16, 0, 65535)), levels(U16[::-1], 0, 65535)),
    ),
    "RGB 16 bit PNG": (png16(RGB16), levels(RGB16, 0, 65535)),
    "RGB 12 in 16 bit PNG": (png16(RGB16 >> 4), levels(RGB16 >> 4, 0, 4095)),
    "RGBA 16 bit PNG": (
        png16(RGBA16),
        over_white(levels(RGBA16[..., :3], 0, 65535), levels(RGBA16[..., 3], 0, 65535)),
    ),
    "grey 12 in 16 bit TIFF": (tiff(U12), rgb(levels(U12, 0, 4095))),
    "big-endian 16 bit TIFF": (tiff(U16, byteorder=">"), rgb(levels(U16, 0, 65535))),
    "white is zero 16 bit TIFF": (
        tiff(U16, photometric="miniswhite"),
        rgb(255 - levels(U16, 0, 65535)),
    ),
    "RGB 16 bit TIFF": (tiff(RGB16, photometric="rgb"), levels(RGB16, 0, 65535)),
    "RGB 12 in 16 bit TIFF": (tiff(RGB16 >> 4, photometric="rgb"), levels(RGB16 >> 4, 0, 4095)),
    "float32 TIFF 0 to 1": (tiff(F1), rgb(levels(F1, 0, 1))),
    "float32 TIFF 0 to 1000": (tiff(F1000, compression="zlib"), rgb(levels(F1000, 0, 1000))),
    "float64 TIFF": (tiff(F64), rgb(levels(F64, -2, 7.5))),
    "RGB float TIFF": (tiff(F_RGB, photometric="rgb"), levels(F_RGB, 0, 1)),
    "int32 TIFF": (tiff(I32), rgb(levels(I32, -70_000, 90_000))),
    "int16 TIFF": (tiff(I16), rgb(levels(I16, -1024, 3071))),
    "uint32 TIFF": (tiff(U32), rgb(levels(U32, 5, 4_000_000_000))),
    "uint16 TIFF that tells its range": (
        tiff(U12 // 5, extratags=[(281, "H", 1, 1000, True)]),
        rgb(levels(U12 // 5, 0, 1000)),
    ),
    "float TIFF that tells its range": (
        tiff(F1, extratags=[(340, "f", 1, -1.0, True), (341, "f", 1, 3.0, True)]),
        rgb(levels(F1, -1, 3)),
    ),
    "CMYK TIFF": (pillow(Image.fromarray(CMYK, "CMYK"), "TIFF"), OF_CMYK),
    "planar TIFF": (tiff(RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), RGB),
    "planar 16 bit TIFF": (
        tiff(RGB16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        levels(RGB16, 0, 65535),
    ),
    "YCbCr TIFF": (
        pillow(SMOOTH, "TIFF", "YCbCr"),
        np.asarray(Image.fromarray(SMOOTH).convert("YCbCr").convert("RGB")),
    ),
    "Lab TIFF": (
        pillow(Image.frombytes("LAB", (13, 9), LAB.tobytes()), "TIFF"),
        np.asarray(
            ImageCms.applyTransform(
                Image.frombytes("LAB", (13, 9), LAB.tobytes()),
                ImageCms.buildTransform(
                    ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
                ),
            )
        ),
    ),
    "two pages": (tiff(PAGES, photometric="rgb"), PAGES[0]),
    "animated GIF": (
        pillow(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "AVIF": (pillow(SMOOTH, "AVIF", quality=100, subsampling="4:4:4"), None),
    "profile of a wide gamut": (
        pillow(RGB, "PNG", icc_profile=WIDE),
        of_profile(io.BytesIO(WIDE), RGB),
    ),
    "palette with a profile": (
        pillow(PALETTE, "PNG", icc_profile=WIDE),
        of_profile(io.BytesIO(WIDE), np.asarray(PALETTE.convert("RGB"))),
    ),
    "PGM of 12 bits": (b"P5 13 9 4095\n" + U12.astype(">u2").tobytes(), rgb(levels(U12, 0, 4095))),
}


def reference(content):
    """What Pillow alone makes of an image in 8 bits."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def as_imported(content):
    """Decoding with the range of a data set that holds this image alone."""
    span = read_span(content, "image")
    return Decoding(ranges=choose_ranges([span] if span else []))


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_a_reference(name):
    content, expected = CASES[name]
    found = np.asarray(open_rgb(content, name, as_imported(content)))
    wanted = reference(content) if expected is None else expected
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert read_size(content) == found.shape[:2]


def cmyk_jpeg():
    """A CMYK JPEG with the inverted values of Adobe, which Pillow writes too."""
    smooth = np.dstack([SMOOTH, SMOOTH[..., 2:] // 2])
    return smooth, pillow(Image.fromarray(smooth, "CMYK"), "JPEG", quality=100, subsampling=0)


def test_inverted_cmyk_of_adobe():
    smooth, content = cmyk_jpeg()
    expected = (255.0 - smooth[..., :3]) * (255.0 - smooth[..., 3:]) / 255
    assert np.abs(np.asarray(open_rgb(content)) - expected).max() <= 6  # what JPEG loses
    assert np.array_equal(open_rgb(content), reference(content))


@pytest.mark.parametrize(
    "content",
    [
        pillow(SMOOTH, "JPEG"),
        pillow(RGB, "PNG"),
        pillow(RGB, "WEBP"),
        pillow(GREY, "JPEG"),
        pillow(RGB, "BMP"),
        pillow(
            SMOOTH,
            "JPEG",
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ),
        pillow(SMOOTH, "JPEG", progressive=True),
        pillow(np.dstack([RGB, np.full((9, 13), 255, np.uint8)]), "PNG"),
        tiff(RGB, photometric="rgb"),
        pillow(RGB, "PPM"),
    ],
)
def test_8_bit_srgb_is_decoded_unchanged(content):
    decoded = decode(content)
    assert np.array_equal(decoded.image, reference(content))
    assert decoded.quirks == ()


def test_heic_is_read_where_its_plugin_is_there():
    pytest.importorskip("pillow_heif").register_heif_opener()
    content = pillow(SMOOTH, "HEIF", quality=100, chroma=444)
    assert np.abs(np.asarray(open_rgb(content)).astype(int) - SMOOTH).max() <= 6


def test_heic_without_its_plugin_says_what_to_install(monkeypatch):
    pytest.importorskip("pillow_heif").register_heif_opener()
    content = pillow(SMOOTH, "HEIF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"is an HEIC image.*raysft\[heif\]"):
        open_rgb(content)


# --- what is noted -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"optimize": True}])
def test_only_the_end_marker_may_be_missing(options):
    whole = pillow(
        np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8), "JPEG", **options
    )
    for torn in (whole[:-2], whole[:-1], whole[:-2] + bytes(100)):
        decoded = decode(torn)
        assert decoded.quirks == (NO_END,)
        assert np.array_equal(decoded.image, reference(whole))
    for missing in (4, 20, len(whole) // 3):
        for padding in (b"", bytes(5000)):
            with pytest.raises(DataError, match="is not a readable image"):
                decode(whole[:-missing] + padding)


def a_scan_a_colour(array):
    """A JPEG that is not progressive, with its three colours one after the other."""
    greys = [pillow(np.ascontiguousarray(array[..., i]), "JPEG") for i in range(3)]
    frame, scan = (greys[0].index(marker) for marker in (b"\xff\xc0\0\x0b", b"\xff\xda\0\x08"))
    colours = b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3))
    head = greys[0][:frame] + b"\xff\xc0\0\x11" + greys[0][frame + 4 : frame + 9] + b"\3" + colours
    scans = [
        b"\xff\xda\0\x08\1" + bytes([i + 1]) + grey[scan + 6 : -2] for i, grey in enumerate(greys)
    ]
    return head + greys[0][frame + 13 : scan] + b"".join(scans) + b"\xff\xd9"


@pytest.mark.parametrize(
    "whole",
    [pillow(SMOOTH, "JPEG", progressive=True), a_scan_a_colour(SMOOTH)],
    ids=["progressive", "colours"],
)
def test_a_jpeg_of_several_scans_needs_its_end(whole):
    assert decode(whole).quirks == decode(whole + bytes(100)).quirks == ()
    assert np.array_equal(decode(whole).image, reference(whole))
    for cut in range(100, len(whole) - 1):
        for padding in (b"", bytes(99)):
            with pytest.raises(DataError, match="is not a readable image"):
                decode(whole[:cut] + padding)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("RGB with alpha", "composited"),
        ("palette with a transparent colour", "composited"),
        ("two pages", "first_of_several"),
        ("animated GIF", "first_of_several"),
        ("profile of a wide gamut", "converted"),
    ],
)
def test_what_was_done_is_noted(name, note):
    content = CASES[name][0]
    assert note in decode(content, name, as_imported(content)).quirks
    assert note in QUIRKS


@pytest.mark.parametrize(
    "damage", [lambda p: b"no profile", lambda p: p[:200], lambda p: p[:16] + b"CMYK" + p[20:]]
)
def test_a_damaged_profile_is_ignored_and_noted(damage):
    decoded = decode(pillow(RGB, "PNG", icc_profile=damage(WIDE)))
    assert decoded.quirks == ("bad_profile",)
    assert np.array_equal(decoded.image, RGB)


def test_a_background_may_be_given():
    icon = np.zeros((9, 13, 4), np.uint8)
    icon[2:5, 3:8, 3] = 255  # a black shape
    content = pillow(icon, "PNG")
    assert np.asarray(open_rgb(content))[0, 0].tolist() == [255, 255, 255]
    found = np.asarray(open_rgb(content, "icon", Decoding((10, 200, 30))))
    assert (found[0, 0].tolist(), found[3, 4].tolist()) == ([10, 200, 30], [0, 0, 0])
    assert decode(content, "icon", Decoding((0, 0, 0))).quirks == ("composited", "blank")


def test_older_models_see_the_pixels_they_learned():
    content = pillow(np.dstack([RGB, ALPHA]), "PNG", icc_profile=WIDE)
    assert np.array_equal(open_rgb(content, "image", LEGACY_DECODING), reference(content))


# --- ranges ------------------------------------------------------------------------------------


def test_image_is_scaled_by_data_set_range():
    how = Decoding(
        ranges=choose_ranges([ValueSpan("float32", 0, 0.9), ValueSpan("float32", 0.1, 1000)])
    )
    dark = np.full((4, 4), 500, np.float32)
    assert np.asarray(open_rgb(tiff(dark), "dark", how)).max() == 128


@pytest.mark.parametrize(
    "content", [tiff(F1), tiff(I32), tiff(I16), tiff(U32), tiff(F_RGB, photometric="rgb")]
)
def test_values_of_no_known_range_are_refused(content):
    with pytest.raises(DataError, match="which values are black and white"):
        open_rgb(content)


def test_values_beyond_the_range_are_refused_unless_few():
    how = Decoding(ranges={"uint16": (0.0, 4095.0)})
    with pytest.raises(DataError, match=r"are outside of the range that is known, 0 to 4095"):
        open_rgb(pillow(U16, "PNG"), "photo", how)
    hot = U12.copy()
    hot[0, 0] = 60_000
    assert np.asarray(open_rgb(pillow(hot, "PNG"), "photo", how))[0, 0, 0] == 255


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([ValueSpan("uint16", 0, 900), ValueSpan("uint16", 3, 4000)], (0, 4095)),
        ([ValueSpan("uint16", 0, 65000)], (0, 65535)),
        ([ValueSpan("uint16", 0, 1000, declared=True)], (0, 1000)),
        ([ValueSpan("float32", 0.01, 0.97)], (0, 1)),
        ([ValueSpan("float32", 0, 0.001)], (0, 0.001)),
        ([ValueSpan("float32", 2, 2)], (2, 3)),
        ([ValueSpan("int16", -5, 9)], (-5, 9)),
    ],
)
def test_the_range_of_a_data_set(spans, expected):
    assert choose_ranges(spans) == {spans[0].kind: expected}


def test_values_that_stand_for_none_do_not_count():
    values = F1.copy()
    values[0, :2] = np.nan, np.inf
    values[1, 0] = -9999
    content = tiff(values, extratags=[(42113, "s", 0, "-9999", True)])
    span = read_span(content, "image")
    assert span is not None
    assert 0 <= span.low < span.high <= 1
    assert np.asarray(open_rgb(content, "image", as_imported(content)))[1, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("array", [RGB, U12, RGB16, F_RGB], ids=["8", "12", "16", "float"])
def test_tiffs_are_turned_upright(orientation, array):
    content = tiff(
        array,
        photometric="rgb" if array.ndim == 3 else "minisblack",
        extratags=[(274, "H", 1, orientation, True)],
    )
    plain = tiff(array, photometric="rgb" if array.ndim == 3 else "minisblack")
    exif = Image.Exif()
    exif[274] = orientation
    as_png = pillow(np.asarray(open_rgb(plain, "plain", as_imported(plain))), "PNG", exif=exif)
    found = np.asarray(open_rgb(content, "turned", as_imported(content)))
    assert np.array_equal(found, np.asarray(open_rgb(as_png)))
    assert read_size(content) == found.shape[:2]


def test_few_values_beyond_range_are_saturated_and_noted():
    values = np.linspace(0, 1000, 400, dtype=np.float32).reshape(20, 20)
    values[0, 0] = 1500
    found = decode(tiff(values), "a.tif", Decoding(ranges={"float32": (0.0, 1000.0)}))
    assert found.quirks == (SATURATED,)
    assert np.asarray(found.image)[0, 0].tolist() == [255, 255, 255]


def test_pixels_without_a_value_are_black_and_counted():
    values = np.full((20, 20), 0.9, np.float32)
    values[0, 0] = np.nan
    found = decode(tiff(values), "a.tif", Decoding(ranges={"float32": (0.0, 1.0)}))
    assert found.quirks == (WITHOUT_VALUE,)
    assert np.asarray(found.image)[0, 0].tolist() == [0, 0, 0]


def test_premultiplied_colours_are_not_multiplied_twice():
    straight = np.zeros((8, 8, 4), np.uint16)
    straight[..., 0], straight[..., 3] = 65535, 32768
    multiplied = straight.copy()
    multiplied[..., 0] = 32768
    as_stored = tiff(straight, photometric="rgb", extrasamples=["unassalpha"])
    as_multiplied = tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"])
    one, other = (
        np.asarray(decode(raw, "a.tif").image).astype(int) for raw in (as_stored, as_multiplied)
    )
    assert np.abs(one - other).max() <= 1


def png_of(width, height, lines):
    """A PNG of 16-bit RGB with whatever pixels."""

    def part(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
        + part(b"IDAT", zlib.compress(lines))
        + part(b"IEND", b"")
    )


def peak_of_refusal(content, why):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=why) as caught:
            open_rgb(content, "bomb", Decoding())
        assert "\n" not in str(caught.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (png_of(4, 4, bytes(1 << 26)), "more pixels than its header"),
        (png_of(4, 4, bytes(99)), "truncated"),
        (
            tiff(
                np.zeros((64, 64, 3000), np.uint16),
                photometric="minisblack",
                planarconfig="contig",
                compression="zlib",
            ),
            "3000 samples a pixel",
        ),
    ],
    ids=["png", "short", "tiff"],
)
def test_bombs_are_refused_before_they_fill_the_memory(content, why):
    assert peak_of_refusal(content, why) < 1 << 24


@pytest.mark.parametrize("limit", [None, 1000])
def test_oversized_tiff_is_refused_by_its_header(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(samples, "MAX_PIXELS", 2000)
    assert (
        peak_of_refusal(
            tiff(np.zeros((2048, 2048, 3), np.uint16), photometric="rgb", compression="zlib"),
            "too many|decompression bomb",
        )
        < 1 << 22
    )


@pytest.mark.parametrize(
    ("highest", "how", "notes"),
    [
        (4095, Decoding(), (DARK,)),
        (200, Decoding(), (DARK,)),
        (0, Decoding(), ()),
        (9000, Decoding(), ()),
        (4095, Decoding(ranges={"uint16": (0.0, 65535.0)}), ()),
        (4095, Decoding(ranges={"uint16": (0.0, 4095.0)}), ()),
    ],
)
def test_dark_16_bit_images_without_range_are_noted(highest, how, notes):
    for array in (deep(0, highest, np.uint16), deep(0, highest, np.uint16, (9, 13, 3))):
        assert decode(tiff(array), "image", how).quirks == notes
    assert decode(pillow(deep(0, highest, np.uint16), "PNG"), "image", how).quirks == notes


@pytest.mark.parametrize(
    ("odd", "others"),
    [
        (ValueSpan("uint16", 12, 65535, file="a\nb.tif"), ValueSpan("uint16", 10, 4095)),
        (ValueSpan("float32", -9999, 1, file="a\nb.tif"), ValueSpan("float32", 0, 1)),
    ],
)
def test_what_stretches_the_range_is_named(odd, others):
    [line] = warn_of_outliers([*[others] * 49, odd])
    assert "1 of 50 images (a\\nb.tif)" in line
    assert f"most others from {others.low} to {others.high}" in line
    [line] = warn_of_outliers([*[others] * 99, *[odd] * 5])
    assert "5 of 104 images (a\\nb.tif, a\\nb.tif, a\\nb.tif and 2 more)" in line


def test_images_of_like_ranges_stretch_none():
    assert (
        warn_of_outliers([ValueSpan("uint16", 0, high) for high in np.linspace(400, 4095, 50)])
        == []
    )
    assert (
        warn_of_outliers([ValueSpan("uint16", 0, 10), ValueSpan("uint16", 0, 4095)]) == []
    )  # two say nothing about most
    assert warn_of_outliers([]) == []
    assert (
        warn_of_outliers([*[ValueSpan("uint16", 0, 10)] * 50, *[ValueSpan("float32", 0, 1e6)] * 50])
        == []
    )


@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (2, 1, 0), (4, 2, 3, 1, 0)])
@pytest.mark.parametrize("shape", [(9, 13, 3), (1, 1, 3), (1, 9, 2), (9, 1, 4), (21, 5, 3)])
def test_png_filters_are_undone(filters, shape, monkeypatch):
    monkeypatch.setattr(png, "_BAND", 4)
    array = RNG.integers(0, 65536, shape).astype(np.uint16)
    assert np.array_equal(png.png_samples(png16(array, filters)), array)


def test_a_png_filter_that_is_none_is_refused():
    with pytest.raises(DataError, match="no filter of PNG"):
        open_rgb(png_of(2, 2, bytes(13) + b"\5" + bytes(12)))


def test_one_sided_png_filters_need_no_diagonals(monkeypatch):
    monkeypatch.setattr(png, "_by_diagonal", None)  # which takes many times as long
    array = RNG.integers(0, 65536, (9, 13, 3)).astype(np.uint16)
    assert np.array_equal(png.png_samples(png16(array, (1, 2, 0, 1))), array)


def test_tiff_strip_that_unpacks_too_large_is_refused():
    content = bytearray(
        tiff(
            np.zeros((64, 64, 3), np.uint16), photometric="rgb", compression="zlib", rowsperstrip=64
        )
    )
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        at, size = (file.pages.first.tags[code].valueoffset for code in (273, 279))
    bomb = zlib.compress(bytes(100 << 20))
    content[at : at + 4], content[size : size + 4] = (
        struct.pack("<I", value) for value in (len(content), len(bomb))
    )
    assert peak_of_refusal(bytes(content) + bomb, "more pixels than its header") < 1 << 24
