"""Lay blocks out on a grid so that what meets at the seams fits: a greedy start, then exact exchanges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ppfed.attacks.blocks.edges import COLOURS, Float32Array, IndexArray, Variants, facing

_AROUND = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Where the neighbour on the right, below, on the left and above lies."""

BONUS = 1.0
"""Taken off for each seam when cells are compared: one that meets two blocks well is surer than one that meets one."""


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
        self._costs = costs
        self._variants = variants
        self._rows, self._columns = rows, columns
        self._number = len(costs)
        sides = facing()[variants.turn]
        self._own: IndexArray = sides[..., 0]
        self._flip: IndexArray = sides[..., 1]
        inverse = COLOURS.argsort(axis=1)
        # Channel c of a is shown where channel between[p, q, c] of b is, when they are shown in orders p and q.
        between = COLOURS[np.arange(6)[:, None], inverse[:, None]]
        self._between: IndexArray = (between[:, :, None] == COLOURS).all(-1).argmax(-1)

    def beside(self, block: int, variant: int, direction: int) -> Float32Array:
        """Cost of every block in every variant as a neighbour of one that lies: (B, V)."""
        ways, opposite = self._variants, (direction + 2) % 4
        table = self._costs[block, self._own[variant, direction]]
        flip = self._flip[variant, direction] ^ self._flip[:, opposite]
        sign = ways.negative[variant] ^ ways.negative
        order = self._between[ways.colour[variant], ways.colour]
        result: Float32Array = table[:, self._own[:, opposite], flip, sign, order]
        return result

    def grow(self, start: Layout) -> Layout:
        """Go on from what lies, always adding the block that fits best anywhere (Pomeranz et al., CVPR 2011).

        Parameters
        ----------
        start : Layout
            -1 where no block lies yet. Since only some lie, the whole may turn out shifted against it.
        """
        rows, columns, ways = self._rows, self._columns, len(self._variants)
        height, width = 3 * rows - 2, 3 * columns - 2
        total = np.zeros((height * width, self._number, ways), dtype=np.float32)
        best, choice = np.full(height * width, np.inf), np.zeros(height * width, dtype=np.intp)
        block, shown = np.full((height, width), -1), np.zeros((height, width), dtype=np.intp)
        used = np.zeros(self._number, dtype=bool)
        down, across = np.divmod(np.arange(height * width), width)
        lying = [
            (y + rows - 1, x + columns - 1, int(start.block[y, x]), int(start.variant[y, x]))
            for y, x in np.argwhere(start.block >= 0).tolist()
        ]
        while lying:
            taken = [piece for _, _, piece, _ in lying]
            used[taken] = True
            for y, x, piece, way in lying:
                block[y, x], shown[y, x] = piece, way
            touched = set(np.flatnonzero(np.isfinite(best) & np.isin(choice // ways, taken)).tolist())
            for y, x, piece, way in lying:
                for direction, (step_down, step_across) in enumerate(_AROUND):
                    row, column = y + step_down, x + step_across
                    if 0 <= row < height and 0 <= column < width and block[row, column] < 0:
                        total[row * width + column] += self.beside(piece, way, direction) - np.float32(BONUS)
                        touched.add(row * width + column)
            best[block.ravel() >= 0] = np.inf
            if used.all():
                break
            free = np.flatnonzero(~used)
            for cell in touched:
                if block.flat[cell] < 0:
                    scores = total[cell, free]
                    least = int(scores.argmin())
                    best[cell] = scores.flat[least]
                    choice[cell] = free[least // ways] * ways + least % ways
            held_y, held_x = np.nonzero(block >= 0)
            fits = (down > held_y.max() - rows) & (down < held_y.min() + rows)
            fits &= (across > held_x.max() - columns) & (across < held_x.min() + columns)
            cell = int(np.where(fits, best, np.inf).argmin())
            lying = [(cell // width, cell % width, *divmod(int(choice[cell]), ways))]
        held_y, held_x = np.nonzero(block >= 0)
        window = np.s_[held_y.min() : held_y.min() + rows, held_x.min() : held_x.min() + columns]
        return self.layout(block[window], shown[window])

    def seed(self, piece: int) -> Layout:
        """Lay one block down."""
        block = np.full((self._rows, self._columns), -1)
        block[0, 0] = piece
        return Layout(block, np.zeros_like(block), 0.0)

    def core(self, layout: Layout, most: float) -> Layout:
        """Keep the largest part of a layout that hangs together by seams that cost no more than ``most``."""
        right, below = self._seams(layout.block, layout.variant)
        number = np.arange(layout.block.size).reshape(layout.block.shape)
        ends = [(number[:, :-1][right <= most], number[:, 1:][right <= most])]
        ends.append((number[:-1][below <= most], number[1:][below <= most]))
        first, second = (np.concatenate(side) for side in zip(*ends, strict=True))
        graph = coo_array((np.ones(len(first)), (first, second)), shape=(number.size, number.size))
        part = connected_components(graph, directed=False)[1]
        keep = (part == np.bincount(part).argmax()).reshape(number.shape)
        return Layout(np.where(keep, layout.block, -1), layout.variant, np.inf)

    def improve(self, layout: Layout, generator: np.random.Generator, rounds: int) -> Layout:
        """Lift random cells, no two of them neighbours, and lay their blocks back in the best way.

        With its neighbours lying, what a cell costs does not depend on the other cells lifted: a linear assignment.
        """
        block, shown = layout.block.copy(), layout.variant.copy()
        for _ in range(rounds):
            cells = np.flatnonzero(_apart(self._rows, self._columns, generator))
            pieces = block.flat[cells]
            costs = np.zeros((len(cells), self._number, len(self._variants)), dtype=np.float32)
            for index, cell in enumerate(cells):
                y, x = divmod(int(cell), self._columns)
                for direction, (down, across) in enumerate(_AROUND):
                    row, column = y - down, x - across
                    if 0 <= row < self._rows and 0 <= column < self._columns:
                        costs[index] += self.beside(int(block[row, column]), int(shown[row, column]), direction)
            costs = costs[:, pieces]
            way = costs.argmin(axis=2)
            _, chosen = linear_sum_assignment(costs.min(axis=2))
            block.flat[cells] = pieces[chosen]
            shown.flat[cells] = way[np.arange(len(cells)), chosen]
        return self.layout(block, shown)

    def layout(self, block: IndexArray, shown: IndexArray) -> Layout:
        """Lay all blocks down as given, and add up the seams."""
        right, below = self._seams(block, shown)
        return Layout(block, shown, float(right.sum() + below.sum()))

    def _seams(self, block: IndexArray, shown: IndexArray) -> tuple[Float32Array, Float32Array]:
        """Cost the seams between columns, (rows, columns - 1), and between rows, (rows - 1, columns)."""
        every, first_ones, last_ones = slice(None), slice(None, -1), slice(1, None)
        pairs = (((every, first_ones), (every, last_ones)), ((first_ones, every), (last_ones, every)))
        ways, found = self._variants, []
        for direction, (first, second) in enumerate(pairs):
            one, other = shown[first], shown[second]
            flip = self._flip[one, direction] ^ self._flip[other, direction + 2]
            sign = ways.negative[one] ^ ways.negative[other]
            order = self._between[ways.colour[one], ways.colour[other]]
            sides = self._own[one, direction], self._own[other, direction + 2]
            found.append(self._costs[block[first], sides[0], block[second], sides[1], flip, sign, order])
        return found[0], found[1]


def _apart(rows: int, columns: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw cells of which no two are neighbours."""
    rank = generator.permutation(rows * columns).reshape(rows, columns)
    edge = np.pad(rank, 1, constant_values=rows * columns)
    around = [edge[1 + y : 1 + y + rows, 1 + x : 1 + x + columns] for y, x in _AROUND]
    result: npt.NDArray[np.bool_] = rank < np.minimum.reduce(around)
    return result
