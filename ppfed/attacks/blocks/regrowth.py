"""The search of the jigsaw solver, compiled: let a layout grow, take most of it away, let it grow again.

Nearly every picture has a layout that costs less than what a greedy start finds, mostly the right one: the search is
what fails. A growth takes some tens of microseconds here, so that thousands are tried.

Arrays, for B blocks shown in V variants, with R ways in which a side of one may meet another block:

- ``costs``, float32 (B, 4, B, R): of block a's own side against block b, related so.
- ``side``, int32 (V, 4): the own side of a block that shows in a direction (right, below, left, above).
- ``relation``, int32 (V, 4, V): how a neighbour in a variant is related to a block in a variant, in a direction.
- ``variant``, int32 (V, 4, R): the variant in which a neighbour is related so; -1 where none is.
- ``fitting``, int32 (B, 4, K, 2): for each own side the cheapest neighbours and their relations, cheapest first.
- ``closest``, int32 (B, 4, B): for each own side the relation in which another block fits it best.
"""

# mypy sees no types behind Numba's decorator, and Numba none behind Python's annotations.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., object])
Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
Parts = tuple[Float32Array, Int32Array, Int32Array, Int32Array, Int32Array, Int32Array]
"""``costs, side, relation, variant, fitting, closest``."""
Found = tuple[Int32Array, Int32Array, float]
"""Block and variant of each cell, (rows, columns), and what all seams cost."""

BONUS = 1.0
"""Taken off for each seam when cells are compared: one that meets two blocks well is surer than one that meets one."""

NOISE = 0.2
"""Mean of what is taken off a cell's cost at random, so that growths from the same start differ."""

WARMTH = 2.0
"""How much more than the last layout the next may cost, at first; nothing in the end (simulated annealing)."""

SURE, UNSURE = 0.05, 2.0
"""Seams are kept that cost no more than a threshold, drawn between these on a logarithmic scale."""

CUT = 0.05
"""Chance of a seam to be cut although it is below the threshold, every other time: parts that hang together in a wrong
place would never come apart."""

_DOWN, _ACROSS = (0, 1, 0, -1), (1, 0, -1, 0)
_NEVER = 1e9


def _compiled(function: _Function) -> _Function:
    """Compile at the first call, and keep the machine code for the next process."""
    settings: dict[str, Any] = {"nogil": True, "fastmath": True}
    try:
        return cast(_Function, njit(cache=True, **settings)(function))
    except RuntimeError:
        # Neither the package's folder nor the user's cache can be written: compile anew in each process.
        return cast(_Function, njit(**settings)(function))


@_compiled
def layout_cost(block: Int32Array, shown: Int32Array, parts: Parts) -> float:
    """Add up the seams of a full layout."""
    costs, side, relation, _, _, _ = parts
    rows, columns = block.shape
    total = 0.0
    for y in range(rows):
        for x in range(columns):
            for direction in range(2):
                v, u = y + _DOWN[direction], x + _ACROSS[direction]
                if v < rows and u < columns:
                    way = shown[y, x]
                    total += costs[
                        block[y, x], side[way, direction], block[v, u], relation[way, direction, shown[v, u]]
                    ]
    return total


@_compiled
def _best_for(  # noqa: PLR0912
    y: int, x: int, block: Int32Array, shown: Int32Array, used: npt.NDArray[np.bool_], parts: Parts
) -> tuple[float, int, int]:
    """Find the block, and its variant, that fits a cell best: its cost less ``BONUS`` for each seam, block, variant.

    Only what is among the cheapest neighbours of a side is looked at, unless all of that is used.
    """
    costs, side, relation, variant, fitting, closest = parts
    height, width = block.shape
    count = 0
    pieces, ways, directions = np.empty(4, np.int64), np.empty(4, np.int64), np.empty(4, np.int64)
    for direction in range(4):
        v, u = y - _DOWN[direction], x - _ACROSS[direction]
        if 0 <= v < height and 0 <= u < width and block[v, u] >= 0:
            pieces[count], ways[count], directions[count] = block[v, u], shown[v, u], direction
            count += 1
    least, piece, way = _NEVER, -1, -1
    for near in range(count):
        own = side[ways[near], directions[near]]
        for place in range(fitting.shape[2]):
            other, related = fitting[pieces[near], own, place]
            there = variant[ways[near], directions[near], related]
            if used[other] or there < 0:
                continue
            # Once more below: as a function of its own it takes a quarter more of the whole search's time.
            cost = 0.0
            for k in range(count):
                to = relation[ways[k], directions[k], there]
                cost += costs[pieces[k], side[ways[k], directions[k]], other, to]
            if cost < least:
                least, piece, way = cost, other, there
            if count == 1:
                break
    if piece >= 0:
        return least - BONUS * count, piece, way
    # All of that lies already: nothing fits well, and one way to show each block is enough.
    for near in range(count):
        own = side[ways[near], directions[near]]
        for other in range(len(costs)):
            there = variant[ways[near], directions[near], closest[pieces[near], own, other]]
            if used[other] or there < 0:
                continue
            cost = 0.0
            for k in range(count):
                to = relation[ways[k], directions[k], there]
                cost += costs[pieces[k], side[ways[k], directions[k]], other, to]
            if cost < least:
                least, piece, way = cost, other, there
    return least - BONUS * count, piece, way


