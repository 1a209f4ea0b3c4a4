"""Whether an image costs the same in a large data set: 50,000 and 500,000 rows, kept and streamed.

Random images of 32×32 pixels in batches of 128, one worker. Kept images are flipped, cropped and
normalised as in training; streamed ones are read only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from raysft.cluster.local import local_ray, this_node
from raysft.data.epochs import KeptSplit, StreamedSplit
from raysft.data.ingest import read_split
from raysft.data.splits import split_sources
from tests.benchmarks import images
from tests.benchmarks.augment import raysft_epoch as changed_epoch
from tests.benchmarks.compare import Figure, document, take_turns
from tests.benchmarks.ingest import raysft_epoch

SMALL, LARGE = 50_000, 500_000


def measure(rounds: int = 5) -> dict[str, Any]:
    """The comparison; needs five minutes and 3 GB of disk and memory."""
    torch.set_num_threads(1)
    ways = {}
    with tempfile.TemporaryDirectory() as folder, local_ray(this_node()):
        for rows in (SMALL, LARGE):
            place = Path(folder) / str(rows)
            source = split_sources(place, images.shards(place, rows + 10, 10), 10, None, 0)["train"]
            kept, streamed = KeptSplit(read_split(source)), StreamedSplit(source)
            ways[f"kept, {rows}"] = lambda kept=kept: changed_epoch(kept)
            ways[f"streamed, {rows}"] = lambda streamed=streamed: raysft_epoch(streamed)
        timings = take_turns(ways, rounds)
    median = {t.name: t.median for t in timings}
    ratios = {
        how: median[f"{how}, {LARGE}"] / median[f"{how}, {SMALL}"] * SMALL / LARGE
        for how in ("kept", "streamed")
    }
    return document(
        "time an image by the size of the data set",
        timings,
        [
            Figure(f"{how}: time an image, 500,000 rows to 50,000", ratio, 1.1)
            for how, ratio in ratios.items()
        ],
    )
