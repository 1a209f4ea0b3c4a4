"""Shards to the batches of one worker: read by Ray Data, kept in memory or streamed every epoch.

The order of an epoch is a function of (seed, epoch, row id) alone, so it is the same for any number
of workers; each worker takes its share of every global batch, and every row is seen exactly once an
epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raysft.data.images import fit, stored_rgb
from raysft.data.order import stratified_order
from raysft.data.shards import (
    ImageSpec,
    Manifest,
    ShardFile,
    Split,
    read_labels,
    read_table,
    unpack_rows,
)
from raysft.errors import DataError
from raysft.storage import StoragePath

MIXED_SIZE = 224
WINDOW_BYTES = 256_000_000
STORE_SHARE = 0.6
READ_HERE_BYTES = 32_000_000
READ_BYTES = 512_000_000  # of blocks that Ray Data has read and nobody has taken yet

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Rows:
    """Decoded rows: ids (n,), images (n, height, width, 3) uint8, labels (n,) int64. Kept splits
    are read-only.

    In place of images there may be features of them, float32 of any shape. Images and labels are
    arrays, or tensors on the device of a worker.
    """

    ids: np.ndarray
    images: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray) -> Rows:
        """A writable copy of some rows."""
        return Rows(self.ids[index], self.images[index], self.labels[index])


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch.

    `first` is the place of its first row in the global batch of `size` rows, so that random numbers
    drawn for the whole batch are the same however it is shared.
    """

    rows: Rows
    number: int
    first: int
    size: int


@dataclass(frozen=True)
class SplitSource:
    """Which rows of which shards make up a split, and the size they are decoded to."""

    folder: StoragePath
    files: tuple[ShardFile, ...]
    spec: ImageSpec
    ids: np.ndarray
    height: int
    width: int
    class_rows: tuple[int, ...]
    """Rows of each class."""
    counts: tuple[int, ...] = ()
    """How many of `ids` each file holds."""
    resampling: str = "bilinear"
    """How stored images are scaled to that size: nearest | bilinear | bicubic."""
    unsorted: np.ndarray | None = None
    """`ids` in the order of the rows in the files, where that is another one."""

    @property
    def ids_of_files(self) -> list[np.ndarray]:
        """Of `ids` those in each file, in the order of its rows; views."""
        return np.split(
            self.ids if self.unsorted is None else self.unsorted, np.cumsum(self.counts)[:-1]
        )

    @property
    def nbytes(self) -> int:
        """Size of the decoded images."""
        return len(self.ids) * self.height * self.width * 3


