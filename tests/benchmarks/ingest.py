"""One warm epoch of batches without a model: raysft's kept and streamed reading, Ray Data's
default, a plain loop.

50,000 images of 32×32 pixels in batches of 128, one worker. Ray Data executes its plan again every
epoch; the pyarrow loop, which shuffles nothing, is the floor for reading files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raysft.cluster.local import local_ray, this_node
from raysft.data.epochs import KeptSplit, StreamedSplit
from raysft.data.ingest import read_split
from raysft.data.splits import split_sources
from raysft.job.batches import batch_sizes
from tests.benchmarks import images
from tests.benchmarks.compare import Figure, document, take_turns

ROWS, SHARD, BATCH = 50_000, 5_000, 128
RAY_DATA, PYARROW, STREAMED, KEPT = (
    "Ray Data, default",
    "pyarrow loop",
    "raysft, streamed",
    "raysft, kept",
)


def measure(rounds: int = 5) -> dict[str, Any]:
    """The comparison; needs a minute or two."""
    with tempfile.TemporaryDirectory() as scratch, local_ray(this_node()):
        source = split_sources(
            Path(scratch), images.shards(Path(scratch), ROWS, SHARD, SHARD), 1, None, 0
        )["train"]
        kept, streamed = KeptSplit(read_split(source)), StreamedSplit(source)
        timings = take_turns(
            {
                RAY_DATA: lambda: _ray_data(Path(scratch)),
                PYARROW: lambda: _pyarrow(Path(scratch)),
                STREAMED: lambda: raysft_epoch(streamed),
                KEPT: lambda: raysft_epoch(kept),
            },
            rounds,
        )
    median = {t.name: t.median for t in timings}
    return document(
        "ingest of 50,000 images, a warm epoch",
        timings,
        [
            Figure(
                "images/s, raysft kept to Ray Data's default",
                median[RAY_DATA] / median[KEPT],
                8,
                True,
            ),
            Figure(
                "images/s, raysft streamed to Ray Data's default",
                median[RAY_DATA] / median[STREAMED],
            ),
            Figure("images/s, raysft kept to the pyarrow loop", median[PYARROW] / median[KEPT]),
        ],
    )


def raysft_epoch(reader: KeptSplit | StreamedSplit) -> None:
    """All batches of an epoch."""
    seen = sum(
        len(batch.rows) for batch in reader.epoch(0, 1, batch_sizes(len(reader), BATCH), 0, 1)
    )
    assert seen == len(reader)


def _ray_data(folder: Path) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = ray.data.read_parquet(str(folder / "train"))
    seen = sum(
        len(b["label"])
        for b in shards.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=8 * BATCH)
    )
    assert seen == ROWS


def _pyarrow(folder: Path) -> None:
    seen = 0
    for path in sorted((folder / "train").glob("*.parquet")):
        pixels = np.frombuffer(pq.read_table(path)["image"].chunk(0).buffers()[1], np.uint8)
        for start in range(0, len(pixels), BATCH * 3072):
            seen += len(pixels[start : start + BATCH * 3072].copy()) // 3072
    assert seen == ROWS
