"""Preparation and network as one torch module, made of operations that torch.export and ONNX both
have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from raysft.data.pixels import scale_and_shift
from raysft.results.model import ModelCard

UNIT = 1 << 22  # Pillow's weights of 8-bit images are whole numbers of this


class WholeModel(nn.Module):
    """A delivered model from decoded images to probabilities.

    (n, height, width, 3) uint8 of any n, height and width to (n, classes) float32.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, net: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.net, self.height, self.width, self.filter = (
            net,
            card.height,
            card.width,
            card.resampling,
        )
        scale, shift = scale_and_shift(card.mean, card.std)
        # Buffers, so that an export carries them and moves them to a device with the weights.
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        size, self.resized = card.image_size, False
        # A product with the unit matrix would be work for nothing.
        if size is not None and (size, size) != (card.height, card.width):
            self.resized = True
            self.register_buffer("rows", enlarging(card.height, size, card.interpolation))
            self.register_buffer(
                "columns", enlarging(card.width, size, card.interpolation).T.contiguous()
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities of images as the class says."""
        pixels = fit(images, self.height, self.width, self.filter) * self.scale + self.shift
        if self.resized:
            pixels = self.rows @ pixels @ self.columns
        logits: torch.Tensor = self.net(pixels)
        return logits.softmax(dim=1)


def fit(
    images: torch.Tensor, height: int, width: int, resampling: str = "bilinear"
) -> torch.Tensor:
    """(n, any, any, 3) uint8 to (n, 3, height, width) float32: the whole numbers that
    `raysft.data.images.fit` gives.
    """
    # Resizing is a product with a matrix of weights along each axis, in whole numbers as in Pillow:
    # float64 holds them exactly, float32 would round away their last bits.
    tall, wide = (torch.scalar_tensor(side, dtype=torch.float64) for side in images.shape[1:3])
    columns = shrinking(
        images.shape[2], wide, torch.minimum(wide, tall * (width / height)), width, resampling
    )
    rows = shrinking(
        images.shape[1], tall, torch.minimum(tall, wide / (width / height)), height, resampling
    )
    # Along each row first, rounded before the columns, as Pillow does: else some pixels differ.
    pixels = _rounded(images.permute(0, 3, 1, 2).to(torch.float64) @ columns.T)
    return _rounded(rows @ pixels).to(torch.float32)


def shrinking(
    pixels: int, side: torch.Tensor, kept: torch.Tensor, out: int, resampling: str = "bilinear"
) -> torch.Tensor:
    """(out, pixels) float64 whole numbers: weights of Pillow's filter from the middle `kept` of a
    side.
    """
    begin = (side - kept) * 0.5
    # Pillow hands the edges of what is kept over in float32.
    first, last = begin.to(torch.float32), (begin + kept).to(torch.float32)
    scale = (last - first).to(torch.float64) / out
    centres = first.to(torch.float64) + (torch.arange(out, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(pixels, dtype=torch.float64) + 0.5
    if resampling == "nearest":
        # Pillow adds the scale up, and rounds on the way.
        begun = (first.to(torch.float64) + scale * 0.5).reshape(1)
        nearest = torch.floor(torch.cumsum(torch.cat([begun, scale.expand(out - 1)]), 0))
        return (places - 0.5 == nearest[:, None]).to(torch.float64) * UNIT
    # Pillow's Resample.c: the bilinear filter is a triangle as wide as two pixels of the smaller
    # of the two images, the bicubic one twice as wide.
    distance = ((places - centres[:, None]) / scale.clamp(min=1)).abs()
    weights = (1 - distance).clamp(min=0) if resampling == "bilinear" else _cubic(distance)
    shares = weights / weights.sum(1, keepdim=True) * UNIT
    # Half away from zero, as C rounds; torch.round would take the even neighbour.
    return torch.sign(shares) * torch.floor(shares.abs() + 0.5)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic kernel with a = -1/2 at distances x of 0 and more."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _rounded(sums: torch.Tensor) -> torch.Tensor:
    return torch.floor((sums + UNIT // 2) / UNIT).clamp(0, 255)  # cubic weights overshoot


def enlarging(pixels: int, out: int, interpolation: str) -> torch.Tensor:
    """(out, pixels) float32 weights of `raysft.data.pixels.resize` along one axis."""
    # What it makes of a unit matrix are its weights: resizing is linear, an axis at a time.
    identity = torch.eye(pixels)[None, None]
    if interpolation == "nearest":
        return F.interpolate(identity, (out, pixels), mode="nearest")[0, 0]
    return F.interpolate(
        identity, (out, pixels), mode=interpolation, align_corners=False, antialias=True
    )[0, 0]
