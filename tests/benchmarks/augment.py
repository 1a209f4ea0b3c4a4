"""A warm epoch of flipped, cropped and normalised batches without a model: raysft beside the PIL
DataLoader.

5,000 random images of 32×32 pixels in batches of 128, on one core (one process, one thread). *As
commonly written*: ImageFolder over PNG files; raysft from decoded rows in memory, as it keeps them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from raysft.data.augment import augment
from raysft.data.epochs import KeptSplit
from raysft.data.pixels import Preparer
from raysft.data.preparation import Preparation
from raysft.job.batches import batch_sizes
from raysft.job.recipe import Augment
from tests.benchmarks import images
from tests.benchmarks.compare import Figure, document, take_turns
from tests.benchmarks.peers import plain

ROWS, BATCH = 5_000, 128
RAYSFT, PIL = "raysft", "ImageFolder, PIL, DataLoader"


def measure(rounds: int = 5) -> dict[str, Any]:
    """The comparison; needs a minute."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = images.folder(Path(folder), ROWS, 10)
        kept = KeptSplit(images.rows(ROWS))
        loader = plain.train_loader(str(data), BATCH)
        timings = take_turns(
            {
                PIL: lambda: _seen(len(batch) for batch, _ in loader),
                RAYSFT: lambda: raysft_epoch(kept),
            },
            rounds,
        )
    median = {t.name: t.median for t in timings}
    return document(
        "ingest of 5,000 images with flip and crop, one core",
        timings,
        [Figure("images/s, raysft to the PIL DataLoader", median[PIL] / median[RAYSFT], 7, True)],
    )


def raysft_epoch(kept: KeptSplit, flip: bool = True, crop_padding: int = 4) -> None:
    """All batches of an epoch, ready for a network."""
    recipe, prepare = (
        Augment(flip=flip, crop_padding=crop_padding),
        Preparer(Preparation(plain.MEAN, plain.STD)),
    )
    seen = 0
    for batch in kept.epoch(0, 1, batch_sizes(len(kept), BATCH), 0, 1):
        pixels = torch.from_numpy(batch.rows.images)
        seen += len(prepare(augment(pixels, recipe, (0, 1, batch.number), batch.first, batch.size)))
    assert seen == len(kept)


def _seen(counts: Any) -> None:
    assert sum(counts) == ROWS
