"""An order of labelled rows in which every prefix holds each class in its share."""

from __future__ import annotations

import numpy as np


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of all rows, shuffled by the seed; every prefix holds each class in its share.

    labels: (n,) integers.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    # Rows are sorted by how far along their own shuffled class they are, from 0 to 1: after any
    # fraction of the order, about that fraction of every class has come.
    progress = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        progress[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Classes of one size tie everywhere; without a draw they would come in the same order always.
    ties = rng.random(len(labels))
    return np.lexsort((ties, progress))
