"""Shards to decoded rows, read by Ray Data in tasks that hold no CPU of the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
import pyarrow as pa

from raysft.data.images import fit, stored_rgb
from raysft.data.shards import ImageSpec, ShardFile, read_table, unpack_rows
from raysft.data.splits import SplitSource, is_among

READ_HERE_BYTES = 32_000_000  # decoded: less is read sooner than Ray Data starts
READ_BYTES = 512_000_000  # of blocks that Ray Data has read and nobody has taken yet


@final
@dataclass(frozen=True)
class Rows:
    """Decoded rows: ids (n,), images (n, height, width, 3) uint8, labels (n,) int64.

    In place of images there may be features of them, float32 of any shape. Images and labels are
    arrays, or tensors on the device of a worker.
    """

    # Not a union of both: what asks for them knows which it has, and NumPy and torch share no type.
    ids: np.ndarray
    images: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray) -> Rows:
        """A copy of some rows, which may be written to."""
        # What Ray keeps for all workers of a node is read-only, and torch warns of such arrays.
        return Rows(self.ids[index], self.images[index], self.labels[index])

    def part(self, start: int | None, stop: int | None) -> Rows:
        """The rows from `start` to `stop`, not copied."""
        mine = slice(start, stop)
        return Rows(self.ids[mine], self.images[mine], self.labels[mine])


def join_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, in order; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def read_split(source: SplitSource, tasks: int = 2) -> Rows:
    """A whole split sorted by row id, read by Ray Data, or here where its start would take longer.

    tasks: how many of Ray Data read at the same time.
    """
    n = len(source.ids)
    # Allocated once and filled by place: joining the blocks would need the memory twice.
    images = np.empty((n, source.height, source.width, 3), np.uint8)
    labels = np.empty(n, np.int64)
    small = source.nbytes <= READ_HERE_BYTES
    parts = _read_here(source) if small else stream_rows(source, source.files, tasks)
    found = 0
    for part in parts:
        at = np.searchsorted(source.ids, part.ids)
        images[at] = part.images
        labels[at] = part.labels
        found += len(part)
    if found != n:
        raise RuntimeError(f"{source.folder}: {found} of {n} rows came out of the shards")
    return Rows(source.ids, images, labels)


def _read_here(source: SplitSource) -> Iterator[Rows]:
    for file in source.files:
        table = pa.Table.from_pylist([asdict(file)])
        yield _to_rows(_read_shards(table, source), source)


def stream_rows(
    source: SplitSource, files: tuple[ShardFile, ...], tasks: int = 2
) -> Iterator[Rows]:
    """The chosen rows of some shards in the order of `files`, decoded, one `Rows` a block."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # The order of an epoch is known before it is read, and must not depend on which task is faster.
    context.execution_options.preserve_order = True
    # Without a limit Ray Data fills half of the object store with blocks that are read long before
    # their turn.
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=READ_BYTES
    )
    named = [asdict(file) for file in files]
    # Sent with every task, so without what no task needs: a task gets its file as a row.
    read = partial(_read_shards, source=replace(source, files=(), counts=(), unsorted=None))
    blocks = ray.data.from_items(named, override_num_blocks=len(named)).map_batches(
        read,
        batch_size=1,
        batch_format="pyarrow",
        # Training workers hold all CPUs, and reading must never wait for training.
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=min(tasks, len(named))),
    )
    for table in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        yield _to_rows(table, source)


def _to_rows(table: pa.Table, source: SplitSource) -> Rows:
    decoded = ImageSpec("raw", source.height, source.width)
    ids, images, labels = unpack_rows(table, decoded)
    return Rows(ids, images, labels.astype(np.int64))


def _read_shards(batch: pa.Table, source: SplitSource) -> pa.Table:
    """The task of Ray Data: the chosen rows of the shards that `batch` names, as raw images."""
    shards = [ShardFile(**file) for file in batch.to_pylist()]
    table = pa.concat_tables([read_table(source.folder, shard) for shard in shards])
    # Before decoding, which is what takes time.
    table = table.filter(pa.array(is_among(table["id"].to_numpy(), source.ids)))
    as_stored = source.spec.encoding == "raw"
    if as_stored and source.spec.shape[:2] == (source.height, source.width):
        return table
    return table.set_column(1, "image", _decode(table, source))


def _decode(table: pa.Table, source: SplitSource) -> pa.Array:
    ids, images, _ = unpack_rows(table, source.spec)
    pixels = np.empty((len(ids), source.height, source.width, 3), np.uint8)
    for index, stored in enumerate(images):
        image = stored_rgb(stored, f"row {ids[index]}", source.spec.decoding)
        pixels[index] = fit(image, source.height, source.width, source.resampling)
    raw = ImageSpec("raw", source.height, source.width)
    return pa.Array.from_buffers(raw.arrow_type, len(pixels), [None, pa.py_buffer(pixels)])
