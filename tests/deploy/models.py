"""Delivered models to try things on, with random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from raysft.results.model import WEIGHTS, ModelCard, deliver
from raysft.train.modeling import create_network


def make_model(
    folder: Path,
    classes: tuple[str, ...] = ("ant", "bee", "cow"),
    side: int = 8,
    architecture: str = "raysft.train.smallnet:small_cnn",
    spread: float = 1.6,
) -> Path:
    """A model folder for images of `side` by `side` pixels; `spread` makes its answers differ from
    image to image.
    """
    checkpoint = folder.with_name(folder.name + "-checkpoint")
    checkpoint.mkdir(parents=True)
    net = create_network(architecture, len(classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(spread)
    save_file(net.state_dict(), checkpoint / WEIGHTS)
    card = ModelCard(
        architecture,
        classes,
        side,
        side,
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
        {"test_accuracy": 0.5},
        {},
    )
    deliver(folder, checkpoint, card)
    return folder
