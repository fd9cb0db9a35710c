"""What can be told from labels alone."""

from __future__ import annotations

import numpy as np

from ppfed.images.types import Int64Array


def rank_in_class(labels: Int64Array) -> Int64Array:
    """For each image, how many of its class came before it."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return rank
