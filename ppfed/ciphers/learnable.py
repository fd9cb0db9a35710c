"""Learnable encryption (LE) and extended learnable encryption (ELE): 4-bit values reversed and shuffled in blocks.

Sources: Tanaka, ICCE-TW 2018 (arXiv 1804.00490); Madono et al., AAAI workshop 2020 (arXiv 2001.07761).
"""

from __future__ import annotations

import numpy as np

from ppfed.ciphers.keystream import IndexArray, random_order
from ppfed.ciphers.shuffling import ShuffleStream, ShufflingCipher, from_blocks, scramble, to_blocks
from ppfed.ciphers.spec import BLOCK_PX
from ppfed.images.types import UInt8Array

_LOW = np.uint8(15)


class _NibbleCipher(ShufflingCipher):
    """Symbols are 4-bit values: in each block first the lower halves of all its values, then the upper halves."""

    def _symbols(self, pixels: UInt8Array) -> UInt8Array:
        blocks = to_blocks(pixels)
        return np.concatenate([blocks & _LOW, blocks >> np.uint8(4)], axis=2).reshape(len(pixels), -1)

    def _pixels(self, symbols: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
        halves = symbols.reshape(shape[0], _blocks(shape[1:]), 2, BLOCK_PX * BLOCK_PX * shape[3])
        values: UInt8Array = halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4))
        return from_blocks(values, shape)


class LearnableCipher(_NibbleCipher):
    """Tanaka's learnable encryption, version 1: the same reversals and the same shuffle in every block."""

    name = "le-v1"
    label = "le"
    uses = ("reverse", "shuffle")

    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> ShuffleStream:
        count, blocks, nibbles = len(nonces), _blocks(shape), _nibbles(shape)
        reverse = self._keystreams["reverse"].masks(nonces, nibbles) & _LOW
        order = random_order(self._keystreams["shuffle"].words(nonces, nibbles))
        source = _starts(blocks, nibbles) + order[:, None, :]
        return ShuffleStream(np.tile(reverse, blocks), source.reshape(count, -1))


class ExtendedLearnableCipher(_NibbleCipher):
    """Madono's extended learnable encryption, version 1: a key for each block, then the blocks are shuffled."""

    name = "ele-v1"
    label = "ele"
    uses = ("reverse", "shuffle", "scramble")

    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> ShuffleStream:
        count, blocks, nibbles = len(nonces), _blocks(shape), _nibbles(shape)
        reverse = self._keystreams["reverse"].masks(nonces, blocks * nibbles) & _LOW
        words = self._keystreams["shuffle"].words(nonces, blocks * nibbles)
        source = random_order(words.reshape(count, blocks, nibbles))
        order = random_order(self._keystreams["scramble"].words(nonces, blocks))
        return ShuffleStream(reverse, scramble(source, order))


def _blocks(shape: tuple[int, ...]) -> int:
    """Count the blocks of an image of (height, width, channels)."""
    return (shape[0] // BLOCK_PX) * (shape[1] // BLOCK_PX)


def _nibbles(shape: tuple[int, int, int]) -> int:
    """Count the 4-bit values of a block."""
    return 2 * BLOCK_PX * BLOCK_PX * shape[2]


def _starts(blocks: int, nibbles: int) -> IndexArray:
    """Return where each block begins among the symbols: (blocks, 1)."""
    return np.arange(0, blocks * nibbles, nibbles, dtype=np.intp)[:, None]
