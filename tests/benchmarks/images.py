"""CIFAR-shaped images made at random: a folder as people have them, and shards. What they show does
not matter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from raysft.data.ingest import Rows
from raysft.data.shards import ImageSpec, Manifest, Split, write_manifest, write_shard

SIDE, CLASSES = 32, 10


def folder(root: Path, train: int, test: int) -> Path:
    """ROOT/train and ROOT/test with CLASS/IMAGE.png."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            target = root / split / f"class{i % CLASSES}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(
                target / f"{i:06d}.png"
            )
    return root


def rows(count: int) -> Rows:
    """Decoded rows as raysft keeps them in memory."""
    rng = np.random.default_rng(0)
    return Rows(
        np.arange(count),
        rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        np.arange(count) % CLASSES,
    )


def shards(root: Path, train: int, test: int, rows_a_shard: int = 5_000) -> Manifest:
    """A data set of raysft in `root`."""
    rng, spec = np.random.default_rng(0), ImageSpec("raw", SIDE, SIDE)
    splits = {}
    for name, rows in (("train", train), ("test", test)):
        files = []
        (root / name).mkdir(parents=True)
        for index, start in enumerate(range(0, rows, rows_a_shard)):
            count = min(rows_a_shard, rows - start)
            images = rng.integers(0, 256, (count, *spec.shape), np.uint8)
            labels = rng.integers(0, CLASSES, count).astype(np.int32)
            files.append(
                write_shard(
                    root / name / f"{index:04d}.parquet",
                    spec,
                    np.arange(start, start + count),
                    images,
                    labels,
                )
            )
        splits[name] = Split(rows, tuple(files))
    manifest = Manifest(tuple("abcdefghij"), spec, (0.5,) * 3, (0.25,) * 3, splits)
    write_manifest(root, manifest)
    return manifest
