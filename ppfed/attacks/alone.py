"""The strongest attack on a single encrypted image that needs neither key nor training, for each cipher."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ppfed.attacks.blocks.bit_planes import restore_le
from ppfed.attacks.blocks.edges import Variants
from ppfed.attacks.blocks.jigsaw import Assembly, Fit, assemble, classical_fit
from ppfed.attacks.values.stream import NP_CONSTANTS, NP_TWICE_CONSTANTS
from ppfed.attacks.values.unfold import unfold
from ppfed.ciphers.spec import BLOCK_PX, CipherSpec
from ppfed.images.types import UInt8Array

Solver = Callable[[UInt8Array], UInt8Array]
"""Restores ciphertexts, uint8 (N, H, W, C), each by itself."""

XOR_CONSTANTS = {"np-v1": NP_CONSTANTS, "np2-v1": NP_TWICE_CONSTANTS}
"""What each cipher of the NP family may XOR a value with."""

PUZZLES = {"etc-v1": True, "block-pixel-v1": False}
"""Ciphers that scramble blocks: whether they turn, negate and recolour each, or permute the pixels of all alike."""

_MOST_BLOCKS = 1024
"""In a jigsaw puzzle: blocks are compared in pairs, in memory."""
_FEWEST_BLOCKS_ASIDE = 3
"""In each direction, for LE: what a block has in common with its neighbours is the evidence."""


def fits(cipher: str, shape: tuple[int, int, int]) -> bool:
    """Tell whether images of (height, width, channels) are neither too small nor too large for a block attack."""
    rows, columns = shape[0] // BLOCK_PX, shape[1] // BLOCK_PX
    if cipher == "le-v1":
        return min(rows, columns) >= _FEWEST_BLOCKS_ASIDE
    return cipher not in PUZZLES or rows * columns <= _MOST_BLOCKS


def solver(cipher: CipherSpec, *, device: torch.device, seed: int = 0) -> Solver | None:
    """Choose how to restore images of a cipher one by one.

    Parameters
    ----------
    cipher : CipherSpec
        Its scope does not matter: nothing is pooled over images.
    device : torch.device
    seed : int
        Of the jigsaw solver's search.

    Returns
    -------
    callable or None
        None for ciphers without such an attack; others take images that ``fits`` admits. A jigsaw solver's pictures may
        be turned or mirrored.
    """
    if cipher.name in XOR_CONSTANTS:
        constants = XOR_CONSTANTS[cipher.name]
        return lambda hidden: unfold(hidden, colour_shuffle=cipher.colour_shuffle, constants=constants, device=device)
    if cipher.name == "le-v1":
        return lambda hidden: restore_le(hidden, pooled=False)
    if cipher.name not in PUZZLES:
        return None
    return lambda hidden: puzzle(cipher.name, hidden, pooled=False, generator=np.random.default_rng(seed)).restore(
        hidden
    )


def puzzle_variants(cipher: str, channels: int) -> Variants:
    """List the ways in which a cipher of ``PUZZLES`` may show a block."""
    every_way = PUZZLES[cipher]
    return Variants.of(turns=every_way, negatives=every_way, colours=every_way and channels == 3)


def open_ways(cipher: str) -> Variants:
    """List the ways in which restored images of a block cipher, or the logistic map, may still be shown, in colour."""
    every_way = PUZZLES.get(cipher, False)
    return Variants.of(turns=True, negatives=every_way, colours=every_way)


def puzzle(
    cipher: str, hidden: UInt8Array, *, pooled: bool, generator: np.random.Generator, fit: Fit = classical_fit
) -> Assembly:
    """Put the blocks of ciphertexts together with what the cipher may have done to them; see ``jigsaw.assemble``."""
    return assemble(
        hidden,
        block_px=BLOCK_PX,
        variants=puzzle_variants(cipher, hidden.shape[3]),
        pixels=not PUZZLES[cipher],
        pooled=pooled,
        fit=fit,
        generator=generator,
    )
