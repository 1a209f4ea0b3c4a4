"""One steady epoch of training: raysft's loop with the default recipe beside the same recipe as a plain PyTorch loop.

ResNet-18, 1,024 random images of 32×32 pixels in batches of 128, SGD with momentum, flip and crop, one worker with one
thread. *Same recipe*: the plain loop keeps its images as one tensor, flips and crops whole batches, and uses channels
last, as a careful person would write it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from raysft.data.ingest import Kept, Rows
from raysft.data.preparation import Preparation
from raysft.job.recipe import Train
from raysft.train.learner import Learner
from raysft.train.loop import Clock, Recipe, train_epoch
from raysft.train.team import Team
from tests.benchmarks.compare import document, take_turns

ROWS, BATCH, CLASSES = 1024, 128, 10
BASELINE = "plain PyTorch loop"
TARGETS = {"raysft, default recipe": 1 / 0.97}
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def measure(rounds: int = 7) -> dict[str, Any]:
    """The comparison; needs a minute or two."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = Rows(np.arange(ROWS), rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8), np.arange(ROWS) % CLASSES)
    ways = {BASELINE: _plain(rows), "raysft, default recipe": _raysft(rows)}
    return document("training loop, a steady epoch", take_turns(ways, rounds), BASELINE, TARGETS)


def _raysft(rows: Rows) -> Any:
    train = Train(epochs=100, batch_size=BATCH)
    counts = (ROWS // CLASSES,) * CLASSES
    recipe = Recipe(train, 0, Preparation(MEAN, STD), counts, "val_accuracy", Path("unused"), "fc")
    learner = Learner(resnet18(num_classes=CLASSES), "fc", train, recipe.class_rows, Team(0, 1, torch.device("cpu")))
    reader = Kept(rows)

    def epoch() -> None:
        learner.enter(head_alone=False, on_features=False)
        train_epoch(recipe, 1, learner, reader, Clock(), lambda step, steps: None)

    return epoch


def _plain(rows: Rows) -> Any:
    net = resnet18(num_classes=CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.from_numpy(rows.images).permute(0, 3, 1, 2), torch.from_numpy(rows.labels)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def epoch() -> None:
        net.train()
        for index in torch.randperm(ROWS).split(BATCH):
            batch = images[index]
            flipped = torch.rand(len(batch), 1, 1, 1) < 0.5
            batch = torch.where(flipped, batch.flip(3), batch)
            top, left = torch.randint(0, 9, (2, len(batch)))
            windows = F.pad(batch, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
            batch = windows[torch.arange(len(batch)), :, top, left]
            inputs = ((batch.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels[index]).backward()
            optimizer.step()

    return epoch
