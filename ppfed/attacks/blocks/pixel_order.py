"""Find the order of the pixels in a block when every block was permuted alike, from ciphertexts alone.

Two pixels of a photograph are the less alike the further apart they are. So orders are compared by how likely they make
the blocks, under a normal distribution whose correlations fall with the distance: a quadratic assignment. The
likeliest order is nearly always the right one, but hard to find from anywhere. A simpler assignment, in which the
pixels' mean squared differences grow with their distances, leads near to it, and exchanges of two pixels the rest of
the way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import quadratic_assignment

from ppfed.images.types import UInt8Array

IndexArray = npt.NDArray[np.intp]
Float64Array = npt.NDArray[np.float64]

CORRELATION, NOISE = 0.9, 0.02
"""Of two pixels side by side; to the power of their distance for others. And the part of a pixel that is its own."""

COLOUR = 4.0
"""Weight of colour against brightness, each in proportion to how much of it there is in a block."""

FLAT = 4.0
"""Squared grey levels that are added to what a block has of either, so that flat ones say little."""


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
    brightness = values.mean(axis=2, keepdims=True)
    product = _products(brightness)
    if channels > 1:
        product += COLOUR * _products(values - brightness)
    own = product.diagonal()
    difference = own[:, None] + own - 2 * product
    places = np.arange(side * side)
    spot = np.stack(np.divmod(places, side), axis=1)
    distance = np.sqrt(((spot[:, None] - spot) ** 2).sum(axis=2))
    # What all pixels of a block have in common says nothing: as if it varied without end.
    precision = np.linalg.inv(CORRELATION**distance + NOISE * np.eye(len(places)) + 10)
    best, least = places, np.inf
    for _ in range(starts):
        near = quadratic_assignment(
            distance, difference, options={"maximize": True, "P0": "randomized", "rng": generator}
        )
        guess = np.stack([places, near.col_ind], axis=1)
        found = quadratic_assignment(
            precision, product, method="2opt", options={"partial_guess": guess, "rng": generator}
        )
        if found.fun < least:
            best, least = found.col_ind, found.fun
    return best.astype(np.intp)


def _products(values: Float64Array) -> Float64Array:
    """Multiply the pixels of blocks (B, P P, C) with one another and take the mean: (P P, P P)."""
    offset = values - values.mean(axis=1, keepdims=True)
    # Rough blocks would outvote all others.
    offset /= np.sqrt((offset * offset).mean(axis=(1, 2), keepdims=True) + FLAT)
    flat = offset.transpose(0, 2, 1).reshape(-1, values.shape[1])
    result: Float64Array = flat.T @ flat / len(values)
    return result
