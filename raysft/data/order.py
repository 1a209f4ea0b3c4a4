"""An order of labelled rows in which every prefix holds each class in its share."""

from __future__ import annotations

import numpy as np


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of all rows such that every prefix holds each class in its share, shuffled by the
    seed.

    labels: (n,) integers. Rows are sorted by their relative place in their own shuffled class.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.random(len(labels)), place))