@_compiled
def grow(  # noqa: PLR0912
    start: Int32Array, start_shown: Int32Array, parts: Parts, noise: float, generator: np.random.Generator
) -> Found:
    """Go on from what lies, always adding the block that fits best anywhere (Pomeranz et al., CVPR 2011).

    Parameters
    ----------
    start, start_shown : int32 arrays, (rows, columns)
        Blocks, -1 where none lies yet, and their variants. Since only some lie, the whole may turn out shifted.
    parts : as above
    noise : float
        See ``NOISE``.
    generator : numpy Generator
    """
    rows, columns = start.shape
    # Room on all sides; which cells belong to the picture follows from what lies.
    height, width = 3 * rows - 2, 3 * columns - 2
    block, shown = np.full((height, width), -1, np.int32), np.zeros((height, width), np.int32)
    used = np.zeros(len(parts[0]), np.bool_)
    top, bottom, left, right, missing = height, -1, width, -1, rows * columns
    for y in range(rows):
        for x in range(columns):
            if start[y, x] >= 0:
                v, u = y + rows - 1, x + columns - 1
                block[v, u], shown[v, u], used[start[y, x]] = start[y, x], start_shown[y, x], True
                top, bottom, left, right = min(top, v), max(bottom, v), min(left, u), max(right, u)
                missing -= 1
    score = np.full((height, width), _NEVER)
    piece, way = np.full((height, width), -1, np.int32), np.zeros((height, width), np.int32)
    stale = np.zeros((height, width), np.bool_)
    for y in range(top, bottom + 1):
        for x in range(left, right + 1):
            for direction in range(4):
                v, u = y + _DOWN[direction], x + _ACROSS[direction]
                if block[y, x] >= 0 and 0 <= v < height and 0 <= u < width:
                    stale[v, u] = True
    while missing > 0:
        least, at_y, at_x = 2 * _NEVER, -1, -1
        for y in range(max(0, bottom - rows + 1), min(height, top + rows)):
            for x in range(max(0, right - columns + 1), min(width, left + columns)):
                if block[y, x] >= 0:
                    continue
                if stale[y, x] or (piece[y, x] >= 0 and used[piece[y, x]]):
                    cost, piece[y, x], way[y, x] = _best_for(y, x, block, shown, used, parts)
                    score[y, x] = cost - noise * generator.standard_exponential()
                    stale[y, x] = False
                if score[y, x] < least:
                    least, at_y, at_x = score[y, x], y, x
        block[at_y, at_x], shown[at_y, at_x], used[piece[at_y, at_x]] = piece[at_y, at_x], way[at_y, at_x], True
        missing -= 1
        top, bottom, left, right = min(top, at_y), max(bottom, at_y), min(left, at_x), max(right, at_x)
        for direction in range(4):
            v, u = at_y + _DOWN[direction], at_x + _ACROSS[direction]
            if 0 <= v < height and 0 <= u < width:
                stale[v, u] = True
    full, full_shown = block[top : top + rows, left : left + columns], shown[top : top + rows, left : left + columns]
    found, found_shown = full.copy(), full_shown.copy()
    return found, found_shown, layout_cost(found, found_shown, parts)


@_compiled
def _root(parent: Int32Array, cell: int) -> int:
    while parent[cell] != cell:
        parent[cell] = parent[parent[cell]]
        cell = parent[cell]
    return cell


@_compiled
def _part(
    block: Int32Array, shown: Int32Array, parts: Parts, most: float, cut: float, generator: np.random.Generator
) -> Int32Array:
    """Keep what hangs together with a random cell by seams that cost no more than ``most``, some of them cut."""
    costs, side, relation, _, _, _ = parts
    rows, columns = block.shape
    parent = np.arange(rows * columns).astype(np.int32)
    for y in range(rows):
        for x in range(columns):
            for direction in range(2):
                v, u = y + _DOWN[direction], x + _ACROSS[direction]
                if v < rows and u < columns:
                    way = shown[y, x]
                    to = relation[way, direction, shown[v, u]]
                    if costs[block[y, x], side[way, direction], block[v, u], to] <= most and generator.random() >= cut:
                        parent[_root(parent, y * columns + x)] = _root(parent, v * columns + u)
    root = _root(parent, int(generator.random() * rows * columns))
    kept = np.full((rows, columns), -1, np.int32)
    for cell in range(rows * columns):
        if _root(parent, cell) == root:
            kept[cell // columns, cell % columns] = block[cell // columns, cell % columns]
    return kept


@_compiled
def anneal(
    rows: int, columns: int, parts: Parts, seeds: Int32Array, steps: int, generator: np.random.Generator
) -> Found:
    """Search for the cheapest layout: of growths from single blocks, then of growths from parts of the last layout.

    Parameters
    ----------
    rows, columns : int
        As many cells as blocks.
    parts : as above
    seeds : int32 array
        Blocks to start from.
    steps : int
        Growths from parts.
    generator : numpy Generator
    """
    last, last_shown, last_cost = np.zeros((rows, columns), np.int32), np.zeros((rows, columns), np.int32), _NEVER
    for seed in seeds:
        start = np.full((rows, columns), -1, np.int32)
        start[0, 0] = seed
        block, shown, cost = grow(start, np.zeros((rows, columns), np.int32), parts, 0.0, generator)
        if cost < last_cost:
            last, last_shown, last_cost = block, shown, cost
    best, best_shown, best_cost = last, last_shown, last_cost
    for step in range(steps):
        most = SURE * (UNSURE / SURE) ** generator.random()
        kept = _part(last, last_shown, parts, most, CUT * (step % 2), generator)
        block, shown, cost = grow(kept, last_shown, parts, NOISE if step % 4 else 0.0, generator)
        warmth = WARMTH * (1 - step / steps)
        if cost < last_cost + warmth * generator.standard_exponential():
            last, last_shown, last_cost = block, shown, cost
        if last_cost < best_cost:
            best, best_shown, best_cost = last, last_shown, last_cost
    return best, best_shown, best_cost
