"""Find the order of the pixels in a block when every block was permuted alike, from ciphertexts alone.

In photographs the mean squared difference of two pixels grows with their distance. So the pixels of a block are laid
on the square lattice such that differences and distances go together best: a quadratic assignment.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import quadratic_assignment

from ppfed.images.types import UInt8Array

IndexArray = npt.NDArray[np.intp]


def pixel_order(blocks: UInt8Array, *, generator: np.random.Generator, starts: int = 20) -> IndexArray:
    """Find which pixel of a permuted block belongs where.

    Parameters
    ----------
    blocks : uint8 array, (N, B, P, P, C)
        All permuted alike; pixels whole.
    generator : numpy Generator
        Draws where to start.
    starts : int
        The best of so many is kept.

    Returns
    -------
    intp array, (P * P,)
        Pixel number i, row by row, is pixel ``order[i]`` of a permuted block: up to a turn or mirror image, which
        nothing inside blocks tells.
    """
    side, channels = blocks.shape[2], blocks.shape[4]
    values = blocks.reshape(-1, side * side, channels).astype(np.float64)
    # Rough blocks would outvote all others.
    offset = values - values.mean(axis=1, keepdims=True)
    offset /= np.sqrt((offset * offset).mean(axis=(1, 2), keepdims=True) + 4)
    flat = offset.transpose(0, 2, 1).reshape(-1, side * side)
    product = flat.T @ flat / len(flat)
    own = product.diagonal()
    difference = own[:, None] + own - 2 * product
    spot = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    distance = np.sqrt(((spot[:, None] - spot) ** 2).sum(axis=2))
    best, most = np.arange(side * side), -np.inf
    for _ in range(starts):
        found = quadratic_assignment(
            distance, difference, options={"maximize": True, "P0": "randomized", "rng": generator}
        )
        if found.fun > most:
            best, most = found.col_ind, found.fun
    return best.astype(np.intp)
