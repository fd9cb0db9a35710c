"""How badly two blocks fit together, for every pair of their sides: what a jigsaw solver works on.

The cost is the squared difference across the seam of what each block predicts there: its border, continued by part of
its last step (after Pomeranz et al., CVPR 2011, and Gallagher, CVPR 2012, who use such a step too). Squared
differences are inner products, so that many images whose blocks were moved alike are pooled in one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from ppfed.images.types import UInt8Array

IndexArray = npt.NDArray[np.intp]
Float32Array = npt.NDArray[np.float32]

COLOURS: IndexArray = np.array(list(permutations(range(3))), dtype=np.intp)
"""(6, 3): a block shows in channel k what was in channel ``COLOURS[p, k]``."""

STEP = 0.5
"""How much of the last step a block's border is continued by: half of it reaches the seam."""

GREY = 0.05
"""Weight of the mean of a pixel's channels against their differences: in photographs colours change far less from one
pixel to the next than brightness does, so they tell more about who is whose neighbour (Gallagher's reason for a
Mahalanobis distance). Exchanging channels and taking negatives leaves this measure as it is."""

NOISE = 1.0
"""Squared grey levels that are added to every cost: smaller ones say nothing."""

MISFIT = 2.5
"""The most that `relative` gives a pair of sides."""


@dataclass(frozen=True)
class Variants:
    """The ways in which one block may be shown.

    Attributes
    ----------
    turn : intp array, (V,)
        0 to 7: so many quarter turns counter-clockwise, then mirrored left to right from 4 on.
    negative : intp array, (V,)
        1 where values are shown as 255 - v.
    colour : intp array, (V,)
        Row of ``COLOURS``.
    """

    turn: IndexArray
    negative: IndexArray
    colour: IndexArray

    @classmethod
    def of(cls, *, turns: bool, negatives: bool, colours: bool) -> Variants:
        """List all ways; number 0 is the block as it is."""
        grid = np.meshgrid(np.arange(8 if turns else 1), np.arange(1 + negatives), np.arange(6 if colours else 1))
        turn, negative, colour = (axis.transpose(1, 0, 2).reshape(-1) for axis in grid)
        return cls(turn, negative, colour)

    def __len__(self) -> int:
        return len(self.turn)


def turned(block: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    """Turn and mirror the first two axes of an array."""
    rotated = np.rot90(block, turn % 4)
    return rotated[:, ::-1] if turn >= 4 else rotated


def facing() -> IndexArray:
    """Tell which side of a block as it is shows on which side once it is turned.

    Returns
    -------
    intp array, (8, 4, 2)
        For each turn and each side shown (right, below, left, above): the side of the block, and 1 if it then runs
        backwards. Sides run from top to bottom and from left to right.
    """
    square = np.arange(9).reshape(3, 3)
    sides = _sides(square)
    table = np.empty((8, 4, 2), dtype=np.intp)
    for turn in range(8):
        for shown, strip in enumerate(_sides(turned(square, turn))):
            for own, candidate in enumerate(sides):
                if np.array_equal(strip, candidate) or np.array_equal(strip, candidate[::-1]):
                    table[turn, shown] = own, int(not np.array_equal(strip, candidate))
    return table


def seam_costs(blocks: UInt8Array, variants: Variants, step: float = STEP, grey: float = GREY) -> Float32Array:
    """Compute what it costs to put a side of one block against a side of another.

    Parameters
    ----------
    blocks : uint8 array, (N, B, P, P, C)
        Of N images whose blocks belong together alike.
    variants : Variants
        What may differ between two blocks.
    step : float
        See ``STEP``; 0 compares borders alone.
    grey : float
        See ``GREY``; 1 treats all channels alike.

    Returns
    -------
    float32 array, (B, 4, B, 4, F, M, Q)
        The mean squared difference of block a, side i against block b, side j, over N images; F: b's side forwards or
        backwards relative to a's, M: equal or opposite sign, Q: channel c of a against channel ``COLOURS[q, c]`` of b.
        Backwards, opposite and other colours only where ``variants`` has them. It takes 64 B^2 F M Q bytes.
    """
    values = blocks.astype(np.float32) - 127.5
    count, number, side, _, channels = blocks.shape
    if channels > 1:
        values -= np.float32(1 - grey) * values.mean(axis=4, keepdims=True)
    border = np.stack(_sides(values.transpose(2, 3, 0, 1, 4)))
    inner = np.stack(_sides(values.transpose(2, 3, 0, 1, 4), depth=1)) if side > 1 else border
    strips = (border + step * (border - inner)).transpose(3, 0, 4, 2, 1).reshape(number * 4 * channels, count, side)
    flips = 2 if variants.turn.max() else 1
    flat = strips.reshape(len(strips), -1)
    ways = [flat @ strips[..., :: 1 - 2 * flip].reshape(len(strips), -1).T for flip in range(flips)]
    products = np.stack(ways).reshape(flips, number, 4, channels, number, 4, channels)
    own = np.arange(channels)
    orders = COLOURS if variants.colour.max() else own[None]
    inner_product = np.stack([products[:, :, :, own, :, :, order].sum(0) for order in orders])
    norm = (flat * flat).sum(1).reshape(number, 4, channels).sum(2)
    total = (norm[:, :, None, None] + norm)[..., None, None, None]
    signs = np.array([1, -1] if variants.negative.max() else [1], dtype=np.float32)[:, None]
    cross = inner_product.transpose(2, 3, 4, 5, 1, 0)[..., None, :]
    costs: Float32Array = np.maximum(total - 2 * signs * cross, 0) / np.float32(count * side * channels)
    return costs


def relative(costs: Float32Array, most: float = MISFIT) -> Float32Array:
    """Take the logarithm of each cost over the least that its two sides can have.

    Flat blocks fit nearly anywhere, so only the ratio says much (Gallagher, CVPR 2012). Beyond ``most`` one seam is
    as wrong as another; without that limit a few wrong ones would decide where all others go.

    Parameters
    ----------
    costs : float32 array, as from `seam_costs`
    most : float

    Returns
    -------
    float32 array, same shape
        About 0 for the best fit of both sides, up to ``most``; 1000 for a block against itself, which cannot be.
    """
    own = np.arange(len(costs))
    apart = costs + np.float32(NOISE)
    apart[own, :, own] = np.inf
    least = apart.min(axis=(2, 3, 4, 5, 6))
    scale = np.sqrt(least[:, :, None, None] * least)[..., None, None, None]
    result: Float32Array = np.minimum(np.log(apart / scale), np.float32(most))
    result[own, :, own] = 1000
    return result


def _sides(block: npt.NDArray[Any], depth: int = 0) -> list[npt.NDArray[Any]]:
    """Return the right, lower, left and upper line of the first two axes, ``depth`` lines in."""
    return [block[:, -1 - depth], block[-1 - depth], block[:, depth], block[depth]]
