"""Decoded rows on the device of a worker: whole splits where they fit, otherwise batch by batch,
the next one ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch

from raysft.data.ingest import Batch, KeptSplit, Rows, SplitReader

RESIDENT_SHARE = (
    0.25  # of a GPU's memory that is free when a split is first used; the rest is for training
)
AHEAD = 2  # batches made while one trains

Part = TypeVar("Part", Batch, Rows)


def keep_on_gpu(split: KeptSplit, device: torch.device, share: float) -> KeptSplit:
    """`split` in the memory of a GPU where it fits, for all epochs and trials; else as it is.

    share: the part of the GPU that this worker has.
    """
    if (
        device.type != "cuda"
        or split.nbytes > RESIDENT_SHARE * share * torch.cuda.mem_get_info(device)[0]
    ):
        return split
    return KeptSplit(to_device(split.rows, device))


def to_device(rows: Rows, device: torch.device) -> Rows:
    """`rows` with images and labels as tensors on `device`."""
    images, labels = torch.as_tensor(rows.images), torch.as_tensor(rows.labels)
    return replace(rows, images=images.to(device), labels=labels.to(device))


def stage(split: SplitReader, parts: Iterator[Part], device: torch.device) -> Iterator[Part]:
    """`parts` of `split`, batches or rows, with tensors on `device`.

    What has to be read, or copied to a GPU, is so in a thread while the part before is trained on,
    and copied on a stream of its own.
    """
    if isinstance(split, KeptSplit) and (
        device.type == "cpu" or isinstance(split.rows.images, torch.Tensor)
    ):
        return (_with_rows(part, to_device(_rows(part), device)) for part in parts)
    return (
        _copied(_ahead(parts), device)
        if device.type == "cuda"
        else (_with_rows(part, to_device(_rows(part), device)) for part in _ahead(parts))
    )


def _copied(parts: Iterator[Part], device: torch.device) -> Iterator[Part]:
    """`parts` on a GPU; each copy is under way while the part before it is trained on."""
    stream = torch.cuda.Stream(device)
    under_way: deque[tuple[Part, torch.cuda.Event]] = deque()

    def arrived() -> Part:
        part, copied = under_way.popleft()
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in (_rows(part).images, _rows(part).labels):
            tensor.record_stream(
                current
            )  # its memory is not given away before training has read it
        return part

    for part in parts:
        rows = _rows(part)
        with torch.cuda.stream(stream):
            images, labels = (
                torch.as_tensor(v).pin_memory().to(device, non_blocking=True)
                for v in (rows.images, rows.labels)
            )
            under_way.append(
                (
                    _with_rows(part, replace(rows, images=images, labels=labels)),
                    stream.record_event(),
                )
            )
        if len(under_way) > 1:
            yield arrived()
    while under_way:
        yield arrived()


def _ahead(parts: Iterator[Part]) -> Iterator[Part]:
    """`parts` in their order, the next ones made in a thread meanwhile."""
    waiting: deque[Future[Part | None]] = deque()
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
            for future in waiting:
                future.cancel()


def _rows(part: Batch | Rows) -> Rows:
    return part.rows if isinstance(part, Batch) else part


def _with_rows(part: Part, rows: Rows) -> Part:
    return replace(cast(Any, part), rows=rows) if isinstance(part, Batch) else rows  # type: ignore[return-value]
