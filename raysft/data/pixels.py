"""Decoded images to what a network sees: normalised and resized in whole batches, on the device of
the worker.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysft.data.preparation import Preparation

SCORING_BATCH = 256  # images of up to 224 by 224 at once, fewer of larger ones


class Preparer:
    """A `Preparation` on a device: (n, height, width, 3) uint8 to (n, 3, height, width) float32."""

    def __init__(
        self, how: Preparation, device: torch.device | str = "cpu", channels_last: bool = True
    ) -> None:
        self.how, self.layout = (
            how,
            torch.channels_last if channels_last else torch.contiguous_format,
        )
        self.scale, self.shift = scale_and_shift(how.mean, how.std, device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pixels = normalise(images, self.scale, self.shift)
        return resize(pixels, self.how.image_size, self.how.interpolation).contiguous(
            memory_format=self.layout
        )


def scoring_batch_size(*sides: int) -> int:
    """How many images to score at a time, given the largest of their heights and widths."""
    return max(1, min(SCORING_BATCH, SCORING_BATCH * 224 * 224 // max(*sides, 1) ** 2))


def normalise(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """(n, height, width, 3) uint8 to (n, 3, height, width) float32 in channels_last memory: x ·
    scale + shift.
    """
    return (
        images.permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.channels_last)
        .mul_(scale)
        .add_(shift)
    )


def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift), each (1, 3, 1, 1), such that uint8 · scale + shift is (x / 255 - mean) /
    std.
    """
    m, s = (
        torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std)
    )
    return 1 / (255 * s), -m / s


def resize(images: torch.Tensor, size: int | None, interpolation: str) -> torch.Tensor:
    """(n, 3, height, width) to (n, 3, size, size) with Pillow's filters, which weights were trained
    with.

    None: unchanged.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    if interpolation == "nearest":
        return F.interpolate(images, (size, size), mode="nearest")
    return F.interpolate(
        images, (size, size), mode=interpolation, align_corners=False, antialias=True
    )
