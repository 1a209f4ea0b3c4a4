"""Batches: every row once, as equal as can be, and no share of one row where that can be had."""

import math

import pytest

from raysft.job.batches import batch_sizes, fewest_rows


def as_before(rows: int, batch_size: int) -> list[int]:
    count = math.ceil(rows / batch_size)
    return [rows // count + (i < rows % count) for i in range(count)]


def test_batches_are_equal_and_complete():
    assert batch_sizes(10, 4) == [4, 3, 3]
    assert batch_sizes(8, 4) == [4, 4]
    assert batch_sizes(3, 4) == [3]


def test_last_batch_of_one_row_joins_previous():
    assert batch_sizes(3, 2) == [3]
    assert batch_sizes(7, 2) == [3, 2, 2]
    assert batch_sizes(9, 8, workers=4) == [9]
    assert batch_sizes(15, 8, workers=4) == [15]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_shares_have_two_rows_where_possible(workers):
    for rows in range(workers, 80):
        for batch_size in range(workers, 40):
            sizes = batch_sizes(rows, batch_size, workers)
            before = as_before(rows, batch_size)
            assert sum(sizes) == rows
            assert max(sizes) - min(sizes) <= 1
            if min(batch_size, rows) >= 2 * workers:
                assert fewest_rows(rows, batch_size, workers) >= 2
            if min(before) // workers >= 2 or batch_size < 2 * workers:
                assert sizes == before  # nothing changes


@pytest.mark.parametrize("fewer", [1, 2, 3])
def test_fewer_workers_have_two_rows_too(fewer):
    assert min(batch_sizes(13, 8, workers=4)) // fewer >= 2
