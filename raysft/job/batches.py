"""How the rows of an epoch are cut into batches.

One answer for the plan, training, learning rates and progress.
"""

from __future__ import annotations

import math

LEAST_ROWS = 2  # of a worker's share: the variance of a single row is nothing to normalise by


def batch_sizes(rows: int, batch_size: int, workers: int = 1) -> list[int]:
    """Sizes of the global batches of an epoch: as few as may be, equal to within one row.

    Where one of `workers` would have a share of a single row, the last batch joins those before it,
    so that all have two. Where `batch_size` is below two rows a worker that cannot be; see
    `fewest_rows`.

    workers: the most that the job may have, so that batches stay the same while workers come and
    go.
    """
    count = math.ceil(rows / batch_size)
    if batch_size >= LEAST_ROWS * workers:
        # Batch normalisation cannot be trained on a share of one row.
        most = rows // (LEAST_ROWS * workers)
        count = max(1, min(count, most))
    # Full batches and a rest would weigh the few rows of the rest more than all others.
    return [rows // count + (number < rows % count) for number in range(count)]


def fewest_rows(rows: int, batch_size: int, workers: int) -> int:
    """Rows of the smallest share of a batch that one of `workers` trains on."""
    smallest = min(batch_sizes(rows, batch_size, workers))
    return smallest // workers
