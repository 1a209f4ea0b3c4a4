"""Decoded rows to the batches of one worker, kept in memory or streamed from the shards.

The order of an epoch is a function of (seed, epoch, row id) alone, so it is the same for any number
of workers; each worker takes its share of every global batch, and every row is seen exactly once an
epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, final

import numpy as np

from raysft.data.ingest import Rows, join_rows, stream_rows
from raysft.data.layout import SplitName
from raysft.data.shards import ShardFile
from raysft.data.splits import SplitSource, is_among

WINDOW_BYTES = 256_000_000  # of decoded images that a worker holds to shuffle them
STORE_SHARE = 0.6  # of the object store; blocks that are under way need the rest


@final
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


def rank_slice(size: int, rank: int, workers: int) -> slice:
    """The part of a global batch that one worker trains on."""
    return slice(size * rank // workers, size * (rank + 1) // workers)


def epoch_order(seed: int, epoch: int, rows: int, part: int = 0) -> np.ndarray:
    """A random order of rows, a function of its arguments alone."""
    rng = np.random.default_rng([seed, epoch, part])
    return rng.permutation(rows)


class KeptSplit:
    """A split that lies in memory, decoded once, shared by every trial and worker of the node."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        # Where features are kept in place of images, they have one axis, and this is 1.
        self.pixels = math.prod(rows.images.shape[1:-1])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images."""
        return self.rows.images.shape[1], self.rows.images.shape[2]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Size of the images, or of the features in their place."""
        return int(self.rows.images.nbytes)

    def epoch(
        self, seed: int, epoch: int, sizes: Sequence[int], rank: int, workers: int, first: int = 0
    ) -> Iterator[Batch]:
        """One worker's share of every global batch of an epoch, shuffled.

        sizes: of the batches of the whole epoch, of which those before number `first` are left out;
        see `raysft.job.batches`.
        """
        order = epoch_order(seed, epoch, len(self))
        start = 0
        for number, size in enumerate(sizes):
            mine = rank_slice(size, rank, workers)
            if number >= first:
                chosen = order[start + mine.start : start + mine.stop]
                yield Batch(self.rows.take(chosen), number, mine.start, size)
            start += size

    def in_order(self, batch_size: int, rank: int, workers: int) -> Iterator[Rows]:
        """One worker's share of all rows, not shuffled, for validation and test."""
        mine = rank_slice(len(self), rank, workers)
        for start in range(mine.start, mine.stop, batch_size):
            stop = min(start + batch_size, mine.stop)
            yield self.rows.take(np.arange(start, stop))


