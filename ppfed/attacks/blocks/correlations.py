"""Ciphertexts alone, 4-bit values reversed and moved alike in all: how they vary together tells what each one is.

What ``ele-v1`` does in fixed scope: in each block every 4-bit value has a new place and some are reversed, then blocks
are scrambled. None of it changes from image to image, and pictures of the attacker's own say how such values vary
together. Source: ours.

1. *Halves.* The half of a block's values that have most to do with the others are upper halves of bytes.
2. *Reversals.* The upper halves of a block rise and fall together, and so does the brightness of blocks. Which of an
   image and its negative it is, how often values occur tells.
3. *Blocks.* Where they belong follows from how their brightness varies together (``ppfed/attacks/matching.py``), but
   for mirror images, which are all tried; step 4 tells which it is.
4. *Places in blocks.* Where upper halves belong follows in the same way from how each varies with the brightness of
   the other blocks: in one step, as that is known. Red and blue are hard to tell that way; what a block has more of one
   varies with what others have, so that few are set right by most. Then blocks take turns, each beside the upper halves
   around it.
5. *Lower halves.* Where they belong, and which are reversed, follows from how each varies with the upper halves in its
   block and around it, which a smooth picture ties to them.

With B blocks of V values, N ciphertexts and M pictures it takes O(B (M + N) V^2) operations for each of up to eight
mirror images, and those of matching B blocks. 1,000 images of 32x32 pixels in colour take some 10 seconds of one core
beside 20,000 pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ppfed.attacks.blocks.template import Template, symbols, tiled
from ppfed.attacks.matching import FREE, Float32Array, IndexArray, Matching, climb, weights
from ppfed.ciphers.spec import BLOCK_PX
from ppfed.images.types import UInt8Array

MOST_BLOCKS = 12 * 12
"""Of an image: all pictures are held in memory as 4-bit values, a byte each."""

FEWEST = 2
"""Ciphertexts, and pictures."""

_HIGHEST = np.uint8(15)
_MIDDLE = np.float32(7.5)
_COARSE = 0.06
"""Variance of the noise that is assumed beside brightness, as a part of the largest that pictures have there."""
_MEDIUM, _FINE = 16.0, 1.0
"""The same beside upper halves, in squares of a 4-bit value: for upper and for lower ones."""
_STEPS = 40
_SWEEPS = 4


def recover(ciphertexts: UInt8Array, own: UInt8Array, tell: Callable[[float], None] = lambda _part: None) -> Template:
    """Recover what ``ele-v1`` does to all images under one key stream.

    Parameters
    ----------
    ciphertexts : uint8 array, (N, H, W, C)
        With 1 or 3 channels, sides of whole blocks. Of 32x32 pixels in colour 1,000 were enough; where each has a key
        stream of its own, the result is at chance.
    own : uint8 array, (M, H, W, C)
        Pictures of the same kind, none of which has to be among the encrypted.
    tell : callable
        Called with the part done, 0 to 1.

    Returns
    -------
    Template

    Raises
    ------
    ValueError
        If there are fewer than ``FEWEST`` ciphertexts or pictures, or their shapes differ, or they have more than
        ``MOST_BLOCKS`` blocks.
    """
    height, width = ciphertexts.shape[1:3]
    grid = (height // BLOCK_PX, width // BLOCK_PX)
    if own.shape[1:] != ciphertexts.shape[1:] or min(len(own), len(ciphertexts)) < FEWEST:
        raise ValueError("there must be ciphertexts, and pictures of the same shape, two of each at least")
    if grid[0] * grid[1] > MOST_BLOCKS:
        raise ValueError(f"images have more than {MOST_BLOCKS} blocks")
    hidden, known = (symbols(images, BLOCK_PX, nibbles=True) for images in (ciphertexts, own))
    own_lower, own_upper = np.split(known, 2, axis=2)
    halves = _told_apart(hidden, own_upper)
    upper, lower = halves.upper(hidden), halves.lower(hidden)
    tell(0.1)
    pictures = _Pictures(own_upper)
    found = []
    orders = _orders(upper.mean(axis=2), pictures.brightness, grid)
    for number, order in enumerate(orders, start=1):
        found.append((*pictures.places(upper[:, np.argsort(order)]), order))
        tell(0.1 + 0.6 * number / len(orders))
    _, places, order = max(found, key=lambda one: one[0])
    # From here on blocks are where they belong.
    at = np.argsort(order)
    upper, lower = upper[:, at], lower[:, at]
    if own.shape[3] == 3:
        places = _red_and_blue(upper, places)
    around = [_Around(own_lower, own_upper, block, blocks) for block, blocks in enumerate(_neighbourhoods(grid))]
    tell(0.9)
    for _ in range(_SWEEPS):
        for one in around:
            places[one.block] = one.upper_places(upper, places)
    laid = _laid(upper, places)
    lower_places, lower_signs = map(np.stack, zip(*(one.lower_places(lower, laid) for one in around), strict=True))
    tell(1.0)
    half = places.shape[1]
    inside, signs = np.empty((2, *hidden.shape[1:]), dtype=np.intp)
    np.put_along_axis(inside, halves.upper_at, half + places[order], axis=1)
    np.put_along_axis(inside, halves.lower_at, lower_places[order], axis=1)
    np.put_along_axis(signs, halves.upper_at, halves.signs.astype(np.intp), axis=1)
    np.put_along_axis(signs, halves.lower_at, lower_signs[order], axis=1)
    mask = np.where(signs < 0, _HIGHEST, np.uint8(0)).reshape(-1)
    return Template(True, BLOCK_PX, tiled(inside, order, hidden.shape[2]), mask)


@dataclass(frozen=True, eq=False)
class _Halves:
    """Which values of ciphertexts are which halves of bytes.

    Attributes
    ----------
    upper_at, lower_at : intp array, (B, V / 2)
        Their numbers in each block.
    signs : float32 array, (B, V / 2)
        -1 for an upper half that is reversed.
    """

    upper_at: IndexArray
    lower_at: IndexArray
    signs: Float32Array

    def upper(self, hidden: UInt8Array) -> Float32Array:
        """Pick the upper halves out of (N, B, V), as they were, about the middle: (N, B, V / 2)."""
        return _centred(np.take_along_axis(hidden, self.upper_at[None], axis=2)) * self.signs

    def lower(self, hidden: UInt8Array) -> Float32Array:
        """Pick the lower halves, reversed or not: (N, B, V / 2)."""
        return _centred(np.take_along_axis(hidden, self.lower_at[None], axis=2))


def _told_apart(hidden: UInt8Array, own_upper: UInt8Array) -> _Halves:
    """Tell upper halves from lower ones, and which are reversed."""
    blocks, width = hidden.shape[1:]
    order = np.empty((blocks, width), dtype=np.intp)
    signs = np.empty((blocks, width // 2), dtype=np.float32)
    brightness = np.empty((len(hidden), blocks), dtype=np.float32)
    for block in range(blocks):
        values = _centred(hidden[:, block])
        together = _correlations(values)
        order[block] = np.argsort(-(together**2).sum(axis=1), kind="stable")
        upper = order[block, : width // 2]
        signs[block] = _agreeing(together[np.ix_(upper, upper)])
        brightness[:, block] = values[:, upper] @ signs[block]
    signs *= _agreeing(_correlations(brightness))[:, None]
    found = _Halves(order[:, : width // 2], order[:, width // 2 :], signs)
    usual = np.log(_counted(_centred(own_upper)) + 1.0)
    seen = _counted(found.upper(hidden))
    return found if seen @ usual >= seen @ usual[::-1] else _Halves(found.upper_at, found.lower_at, -signs)


def _correlations(values: Float32Array) -> Float32Array:
    """Correlate columns of (N, V); one that never changes has nothing to do with others."""
    apart = values - values.mean(axis=0)
    apart /= np.maximum(apart.std(axis=0), np.finfo(np.float32).eps)
    result: Float32Array = apart.T @ apart / np.float32(len(apart))
    return result


def _agreeing(together: Float32Array) -> Float32Array:
    """Find signs (V,) with which things vary together, of their correlations (V, V)."""
    others = together - np.diag(together.diagonal())
    signs = _sign(np.linalg.eigh(others)[1][:, -1])
    for _ in range(_STEPS):
        better = _sign(others @ signs)
        if np.array_equal(better, signs):
            break
        signs = better
    return signs


def _sign(values: Float32Array) -> Float32Array:
    return np.where(values < 0, np.float32(-1), np.float32(1))


def _counted(values: Float32Array) -> IndexArray:
    return np.bincount((values + _MIDDLE).astype(np.uint8).reshape(-1), minlength=int(_HIGHEST) + 1)


def _orders(brightness: Float32Array, own: Float32Array, grid: tuple[int, int]) -> list[IndexArray]:
    """List likely places of blocks (B,), of their brightness (N, B), and those of mirror images and of turned ones."""
    matching, seen = Matching(own[..., None], grid), brightness[..., None]
    place = matching.search(seen, np.random.default_rng(0))
    numbers = np.arange(place.size).reshape(grid)
    views = [numbers[::down, ::right] for down in (1, -1) for right in (1, -1)]
    if grid[0] == grid[1]:
        views += [view.T for view in views]
    return [matching.settle(seen, view.reshape(-1)[place]) for view in views]


class _Pictures:
    """How upper halves of pictures vary with the brightness of other blocks.

    Parameters
    ----------
    upper : uint8 array, (M, B, V / 2)
    """

    def __init__(self, upper: UInt8Array) -> None:
        self.brightness = _centred(upper).mean(axis=2)
        half, count = upper.shape[2], np.float32(len(upper))
        self._middle = self.brightness.mean()
        # As long as a block's values together.
        self._scale = np.float32(half) ** np.float32(0.5)
        whole = (self.brightness - self._middle) * self._scale
        of_blocks = whole.T @ whole / count
        self._weights = []
        for block in range(upper.shape[1]):
            values = _centred(upper[:, block]) - self._middle
            beside = values.T @ whole / count
            beside[:, block], own_blocks = 0, of_blocks.copy()
            own_blocks[block], own_blocks[:, block] = 0, 0
            moments = np.block([[values.T @ values / count, beside], [beside.T, own_blocks]])
            noise = _COARSE * float(np.linalg.eigvalsh(moments)[-1])
            self._weights.append(weights(moments, noise)[half:, :half])

    def places(self, upper: Float32Array) -> tuple[float, IndexArray]:
        """Find the places of upper halves (N, B, V / 2), whose blocks are where they belong.

        Returns
        -------
        float
            How likely they are, to compare with that of other orders of blocks.
        intp array, (B, V / 2)
        """
        whole = (upper.mean(axis=2) - self._middle) * self._scale
        likely, places = 0.0, np.empty(upper.shape[1:], dtype=np.intp)
        for block, beside in enumerate(self._weights):
            pull = (upper[:, block] - self._middle).T @ whole / np.float32(len(upper)) @ beside
            places[block] = linear_sum_assignment(pull, maximize=True)[1]
            likely += float(np.take_along_axis(pull, places[block][:, None], axis=1).sum())
        return likely, places


def _red_and_blue(upper: Float32Array, places: IndexArray) -> IndexArray:
    """Exchange red and blue in those blocks that have them otherwise than most; (B, V / 2) of (N, B, V / 2)."""
    laid = _laid(upper, places)
    signs = _agreeing(_correlations(laid[..., 0::3].mean(axis=2) - laid[..., 2::3].mean(axis=2)))
    few = signs if signs.sum() >= 0 else -signs
    exchanged: IndexArray = np.where(few[:, None] < 0, places + 2 - 2 * (places % 3), places)
    return exchanged


def _laid(upper: Float32Array, places: IndexArray) -> Float32Array:
    """Put the values of each block, (N, B, V / 2), where they belong."""
    return np.take_along_axis(upper, np.argsort(places, axis=1)[None], axis=2)


class _Around:
    """How a block's values vary with the upper halves in it and in the blocks around it.

    Parameters
    ----------
    own_lower, own_upper : uint8 array, (M, B, V / 2)
        Of pictures.
    block : int
    around : intp array, (A,)
        The blocks around it, and itself.
    """

    def __init__(self, own_lower: UInt8Array, own_upper: UInt8Array, block: int, around: IndexArray) -> None:
        self.block, self._around = block, around
        own = np.concatenate([_flat(_centred(own_upper[:, around])), _centred(own_lower[:, block])], axis=1)
        self._centre = own.mean(axis=0).mean()
        own -= self._centre
        moments = own.T @ own / np.float32(len(own))
        half = own_lower.shape[2]
        uppers, first = len(around) * half, int(np.flatnonzero(around == block)[0]) * half
        self._mine = np.arange(first, first + half)
        self._rest = np.setdiff1d(np.arange(uppers), self._mine)
        between = weights(moments[:uppers, :uppers], _MEDIUM)[:, self._mine]
        self._beside, self._within = between[self._rest], between[self._mine]
        self._lower = weights(moments, _FINE)[:uppers, uppers:]

    def upper_places(self, upper: Float32Array, places: IndexArray) -> IndexArray:
        """Find the places of its upper halves beside those around it, (V / 2,); better ones than it has, if any.

        Parameters
        ----------
        upper : float32 array, (N, B, V / 2)
            Of all blocks.
        places : intp array, (B, V / 2)
            As far as they are known.
        """
        values = upper[:, self.block] - self._centre
        seen = _flat(_laid(upper[:, self._around], places[self._around]))[:, self._rest] - self._centre
        together = values.T @ values / np.float32(len(values))
        outside = 2 * values.T @ seen / np.float32(len(values)) @ self._beside
        held = np.outer(together.diagonal(), self._within.diagonal())

        def pulls(place: IndexArray) -> tuple[Float32Array, Float32Array]:
            pull = together[:, np.argsort(place)] @ self._within
            return outside + pull, outside + 2 * (pull - FREE * held[:, place])

        return climb(places[self.block], pulls)[1]

    def lower_places(self, lower: Float32Array, laid: Float32Array) -> tuple[IndexArray, IndexArray]:
        """Find the places of its lower halves beside upper ones in theirs, and which are reversed: -1; (V / 2,) both.

        Parameters
        ----------
        lower : float32 array, (N, B, V / 2)
            Of all blocks.
        laid : float32 array, (N, B, V / 2)
            All upper halves in their places.
        """
        seen = _flat(laid[:, self._around]) - self._centre
        pull = lower[:, self.block].T @ seen / np.float32(len(lower)) @ self._lower
        places = linear_sum_assignment(np.abs(pull), maximize=True)[1]
        signs = np.where(np.take_along_axis(pull, places[:, None], axis=1)[:, 0] < 0, -1, 1)
        return places, signs


def _neighbourhoods(grid: tuple[int, int]) -> Iterator[IndexArray]:
    """List for each block the blocks around it, and itself."""
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    for row, column in np.ndindex(grid):
        yield numbers[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].reshape(-1)


def _centred(values: UInt8Array) -> Float32Array:
    result = values.astype(np.float32)
    result -= _MIDDLE
    return result


def _flat(values: Float32Array) -> Float32Array:
    return values.reshape(len(values), -1)