def choose_rows(
    ids: np.ndarray, labels: np.ndarray, val_rows: int, limit: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(train ids, val ids), both sorted and stratified: the first `limit` rows of a seeded order,
    split in two.
    """
    order = stratified_order(labels, seed)[:limit]
    chosen_labels = labels[order]
    again = stratified_order(chosen_labels, seed + 1)
    val, train = order[again[:val_rows]], order[again[val_rows:]]
    return np.sort(ids[train]), np.sort(ids[val])


def split_sources(
    folder: StoragePath,
    manifest: Manifest,
    val_rows: int,
    limit: int | None,
    seed: int,
    image_sizes: Set[int | None] = frozenset({None}),
    interpolations: Set[str | None] = frozenset({None}),
) -> dict[SplitName, SplitSource]:
    """The three splits of a data set; validation is taken from train where it has no split of its
    own.
    """
    height, width = decoded_size(manifest.image, image_sizes)
    resampling = choose_resampling(manifest.image, (height, width), interpolations)
    train, test = (
        read_labels(folder, manifest.splits["train"]),
        read_labels(folder, manifest.splits["test"]),
    )
    own_val = manifest.splits.get("val")
    train_ids, val_ids = choose_rows(*train, 0 if own_val else val_rows, limit, seed)
    val = train
    if own_val is not None:
        val = read_labels(folder, own_val)
        val_ids = val[0]

    def source(
        split: Split, known: tuple[np.ndarray, np.ndarray], chosen: np.ndarray
    ) -> SplitSource:
        ids, labels = known
        chosen = np.sort(chosen)
        among = _among(ids, chosen)
        class_rows = np.bincount(labels[among], minlength=len(manifest.classes))
        ends = np.cumsum([file.rows for file in split.files])[:-1]
        counts, in_files = [int(part.sum()) for part in np.split(among, ends)], ids[among]
        return SplitSource(
            folder,
            split.files,
            manifest.image,
            chosen,
            height,
            width,
            tuple(class_rows.tolist()),
            tuple(counts),
            resampling,
            None if np.array_equal(in_files, chosen) else in_files,
        )

    return {
        "train": source(manifest.splits["train"], train, train_ids),
        "val": source(own_val or manifest.splits["train"], val, val_ids),
        "test": source(manifest.splits["test"], test, test[0]),
    }


def decoded_size(spec: ImageSpec, image_sizes: Set[int | None]) -> tuple[int, int]:
    """(height, width) of decoded images, of which the workers make what their networks see.

    image_sizes: those of all networks, None for one that takes images as they are. Stored images
    stay as they are where that is no larger than what any network sees, which saves memory; images
    of mixed sizes get the largest.
    """
    sizes = {size or default_image_size(spec) for size in image_sizes} or {None}
    if spec.encoding != "raw":
        return (max(size for size in sizes if size is not None),) * 2
    height, width = spec.shape[:2]
    return (
        (height, width) if None in sizes else (min(max(s for s in sizes if s), height, width),) * 2
    )


def choose_resampling(
    spec: ImageSpec, size: tuple[int, int], interpolations: Set[str | None]
) -> str:
    """How images are scaled when they are decoded: as the job says, bilinear where it says nothing.

    interpolations: those of all trials, None for one that names none; raises DataError where they
    are several and images have to be scaled, which is done once for all trials.
    """
    if spec.encoding == "raw" and spec.shape[:2] == size:
        return "bilinear"
    kernels = {
        each or "bilinear" for each in interpolations
    }  # null is that where images are decoded
    if len(kernels) > 1:
        raise DataError(
            "model.interpolation",
            "differs between trials, but images of these sizes are scaled once for all of them",
            "name one in model.interpolation, and none in search.space",
        )
    return next(iter(kernels), "bilinear")


def default_image_size(spec: ImageSpec) -> int | None:
    """Height and width of what a network sees that asks for none; None: as stored."""
    return None if spec.encoding == "raw" else MIXED_SIZE


# --- reading with Ray Data ---------------------------------------------------------------------


def read_split(source: SplitSource, tasks: int = 2) -> Rows:
    """A whole split sorted by row id, read and decoded by Ray Data, or here where its start would
    take longer.

    tasks: how many of Ray Data read at the same time.
    """
    n = len(source.ids)
    rows = Rows(
        source.ids, np.empty((n, source.height, source.width, 3), np.uint8), np.empty(n, np.int64)
    )
    found = 0
    parts = (
        _rows_of(_read_shards(pa.Table.from_pylist([asdict(file)]), source), source)
        for file in source.files
    )
    for part in (
        parts if source.nbytes <= READ_HERE_BYTES else stream_rows(source, source.files, tasks)
    ):
        at = np.searchsorted(source.ids, part.ids)
        rows.images[at], rows.labels[at] = part.images, part.labels
        found += len(part)
    if found != n:
        raise RuntimeError(f"{source.folder}: {found} of {n} rows came out of the shards")
    return rows


def stream_rows(
    source: SplitSource, files: tuple[ShardFile, ...], tasks: int = 2
) -> Iterator[Rows]:
    """The chosen rows of some shards in the order of `files`, decoded, one `Rows` a block.

    The tasks reserve no CPU: training workers hold them all, and reading must never wait for
    training.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # Without a limit Ray Data fills half of the object store with blocks that are read long before
    # their turn.
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=READ_BYTES
    )
    named = [asdict(file) for file in files]
    read = partial(_read_shards, source=replace(source, files=(), counts=(), unsorted=None))
    blocks = ray.data.from_items(named, override_num_blocks=len(named)).map_batches(
        read,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=min(tasks, len(named))),
    )
    for table in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        yield _rows_of(table, source)


def _rows_of(table: pa.Table, source: SplitSource) -> Rows:
    ids, images, labels = unpack_rows(table, ImageSpec("raw", source.height, source.width))
    return Rows(ids, images, labels.astype(np.int64))


