"""Put the blocks of scrambled images together by their edges: the extended jigsaw puzzle solver.

Sources: Gallagher, CVPR 2012; Chuman, Kurihara and Kiya, IEICE Trans. E101-D, 2018 (blocks turned, negated and
recoloured). Where all images were scrambled alike (fixed scope), the fit is summed over all of them, which makes even
blocks of 4x4 pixels easy; a single image with such blocks is solved in part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ppfed.attacks.blocks.cutting import cut, join
from ppfed.attacks.blocks.edges import COLOURS, Float32Array, IndexArray, Variants, relative, seam_costs, turned
from ppfed.attacks.blocks.pixel_order import pixel_order
from ppfed.attacks.blocks.placement import Puzzle
from ppfed.images.types import UInt8Array

Fit = Callable[[UInt8Array, Variants], Float32Array]
"""From blocks, uint8 (N, B, P, P, C), and what may differ between two of them to costs as ``relative`` gives them."""


def classical_fit(blocks: UInt8Array, variants: Variants) -> Float32Array:
    """Cost seams by their edges alone."""
    return relative(seam_costs(blocks, variants))


@dataclass(frozen=True)
class Assembly:
    """Where the blocks of ciphertexts belong.

    Attributes
    ----------
    block_px : int
    block : intp array, (K, rows, columns)
        Which block of the ciphertext lies in each cell of the picture; K is 1 when all images were scrambled alike.
    order : intp array, (K, block_px^2)
        Pixel number i of a block is pixel ``order[i]`` of the ciphertext's block.
    turn, negative, colour : intp arrays, (K, rows, columns)
        How it is shown then (``Variants``).
    cost : float array, (K,)
        Of the seams; low where the parts fit.
    """

    block_px: int
    block: IndexArray
    order: IndexArray
    turn: IndexArray
    negative: IndexArray
    colour: IndexArray
    cost: np.ndarray[tuple[int], np.dtype[np.float64]]

    def restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        """Lay the blocks of images out.

        Parameters
        ----------
        ciphertexts : uint8 array, (N, H, W, C)
            N is K, unless K is 1.

        Returns
        -------
        uint8 array, (N, H, W, C)
            Up to what edges cannot tell: the whole picture may be turned, mirrored, negative or recoloured where the
            blocks were.
        """
        blocks = cut(ciphertexts, self.block_px)
        count, number, side, _, channels = blocks.shape
        which = np.broadcast_to(self.block.reshape(len(self.block), -1), (count, number))
        way = [np.broadcast_to(part.reshape(len(part), -1), (count, number)) for part in self._ways]
        moved = _ordered(blocks[np.arange(count)[:, None], which], self.order)
        places = np.stack([turned(np.arange(side * side).reshape(side, side), turn).reshape(-1) for turn in range(8)])
        pixels = moved.reshape(count, number, side * side, channels)
        pixels = np.take_along_axis(pixels, places[way[0]][..., None], axis=2)
        if channels == 3:
            pixels = np.take_along_axis(pixels, COLOURS[way[2]][:, :, None, :], axis=3)
        pixels = pixels ^ (way[1] * 255).astype(np.uint8)[..., None, None]
        return join(pixels.reshape(moved.shape), self.block.shape[1])

    @property
    def _ways(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        return self.turn, self.negative, self.colour


def assemble(
    ciphertexts: UInt8Array,
    *,
    block_px: int,
    variants: Variants,
    pooled: bool,
    pixels: bool = False,
    fit: Fit = classical_fit,
    generator: np.random.Generator,
    searches: int = 4,
    steps: int = 3000,
) -> Assembly:
    """Find where the blocks of images belong, from their edges alone.

    Parameters
    ----------
    ciphertexts : uint8 array, (N, H, W, C)
    block_px : int
        Side of a block, in pixels.
    variants : Variants
        What the cipher does to blocks besides moving them, to each in its own way.
    pooled : bool
        All images were scrambled alike (fixed scope): solve one puzzle. Otherwise one for each image.
    pixels : bool
        The pixels of all blocks of an image were permuted alike first: block-pixel. Their order is found before.
    fit : callable
        Costs of all seams; the classical ones unless a network has learned others.
    generator : numpy Generator
        Of the search.
    searches, steps : int
        As in ``Puzzle.solve``.

    Returns
    -------
    Assembly
    """
    blocks = cut(ciphertexts, block_px)
    rows, columns = ciphertexts.shape[1] // block_px, ciphertexts.shape[2] // block_px
    batches = [blocks] if pooled else [blocks[index : index + 1] for index in range(len(blocks))]
    orders, layouts = [], []
    for batch in batches:
        order = pixel_order(batch, generator=generator) if pixels else np.arange(block_px * block_px)
        costs = fit(_ordered(batch, order[None]), variants)
        layouts.append(Puzzle(costs, variants, rows, columns).solve(generator, searches, steps))
        orders.append(order)
    block = np.stack([layout.block for layout in layouts])
    shown = np.stack([layout.variant for layout in layouts])
    ways = (variants.turn[shown], variants.negative[shown], variants.colour[shown])
    return Assembly(block_px, block, np.stack(orders), *ways, np.array([layout.cost for layout in layouts]))


def _ordered(blocks: UInt8Array, order: IndexArray) -> UInt8Array:
    """Put the pixels of blocks (N, B, P, P, C) into an order for each image, or into one, (1, P P)."""
    count, number, side, _, channels = blocks.shape
    pixels = blocks.reshape(count, number, side * side, channels)
    return np.take_along_axis(pixels, order[:, None, :, None], axis=2).reshape(blocks.shape)
