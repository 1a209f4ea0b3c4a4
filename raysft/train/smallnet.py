"""A small network for small images that trains from scratch in seconds; the quickstart uses it."""

import itertools

from torch import nn


def small_cnn(num_classes: int) -> nn.Module:
    """Three convolutions with batch normalisation and a linear head: (n, 3, height, width) to (n,
    num_classes).
    """
    widths = (3, 16, 32, 64)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], num_classes)
    )
