"""Ciphers that mask the symbols of an image, then move them: all but NP and NP twice do nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppfed.ciphers.keyed import KeyedCipher
from ppfed.ciphers.keystream import IndexArray
from ppfed.ciphers.spec import BLOCK_PX
from ppfed.images.types import UInt8Array


@dataclass(frozen=True)
class ShuffleStream:
    """How the symbols of an image are masked and moved.

    Attributes
    ----------
    mask : uint8 array, (N, V), or None
        XORed with the plain symbols; None where they are only moved.
    source : intp array, (N, V)
        Then symbol number i becomes number ``source[i]``: each row is a permutation of 0 to V - 1.
    """

    mask: UInt8Array | None
    source: IndexArray


class ShufflingCipher(KeyedCipher[ShuffleStream]):
    """A cipher of masked and moved symbols; a subclass says what the symbols are and draws the stream."""

    def _symbols(self, pixels: UInt8Array) -> UInt8Array:
        """Take images apart: (N, H, W, C) to (N, V)."""
        return pixels.reshape(len(pixels), -1)

    def _pixels(self, symbols: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
        """Put images of (N, H, W, C) together again."""
        return symbols.reshape(shape)

    def _apply(self, pixels: UInt8Array, stream: ShuffleStream, out: UInt8Array) -> None:
        symbols = self._symbols(pixels)
        masked = symbols if stream.mask is None else symbols ^ stream.mask
        if len(stream.source) == 1:
            moved = masked.take(stream.source[0], axis=1)
        else:
            moved = masked.reshape(-1)[_flat(stream.source)]
        out[...] = self._pixels(moved, pixels.shape)

    def _remove(self, pixels: UInt8Array, stream: ShuffleStream, out: UInt8Array) -> None:
        symbols = self._symbols(pixels)
        if len(stream.source) == 1:
            moved = symbols.take(stream.source[0].argsort(), axis=1)
        else:
            moved = np.empty_like(symbols)
            moved.reshape(-1)[_flat(stream.source)] = symbols
        plain = moved if stream.mask is None else moved ^ stream.mask
        out[...] = self._pixels(plain, pixels.shape)


class BlockShufflingCipher(ShufflingCipher):
    """A cipher whose symbols are the values of an image, block by block."""

    def _symbols(self, pixels: UInt8Array) -> UInt8Array:
        return to_blocks(pixels).reshape(len(pixels), -1)

    def _pixels(self, symbols: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
        return from_blocks(symbols, shape)


def _flat(source: IndexArray) -> IndexArray:
    """Turn positions in rows into positions in the flattened array."""
    count, width = source.shape
    return source + np.arange(0, count * width, width, dtype=np.intp)[:, None]


def scramble(source: IndexArray, order: IndexArray) -> IndexArray:
    """Put blocks into an order, each with what was done inside it.

    Parameters
    ----------
    source : intp array, (N, B, V)
        In each block the old place, counted from 0 in that block, of each of its V symbols.
    order : intp array, (N, B)
        New block number j is old block number ``order[j]``.

    Returns
    -------
    intp array, (N, B V)
        What ``ShuffleStream.source`` holds.
    """
    count, blocks, symbols = source.shape
    moved: IndexArray = source[np.arange(count)[:, None], order]
    moved += (order * symbols)[:, :, None]
    return moved.reshape(count, blocks * symbols)


def to_blocks(pixels: UInt8Array) -> UInt8Array:
    """Cut images into blocks of 4x4 pixels.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, C)

    Returns
    -------
    uint8 array, (N, B, 16 C)
        Blocks row by row; in each the values in C order (row, column, channel).
    """
    count, height, width, channels = pixels.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    cut = pixels.reshape(count, rows, BLOCK_PX, columns, BLOCK_PX, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(count, rows * columns, BLOCK_PX * BLOCK_PX * channels)


def from_blocks(blocks: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
    """Join the blocks that `to_blocks` cut into images of ``shape`` (N, H, W, C)."""
    count, height, width, channels = shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    cut = blocks.reshape(count, rows, columns, BLOCK_PX, BLOCK_PX, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(shape)
