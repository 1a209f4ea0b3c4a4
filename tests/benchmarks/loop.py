"""One steady epoch of training: raysft's loop beside the same recipe as plain PyTorch loops and
with accelerate.

ResNet-18, 1,024 random images of 32×32 pixels in batches of 128, SGD with momentum, flip and crop,
one worker with one thread. *Same recipe*: a loop over one tensor that flips and crops whole batches
and uses channels last, as a careful person would write it. *As commonly written*: ImageFolder, PIL
transforms and a DataLoader, with accelerate and without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from raysft.data.epochs import KeptSplit
from raysft.data.ingest import Rows
from raysft.data.preparation import Preparation
from raysft.job.recipe import Train
from raysft.train.checkpoint import Position
from raysft.train.learner import Learner
from raysft.train.loop import Clock, Hooks, TrialPlan, train_epoch
from raysft.train.team import Team
from tests.benchmarks import images
from tests.benchmarks.compare import Figure, document, take_turns
from tests.benchmarks.peers import plain

ROWS, BATCH, CLASSES = 1024, 128, 10
RAYSFT, CAREFUL, COMMON, ACCELERATE = (
    "raysft, default recipe",
    "plain, tensors",
    "plain, PIL",
    "accelerate, PIL",
)
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def measure(rounds: int = 7) -> dict[str, Any]:
    """The comparison; needs two minutes."""
    torch.set_num_threads(1)
    rows = images.rows(ROWS)
    with tempfile.TemporaryDirectory() as folder:
        data = str(images.folder(Path(folder), ROWS, CLASSES))
        timings = take_turns(
            {
                CAREFUL: _careful(rows),
                RAYSFT: _raysft(rows),
                COMMON: _common(data),
                ACCELERATE: _accelerate(data),
            },
            rounds,
        )
    median = {t.name: t.median for t in timings}
    return document(
        "training loop, a steady epoch",
        timings,
        [
            Figure(
                "images/s, raysft to plain with tensors (same recipe)",
                median[CAREFUL] / median[RAYSFT],
                0.97,
                True,
            ),
            Figure(
                "images/s, raysft to plain with PIL (as commonly written)",
                median[COMMON] / median[RAYSFT],
                1.12,
                True,
            ),
            Figure(
                "images/s, raysft to accelerate with PIL (as commonly written)",
                median[ACCELERATE] / median[RAYSFT],
            ),
        ],
    )


def _raysft(rows: Rows) -> Callable[[], None]:
    train = Train(epochs=100, batch_size=BATCH)
    counts = (ROWS // CLASSES,) * CLASSES
    recipe = TrialPlan(
        train, 0, Preparation(MEAN, STD), counts, "val_accuracy", Path("unused"), "fc"
    )
    learner = Learner(
        resnet18(num_classes=CLASSES),
        "fc",
        train,
        recipe.class_rows,
        Team(0, 1, torch.device("cpu")),
    )
    reader = KeptSplit(rows)
    hooks = Hooks(lambda *report: True, lambda *progress: None)

    def epoch() -> None:
        learner.enter(head_alone=False, on_features=False)
        train_epoch(recipe, Position(1), learner, reader, Clock(), hooks)

    return epoch


def _careful(rows: Rows) -> Callable[[], None]:
    net = resnet18(num_classes=CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    pixels, labels = (
        torch.from_numpy(rows.images).permute(0, 3, 1, 2),
        torch.from_numpy(rows.labels),
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))

    def epoch() -> None:
        net.train()
        for index in torch.randperm(ROWS).split(BATCH):
            batch = pixels[index]
            flipped = torch.rand(len(batch), 1, 1, 1) < 0.5
            batch = torch.where(flipped, batch.flip(3), batch)
            top, left = torch.randint(0, 9, (2, len(batch)))
            windows = F.pad(batch, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
            batch = windows[torch.arange(len(batch)), :, top, left]
            inputs = ((batch.float() / 255 - mean) / std).contiguous(
                memory_format=torch.channels_last
            )
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels[index]).backward()
            optimizer.step()

    return epoch


def _common(data: str) -> Callable[[], None]:
    net, loader = resnet18(num_classes=CLASSES), plain.train_loader(data, BATCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    return lambda: plain.train_epoch(net, loader, optimizer)


def _accelerate(data: str) -> Callable[[], None]:
    from accelerate import Accelerator

    accelerator, net = Accelerator(cpu=True), resnet18(num_classes=CLASSES)
    net, optimizer, loader = accelerator.prepare(
        net,
        torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
        plain.train_loader(data, BATCH),
    )
    criterion = torch.nn.CrossEntropyLoss()

    def epoch() -> None:
        net.train()
        for batch, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(criterion(net(batch), labels))
            optimizer.step()

    return epoch
