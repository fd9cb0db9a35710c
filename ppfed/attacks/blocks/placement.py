"""Lay blocks out on a grid so that what meets at the seams fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppfed.attacks.blocks.edges import COLOURS, Float32Array, IndexArray, Variants, facing
from ppfed.attacks.blocks.regrowth import Parts, anneal

_FITTING = 64
"""Neighbours that are tried for each side of a block."""

_STARTS = 16
_AGREE = 1e-3
"""Two searches that end at the same cost have mostly found the same layout, and nothing better will come."""


@dataclass(frozen=True)
class Layout:
    """Which block lies where, and how.

    Attributes
    ----------
    block : intp array, (rows, columns)
    variant : intp array, (rows, columns)
        Row of the ``Variants``.
    cost : float
        Sum over all seams.
    """

    block: IndexArray
    variant: IndexArray
    cost: float


class Puzzle:
    """The blocks of a picture with what it costs to join them.

    Parameters
    ----------
    costs : float32 array, as from ``relative``
    variants : Variants
    rows, columns : int
        Of the grid; as many cells as blocks.
    """

    def __init__(self, costs: Float32Array, variants: Variants, rows: int, columns: int) -> None:
        number = len(costs)
        sides = facing()[variants.turn]
        own, flip = sides[..., 0], sides[..., 1]
        inverse = COLOURS.argsort(axis=1)
        # Channel c of a is shown where channel between[p, q, c] of b is, when they are shown in orders p and q.
        between = COLOURS[np.arange(6)[:, None], inverse[:, None]]
        order = (between[:, :, None] == COLOURS).all(-1).argmax(-1)[variants.colour[:, None], variants.colour]
        sign = variants.negative[:, None] ^ variants.negative
        ways = len(variants)
        relation = np.empty((ways, 4, ways), dtype=np.int32)
        variant = np.full((ways, 4, int(np.prod(costs.shape[3:]))), -1, dtype=np.int32)
        for direction in range(4):
            opposite = (direction + 2) % 4
            theirs = np.broadcast_to(own[:, opposite], (ways, ways))
            turned = flip[:, direction, None] ^ flip[:, opposite]
            relation[:, direction] = np.ravel_multi_index((theirs, turned, sign, order), costs.shape[3:])
            variant[np.arange(ways)[:, None], direction, relation[:, direction]] = np.arange(ways)
        side = own.astype(np.int32)
        flat = np.ascontiguousarray(costs.reshape(number, 4, number, -1))
        possible = np.stack([(variant[side == shown] >= 0).any(axis=0) for shown in range(4)])
        self._parts: Parts = (flat, side, relation, variant, *_fitting(flat, possible))
        self._rows, self._columns = rows, columns

    def solve(self, generator: np.random.Generator, searches: int, steps: int) -> Layout:
        """Search, up to so many times and with so many growths each, until two searches agree; the cheapest counts."""
        number = self._rows * self._columns
        best = best_shown = np.zeros((self._rows, self._columns), dtype=np.int32)
        least = np.inf
        for _ in range(searches):
            seeds = generator.choice(number, min(_STARTS, number), replace=False).astype(np.int32)
            block, shown, cost = anneal(self._rows, self._columns, self._parts, seeds, steps, generator)
            agree = abs(cost - least) <= _AGREE
            if cost < least:
                best, best_shown, least = block, shown, cost
            if agree:
                break
        return Layout(best.astype(np.intp), best_shown.astype(np.intp), float(least))


def _fitting(
    costs: Float32Array, possible: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """List each side's cheapest neighbours, (B, 4, K, 2), and how each other block fits it best, (B, 4, B)."""
    number, _, _, relations = costs.shape
    count = min(_FITTING, (number - 1) * int(possible.sum(axis=1).min()))
    found = np.zeros((number, 4, count, 2), dtype=np.int32)
    closest = np.zeros((number, 4, number), dtype=np.int32)
    for block in range(number):
        open_costs = np.where(possible[:, None], costs[block], np.float32(np.inf))
        closest[block] = open_costs.argmin(axis=2)
        flat = open_costs.reshape(4, -1)
        cheapest = np.argpartition(flat, max(count - 1, 0), axis=1)[:, :count]
        order = np.take_along_axis(flat, cheapest, axis=1).argsort(axis=1, kind="stable")
        found[block] = np.stack(np.divmod(np.take_along_axis(cheapest, order, axis=1), relations), axis=2)
    return found, closest