class StreamedSplit:
    """A split too large to keep: read again every epoch in windows.

    The order of the shards is shuffled, and the rows inside each window. Which rows come where is
    known before any is read, so a worker decodes those of its own share alone.
    """

    def __init__(self, source: SplitSource, window_bytes: int = WINDOW_BYTES) -> None:
        self.source = source
        self.size = source.height, source.width
        self.pixels = source.height * source.width
        self.window_rows = max(1, window_bytes // (self.pixels * 3))

    def __len__(self) -> int:
        return len(self.source.ids)

    def epoch(
        self, seed: int, epoch: int, sizes: Sequence[int], rank: int, workers: int, first: int = 0
    ) -> Iterator[Batch]:
        """As `KeptSplit.epoch`, in another order, as independent of the number of workers."""
        # Part 0 is the order of a kept split, 1 that of the shards, from 2 on those of the windows.
        files = epoch_order(seed, epoch, len(self.source.files), part=1)
        ids = self._ids_in(files)
        mine = [rank_slice(size, rank, workers) for size in sizes]

        def shuffled_windows() -> Iterator[np.ndarray]:
            for number, window in enumerate(self._windows(ids)):
                yield window[epoch_order(seed, epoch, len(window), part=2 + number)]

        parts = self._read(files, shuffled_windows, sizes, mine, first)
        for number, rows in enumerate(parts, first):
            yield Batch(rows, number, mine[number].start, sizes[number])

    def in_order(self, batch_size: int, rank: int, workers: int) -> Iterator[Rows]:
        """As `KeptSplit.in_order`, interleaved by batch instead of cut in contiguous parts."""
        n = len(self)
        files = np.arange(len(self.source.files))
        sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
        mine = [rank_slice(size, rank, workers) for size in sizes]
        windows = partial(self._windows, self._ids_in(files))
        yield from self._read(files, windows, sizes, mine)

    def _ids_in(self, files: np.ndarray) -> np.ndarray:
        """The ids of all rows, files in the order given."""
        of_files = self.source.ids_of_files
        return np.concatenate([of_files[index] for index in files])

    def _windows(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """The ids of each window of `window_rows` rows (the last may be smaller)."""
        for start in range(0, len(ids), self.window_rows):
            yield ids[start : start + self.window_rows]

    def _read(
        self,
        files: np.ndarray,
        windows: Callable[[], Iterator[np.ndarray]],
        sizes: Sequence[int],
        mine: list[slice],
        first: int = 0,
    ) -> Iterator[Rows]:
        """The part `mine` of each batch from number `first` on, in the order of `windows`.

        A batch of which this worker has no rows is left out.
        """
        wanted = _wanted(len(self), sizes, mine, first)
        if not wanted.any():
            return

        # Made anew each time it is asked for: of millions of rows even their order takes memory.
        def wanted_ids() -> Iterator[np.ndarray]:
            start = 0
            for ids in windows():
                mask = wanted[start : start + len(ids)]
                start += len(ids)
                if mask.any():
                    yield ids[mask]

        source = self.source
        if not wanted.all():
            source = replace(source, ids=np.sort(np.concatenate(list(wanted_ids()))))
        shards = self._shards_with(source.ids, files)
        # Rows come in the order of the shards; cut into windows, each is put into the order of its
        # ids, and all of them are cut again into the batches of this worker.
        read = _cut(stream_rows(source, shards), map(len, wanted_ids()))
        ordered = (
            rows.take(_positions(rows.ids, ids))
            for rows, ids in zip(read, wanted_ids(), strict=True)
        )
        lengths = [part.stop - part.start for part in mine[first:]]
        yield from _cut(ordered, [length for length in lengths if length])

    def _shards_with(self, ids: np.ndarray, files: np.ndarray) -> tuple[ShardFile, ...]:
        """Those of `files` that hold any of the rows `ids`; of others not a byte is read."""
        of_files = self.source.ids_of_files
        needed = [index for index in files if is_among(of_files[index], ids).any()]
        return tuple(self.source.files[index] for index in needed)


def _wanted(rows: int, sizes: Sequence[int], mine: list[slice], first: int) -> np.ndarray:
    """(rows,) bool: whether this worker trains on the row that comes at each place of an epoch."""
    wanted = np.zeros(rows, bool)
    start = 0
    for number, size in enumerate(sizes):
        part = mine[number]
        wanted[start + part.start : start + part.stop] = number >= first
        start += size
    return wanted


def _positions(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of the `wanted` ids is among `ids`, which are the same ones."""
    order = ids.argsort()
    positions: np.ndarray = order[np.searchsorted(ids, wanted, sorter=order)]
    return positions


def _cut(parts: Iterator[Rows], lengths: Iterable[int]) -> Iterator[Rows]:
    """The rows of `parts`, in order, in pieces of the given lengths."""
    held: list[Rows] = []
    have = 0
    for length in lengths:
        while have < length:
            part = next(parts, None)
            if part is None:
                raise RuntimeError("the stream ended before its last row")
            held.append(part)
            have += len(part)
        # Joined once a piece and not once a part, of which a large piece may have many.
        joined = join_rows(held)
        yield joined.part(None, length)
        held = [joined.part(length, None)]
        have -= length


SplitReader = KeptSplit | StreamedSplit


def open_reader(split: Rows | SplitSource) -> SplitReader:
    """The reader of what was handed to a worker: decoded rows, or where to stream them from."""
    return KeptSplit(split) if isinstance(split, Rows) else StreamedSplit(split)


def keep_or_stream(
    sources: dict[SplitName, SplitSource], budget_gb: float, store_bytes: float
) -> tuple[Literal["kept", "streamed"], str]:
    """Whether the splits are kept or streamed, and why, in words for the console.

    store_bytes: size of Ray's object store, of which kept images may take `STORE_SHARE`.
    """
    need = sum(source.nbytes for source in sources.values())
    budget = budget_gb * 1e9
    room = STORE_SHARE * store_bytes
    if budget <= room:
        limit, name = budget, f"data.budget_gb {budget_gb:g}"
    else:
        limit, name = room, f"the {_format_bytes(room)} free in the object store"
    if need <= limit:
        return "kept", f"{_format_bytes(need)} decoded, within {name}"
    return "streamed", f"{_format_bytes(need)} decoded, more than {name}"


def _format_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