def _read_shards(batch: pa.Table, source: SplitSource) -> pa.Table:
    """The task of Ray Data: chosen rows of the shards in `batch`, images as raw bytes of the
    decoded size.
    """
    table = pa.concat_tables(
        [read_table(source.folder, ShardFile(**file)) for file in batch.to_pylist()]
    )
    table = table.filter(pa.array(_among(table["id"].to_numpy(), source.ids)))
    if source.spec.encoding == "raw" and source.spec.shape[:2] == (source.height, source.width):
        return table
    return table.set_column(1, "image", _decode(table, source))


def _among(ids: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Which of `ids` are among the `chosen` ones, which are sorted."""
    at = np.searchsorted(chosen, ids)
    return (at < len(chosen)) & (chosen[np.minimum(at, len(chosen) - 1)] == ids)


def _decode(table: pa.Table, source: SplitSource) -> pa.Array:
    ids, images, _ = unpack_rows(table, source.spec)
    out = np.empty((len(ids), source.height, source.width, 3), np.uint8)
    for i, image in enumerate(images):
        out[i] = fit(
            stored_rgb(image, f"row {ids[i]}", source.spec.decoding),
            source.height,
            source.width,
            source.resampling,
        )
    return pa.Array.from_buffers(
        pa.binary(int(np.prod(out.shape[1:]))), len(out), [None, pa.py_buffer(out)]
    )


# --- epochs ------------------------------------------------------------------------------------


def rank_slice(size: int, rank: int, workers: int) -> slice:
    """The part of a global batch that one worker trains on."""
    return slice(size * rank // workers, size * (rank + 1) // workers)


def epoch_order(seed: int, epoch: int, rows: int, part: int = 0) -> np.ndarray:
    """The order of an epoch, a function of its arguments alone."""
    return np.random.default_rng([seed, epoch, part]).permutation(rows)


class KeptSplit:
    """A split that lies in memory, decoded once, shared by every trial and worker of the node."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.pixels = math.prod(
            rows.images.shape[1:-1]
        )  # 1 where features are kept in place of images

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images."""
        return self.rows.images.shape[1], self.rows.images.shape[2]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Size of the images, or of the features in their place."""
        return self.rows.images.nbytes

    def epoch(
        self, seed: int, epoch: int, sizes: Sequence[int], rank: int, workers: int, first: int = 0
    ) -> Iterator[Batch]:
        """One worker's share of every global batch of an epoch from batch number `first` on,
        shuffled.

        sizes: of the batches of the whole epoch; see `raysft.job.batches`.
        """
        order, start = epoch_order(seed, epoch, len(self)), 0
        for number, size in enumerate(sizes):
            mine = rank_slice(size, rank, workers)
            if number >= first:
                yield Batch(
                    self.rows.take(order[start + mine.start : start + mine.stop]),
                    number,
                    mine.start,
                    size,
                )
            start += size

    def in_order(self, batch_size: int, rank: int, workers: int) -> Iterator[Rows]:
        """One worker's share of all rows, not shuffled, for validation and test."""
        mine = rank_slice(len(self), rank, workers)
        for start in range(mine.start, mine.stop, batch_size):
            yield self.rows.take(np.arange(start, min(start + batch_size, mine.stop)))


