"""Random flips and crops of whole batches, on the device of the worker, on uint8.

The random numbers are drawn for the global batch from (seed, epoch, batch) and then cut to the worker's share, so an
image is changed the same way however many workers there are.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from raysft.job.spec import Augment

_STREAM = 7  # keeps these draws apart from the order of the epoch, which has the same seed


def augment(images: torch.Tensor, recipe: Augment, key: tuple[int, int, int], first: int, size: int) -> torch.Tensor:
    """Flip and crop a worker's share of a batch.

    images: (n, height, width, 3) uint8; key: (seed, epoch, batch number); the share starts at row `first` of the
    `size` rows of the global batch. Returns images of the same shape and type. The crop is the classic one of He et
    al. 2015 (arXiv 1512.03385): pad with zeros, cut the size back out at a random place.
    """
    rng = np.random.default_rng([*key, _STREAM])
    mine = slice(first, first + len(images))
    if recipe.crop_padding:
        offsets = rng.integers(0, 2 * recipe.crop_padding + 1, (2, size))[:, mine]
        images = _crop(images, recipe.crop_padding, torch.from_numpy(offsets).to(images.device))
    if recipe.flip:
        flipped = torch.from_numpy(rng.random(size)[mine] < 0.5).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(2), images)
    return images


def _crop(images: torch.Tensor, padding: int, offsets: torch.Tensor) -> torch.Tensor:
    n, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (n, 2p+1, 2p+1, 3, height, width), a view
    rows = torch.arange(n, device=images.device)
    return windows[rows, offsets[0], offsets[1]].permute(0, 2, 3, 1)


def normalise(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """(n, height, width, 3) uint8 to (n, 3, height, width) float32 in channels_last memory: x · scale + shift."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).mul_(scale).add_(shift)


def scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...],
                    device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift), each (1, 3, 1, 1), such that uint8 · scale + shift is (x / 255 - mean) / std."""
    m, s = (torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std))
    return 1 / (255 * s), -m / s
