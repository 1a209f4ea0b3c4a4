"""Decoded rows on a worker's device: whole splits where they fit, else batches, read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch

from raysft.data.epochs import Batch, KeptSplit, SplitReader
from raysft.data.ingest import Rows

# Of a GPU's memory that is free when a split is first used; the rest is for training, which has not
# taken its share by then.
RESIDENT_SHARE = 0.25
AHEAD = 2  # batches made while one trains

Part = TypeVar("Part", Batch, Rows)


def keep_on_gpu(split: KeptSplit, device: torch.device, share: float) -> KeptSplit:
    """`split` in the memory of a GPU where it fits, for all epochs and trials; else as it is.

    share: the part of the GPU that this worker has.
    """
    if device.type != "cuda":
        return split
    free, _ = torch.cuda.mem_get_info(device)
    if split.nbytes > RESIDENT_SHARE * share * free:
        return split
    return KeptSplit(to_device(split.rows, device))


def to_device(rows: Rows, device: torch.device) -> Rows:
    """`rows` with images and labels as tensors on `device`."""
    images = torch.as_tensor(rows.images).to(device)
    labels = torch.as_tensor(rows.labels).to(device)
    return replace(rows, images=images, labels=labels)


def stage(split: SplitReader, parts: Iterator[Part], device: torch.device) -> Iterator[Part]:
    """`parts` of `split`, batches or rows, with tensors on `device`.

    What has to be read, or copied to a GPU, is so in a thread while the part before is trained on,
    and copied on a stream of its own.
    """
    if isinstance(split, KeptSplit):
        on_gpu = isinstance(split.rows.images, torch.Tensor)
        # Nothing to read and nothing to copy: a thread would only cost the CPU that trains.
        if on_gpu or device.type == "cpu":
            return _moved(parts, device)
    ahead = _read_ahead(parts)
    if device.type == "cuda":
        return _copied(ahead, device)
    return _moved(ahead, device)


def _moved(parts: Iterator[Part], device: torch.device) -> Iterator[Part]:
    for part in parts:
        yield _with_rows(part, to_device(_rows(part), device))


def _copied(parts: Iterator[Part], device: torch.device) -> Iterator[Part]:
    """`parts` on a GPU; each copy is under way while the part before it is trained on."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch annotates none
    under_way: deque[tuple[Part, torch.cuda.Event]] = deque()

    def arrived() -> Part:
        part, copied = under_way.popleft()
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        # Their memory belongs to the stream that copied: without this it would be given away while
        # training still reads it.
        _rows(part).images.record_stream(current)
        _rows(part).labels.record_stream(current)
        return part

    for part in parts:
        rows = _rows(part)
        with torch.cuda.stream(stream):
            images = _to_gpu(torch.as_tensor(rows.images), device)
            labels = _to_gpu(torch.as_tensor(rows.labels), device)
            moved = _with_rows(part, replace(rows, images=images, labels=labels))
            under_way.append((moved, stream.record_event()))
        if len(under_way) > 1:
            yield arrived()
    while under_way:
        yield arrived()


def _to_gpu(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    # From pageable memory a copy blocks the CPU until it is done, whatever `non_blocking` says.
    return values.pin_memory().to(device, non_blocking=True)


def _read_ahead(parts: Iterator[Part]) -> Iterator[Part]:
    """`parts` in their order, the next ones made in a thread meanwhile."""
    waiting: deque[Future[Part | None]] = deque()
    # A single thread, for an iterator cannot be advanced by two at once.
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        try:
            while True:
                while len(waiting) < AHEAD:
                    waiting.append(reader.submit(next, parts, None))
                part = waiting.popleft().result()
                if part is None:
                    return
                yield part
        finally:
            # An epoch that ends early must not wait for batches that nobody will train on.
            for future in waiting:
                future.cancel()


def _rows(part: Batch | Rows) -> Rows:
    return part.rows if isinstance(part, Batch) else part


def _with_rows(part: Part, rows: Rows) -> Part:
    if isinstance(part, Batch):
        return replace(part, rows=rows)
    return rows