class StreamedSplit:
    """A split too large to keep: read again every epoch in windows, shuffled by shard and inside
    each window.

    Which rows come where is known before any is read, so a worker decodes those of its own share
    alone.
    """

    def __init__(self, source: SplitSource, window_bytes: int = WINDOW_BYTES) -> None:
        self.source = source
        self.pixels = source.height * source.width
        self.size = source.height, source.width
        self.window_rows = max(1, window_bytes // (source.height * source.width * 3))

    def __len__(self) -> int:
        return len(self.source.ids)

    def epoch(
        self, seed: int, epoch: int, sizes: Sequence[int], rank: int, workers: int, first: int = 0
    ) -> Iterator[Batch]:
        """As `Kept.epoch`; the order is another one, and as independent of the number of
        workers.
        """
        files = epoch_order(seed, epoch, len(self.source.files), part=1)
        mine = [rank_slice(size, rank, workers) for size in sizes]
        every = self._ids(files)

        def windows() -> Iterator[np.ndarray]:
            for i, ids in enumerate(self._windows(every)):
                yield ids[epoch_order(seed, epoch, len(ids), part=2 + i)]

        for number, rows in enumerate(self._shares(files, windows, sizes, mine, first), first):
            yield Batch(rows, number, mine[number].start, sizes[number])

    def in_order(self, batch_size: int, rank: int, workers: int) -> Iterator[Rows]:
        """As `Kept.in_order`, interleaved by batch instead of cut in contiguous parts."""
        n, files = len(self), np.arange(len(self.source.files))
        sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
        mine = [rank_slice(size, rank, workers) for size in sizes]
        yield from self._shares(files, partial(self._windows, self._ids(files)), sizes, mine)

    def _ids(self, files: np.ndarray) -> np.ndarray:
        """The ids of all rows, files in the order given."""
        of_files = self.source.ids_of_files
        return np.concatenate([of_files[i] for i in files])

    def _windows(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """The ids of each window of `window_rows` rows (the last may be smaller)."""
        for start in range(0, len(ids), self.window_rows):
            yield ids[start : start + self.window_rows]

    def _shares(
        self,
        files: np.ndarray,
        windows: Callable[[], Iterator[np.ndarray]],
        sizes: Sequence[int],
        mine: list[slice],
        first: int = 0,
    ) -> Iterator[Rows]:
        """The part `mine` of each batch from batch number `first` on, where it has any rows, in the
        order of `windows`.

        windows: makes the ids of each anew; of millions of rows even their order takes memory.
        """
        wanted = np.zeros(len(self), bool)
        for number, start in enumerate(np.cumsum([0, *sizes[:-1]])):
            wanted[start + mine[number].start : start + mine[number].stop] = number >= first
        if not wanted.any():
            return

        def ids_wanted() -> Iterator[np.ndarray]:
            start = 0
            for ids in windows():
                mask = wanted[start : start + len(ids)]
                start += len(ids)
                if mask.any():
                    yield ids[mask]

        source = (
            self.source
            if wanted.all()
            else replace(self.source, ids=np.sort(np.concatenate([*ids_wanted()])))
        )
        needed = {
            i for i, ids in enumerate(self.source.ids_of_files) if _among(ids, source.ids).any()
        }
        stream = stream_rows(source, tuple(self.source.files[i] for i in files if i in needed))
        read = _cut(stream, map(len, ids_wanted()))
        shuffled = (
            rows.take(_places(rows.ids, ids)) for rows, ids in zip(read, ids_wanted(), strict=True)
        )
        yield from _cut(shuffled, (n for part in mine[first:] if (n := part.stop - part.start)))


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of the `wanted` ids is among `ids`, which are the same ones."""
    order = ids.argsort()
    return order[np.searchsorted(ids, wanted, sorter=order)]


def _cut(parts: Iterator[Rows], sizes: Iterable[int]) -> Iterator[Rows]:
    """The rows of `parts`, in order, in pieces of the given sizes."""
    held: list[Rows] = []
    have = 0
    for size in sizes:
        while have < size:
            part = next(parts, None)
            if part is None:
                raise RuntimeError("the stream ended before its last row")
            held.append(part)
            have += len(part)
        joined = (
            held[0]
            if len(held) == 1
            else Rows(
                *(
                    np.concatenate([getattr(r, f) for r in held])
                    for f in ("ids", "images", "labels")
                )
            )
        )
        yield Rows(joined.ids[:size], joined.images[:size], joined.labels[:size])
        held, have = (
            [Rows(joined.ids[size:], joined.images[size:], joined.labels[size:])],
            have - size,
        )


SplitReader = KeptSplit | StreamedSplit


def keep_or_stream(
    sources: dict[SplitName, SplitSource], budget_gb: float, store_bytes: float
) -> tuple[Literal["kept", "streamed"], str]:
    """Whether the splits are kept or streamed, and why, in words for the console.

    store_bytes: size of Ray's object store, of which kept images may take `STORE_SHARE`: blocks
    under way need the rest.
    """
    need = sum(source.nbytes for source in sources.values())
    limit, name = min(
        (budget_gb * 1e9, f"data.budget_gb {budget_gb:g}"),
        (
            STORE_SHARE * store_bytes,
            f"the {_size(STORE_SHARE * store_bytes)} free in the object store",
        ),
    )
    if need <= limit:
        return "kept", f"{_size(need)} decoded, within {name}"
    return "streamed", f"{_size(need)} decoded, more than {name}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def open_reader(value: Any) -> SplitReader:
    """The reader of what was handed to a worker: decoded rows or where to stream them from."""
    return KeptSplit(value) if isinstance(value, Rows) else StreamedSplit(value)
