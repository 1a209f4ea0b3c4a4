"""Any of Pillow's 8-bit modes to RGB in sRGB: palettes, CMYK, Lab, embedded profiles,
transparency.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from raysft.data.decoding import Decoding

Note = Callable[[str], None]

COMPOSITED, BLANK, CONVERTED, BAD_PROFILE = "composited", "blank", "converted", "bad_profile"


def to_rgb(image: Image.Image, how: Decoding, note: Note) -> Image.Image:
    """8-bit RGB of a decoded image; tells `note` what was done beyond that."""
    profile = image.info.get("icc_profile") if how.profiles else None
    transparent = how.background is not None and image.has_transparency_data
    if image.mode == "RGB" and not profile and not transparent:
        return image.convert("RGB")
    alpha = image.convert("RGBA").getchannel("A") if transparent else None
    return on_background(_coloured(image, profile, note), alpha, how, note)


def on_background(
    colours: Image.Image, alpha: Image.Image | None, how: Decoding, note: Note
) -> Image.Image:
    """An RGB image over the background, where there is any transparency."""
    if alpha is None or how.background is None or alpha.getextrema()[0] == 255:
        return colours
    note(COMPOSITED)
    made = Image.composite(colours, Image.new("RGB", colours.size, how.background), alpha)
    if len(alpha.getcolors() or ()) > 1 and len(made.getcolors(1) or ()) == 1:
        note(BLANK)
    return made


def _coloured(image: Image.Image, profile: bytes | None, note: Note) -> Image.Image:
    """RGB without transparency, in sRGB."""
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_srgb())  # type: ignore[return-value]
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif image.mode == "RGBa":
        # Premultiplied: Pillow divides by alpha on the way to RGBA only.
        image = image.convert("RGBA").convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    return in_srgb(image, profile, note) if profile else image.convert("RGB")


def in_srgb(image: Image.Image, profile: bytes, note: Note) -> Image.Image:
    """An image of mode L, RGB or CMYK in RGB of sRGB; a profile that cannot be used is noted and
    ignored.
    """
    try:
        transform = _to_srgb(profile, image.mode)
        if transform is None:
            return image.convert("RGB")
        made = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        note(BAD_PROFILE)
        return image.convert("RGB")
    note(CONVERTED)
    return made  # type: ignore[return-value]


@functools.lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where that changes no value by more than rounding. Raises
    PyCMSError, OSError.
    """
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        _srgb(),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    probe = _probe().convert(mode)
    plain = probe.convert("RGB")
    changed = ImageCms.applyTransform(probe, transform)
    difference = np.asarray(plain).astype(int) - np.asarray(changed)
    # Most cameras and programs embed sRGB, under many names: converting would cost time and round.
    return transform if abs(difference).max() > 1 else None


def _probe() -> Image.Image:
    """Greys and colours from all of the cube."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    return Image.fromarray(np.concatenate([greys, cube])[None])


@functools.lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), _srgb(), "LAB", "RGB"
    )
