"""Decoded images to what a network sees: normalised and resized in batches on a worker's device."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from raysft.data.preparation import Preparation

SCORING_BATCH = 256  # images of up to 224 by 224 at once, fewer of larger ones


class Preparer:
    """A `Preparation` on a device: (n, height, width, 3) uint8 to (n, 3, height, width) float32."""

    def __init__(
        self, how: Preparation, device: torch.device | str = "cpu", channels_last: bool = True
    ) -> None:
        self.how = how
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.scale, self.shift = scale_and_shift(how.mean, how.std, device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The pixels that the network gets of decoded images."""
        pixels = normalise(images, self.scale, self.shift)
        resized = resize(pixels, self.how.image_size, self.how.interpolation)
        return resized.contiguous(memory_format=self.layout)


def scoring_batch_size(*sides: int) -> int:
    """How many images to score at a time, given the largest of their heights and widths."""
    largest = max(*sides, 1)
    # Memory grows with the area, so larger images are scored in proportionally smaller batches.
    fitting = SCORING_BATCH * 224 * 224 // largest**2
    return max(1, min(SCORING_BATCH, fitting))


def normalise(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x · scale + shift: (n, height, width, 3) uint8 to (n, 3, height, width) float32.

    The result lies in channels_last memory.
    """
    # Rows are stored as height, width, channel: seen as (n, 3, height, width) they are in
    # channels_last memory already, so that the conversion to floats is the only copy.
    channels_first = images.permute(0, 3, 1, 2)
    pixels = channels_first.to(torch.float32, memory_format=torch.channels_last)
    return pixels.mul_(scale).add_(shift)


def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift), each (1, 3, 1, 1): uint8 · scale + shift is (x / 255 - mean) / std."""
    means = torch.tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    deviations = torch.tensor(std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
    # One multiplication and one addition a value, in place, for two divisions and a subtraction.
    return 1 / (255 * deviations), -means / deviations


def resize(images: torch.Tensor, size: int | None, interpolation: str) -> torch.Tensor:
    """(n, 3, height, width) to (n, 3, size, size); size None: unchanged."""
    if size is None or images.shape[2:] == (size, size):
        return images
    if interpolation == "nearest":
        return functional.interpolate(images, (size, size), mode="nearest")
    # Antialiased as Pillow does it, whose filters pretrained weights were trained with.
    return functional.interpolate(
        images, (size, size), mode=interpolation, align_corners=False, antialias=True
    )
