"""Decoded rows on the device of a worker."""

import threading

import numpy as np
import pytest
import torch

from raysft.data.epochs import KeptSplit, StreamedSplit
from raysft.data.ingest import Rows
from raysft.data.shards import ImageSpec
from raysft.data.splits import SplitSource
from raysft.data.staging import keep_on_gpu, stage, to_device
from raysft.job.batches import batch_sizes

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
ROWS = Rows(np.arange(23), RNG.integers(0, 256, (23, 4, 4, 3), np.uint8), np.arange(23) % 3)
STREAMED = StreamedSplit(SplitSource(None, (), ImageSpec("raw", 4, 4), ROWS.ids, 4, 4, (8, 8, 7)))


def parts():
    return KeptSplit(ROWS).epoch(3, 1, batch_sizes(len(ROWS), 5), 0, 2)


@pytest.mark.parametrize("split", [KeptSplit(ROWS), STREAMED])
def test_batches_come_as_tensors_in_their_order(split):
    found = list(stage(split, parts(), CPU))
    for batch, expected in zip(found, parts(), strict=True):
        assert (batch.number, batch.first, batch.size) == (
            expected.number,
            expected.first,
            expected.size,
        )
        assert torch.equal(batch.rows.images, torch.from_numpy(expected.rows.images))
        assert torch.equal(batch.rows.labels, torch.from_numpy(expected.rows.labels))


def test_rows_come_staged_as_well():
    found = list(stage(STREAMED, KeptSplit(ROWS).in_order(10, 0, 1), CPU))
    assert np.concatenate([rows.ids for rows in found]).tolist() == list(range(23))


def test_split_on_device_gives_same_batches():
    there = KeptSplit(to_device(ROWS, CPU))
    here = there.epoch(3, 1, batch_sizes(len(ROWS), 5), 0, 2)
    for batch, expected in zip(stage(there, here, CPU), parts(), strict=True):
        assert torch.equal(batch.rows.images, torch.from_numpy(expected.rows.images))
    assert keep_on_gpu(there, CPU, 1.0) is there


def test_next_batch_is_read_ahead():
    second = threading.Event()

    def read():
        for i, batch in enumerate(parts()):
            if i == 1:
                second.set()
            yield batch

    assert not second.is_set()
    batches = stage(STREAMED, read(), CPU)
    next(batches)
    assert second.wait(10)
    batches.close()


def test_reading_errors_are_raised_to_the_consumer():
    def read():
        yield next(parts())
        raise OSError("torn")

    batches = stage(STREAMED, read(), CPU)
    next(batches)
    with pytest.raises(OSError, match="torn"):
        next(batches)


def test_epoch_left_early_leaves_no_thread():
    batches = stage(STREAMED, parts(), CPU)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
