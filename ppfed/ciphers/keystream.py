"""From a nonce to random bits, numbers and orders: the part of docs/cipher.md that every cipher shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from ppfed.ciphers.kernels import UInt64Array, lay_out_counters, scale_words, spread_bits
from ppfed.images.types import ID_BYTES, UInt8Array

IndexArray = npt.NDArray[np.intp]

_BLOCK_BYTES = 16


def _spread_table() -> UInt8Array:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.ascontiguousarray(bits * np.uint8(255))


_SPREAD = _spread_table().view(np.uint64).ravel()
"""(256,) uint64: each byte of keystream spread to its eight masks of 0 or 255, least significant bit first."""


class Keystream:
    """AES-256-CTR keystreams under one sub-key.

    Parameters
    ----------
    key : bytes
        32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        # ECB over counter blocks that we lay out ourselves is CTR mode for all images of a batch in one call.
        self._aes = BlockCipher(algorithms.AES(key), modes.ECB())  # noqa: S305

    def bytes(self, nonces: UInt8Array, length: int) -> UInt8Array:
        """Keystreams of many nonces in one call.

        Parameters
        ----------
        nonces : uint8 array, (N, 12)
            The counter block starts as the nonce followed by four zero bytes.
        length : int
            Bytes of keystream for each nonce.

        Returns
        -------
        uint8 array, (N, length), C-contiguous
        """
        blocks = -(-length // _BLOCK_BYTES)
        counters = np.empty((len(nonces), blocks, _BLOCK_BYTES // 4), dtype="<u4")
        lay_out_counters(np.array(nonces, dtype=np.uint8, order="C").view("<u4"), counters)
        # The interface asks for room for a block more than it fills.
        keystream = np.empty(counters.nbytes + _BLOCK_BYTES - 1, dtype=np.uint8)
        filled = self._aes.encryptor().update_into(counters.reshape(-1).view(np.uint8).data, keystream.data)
        return np.ascontiguousarray(keystream[:filled].reshape(len(nonces), blocks * _BLOCK_BYTES)[:, :length])

    def masks(self, nonces: UInt8Array, count: int) -> UInt8Array:
        """Spread each bit to a byte: 0 or 255. Returns a uint8 array, (N, count)."""
        packed = self.bytes(nonces, (count + 7) // 8)
        spread = np.empty(packed.shape, dtype=np.uint64)
        spread_bits(packed.reshape(-1), _SPREAD, spread.reshape(-1))
        return spread.view(np.uint8)[:, :count]

    def below(self, nonces: UInt8Array, count: int, bound: int) -> UInt8Array:
        """Draw numbers from 0 to ``bound`` - 1, each from a 32-bit word, with a bias below ``bound`` / 2^32.

        Returns
        -------
        uint8 array, (N, count)
        """
        words = self.bytes(nonces, 4 * count).view("<u4").astype(np.uint32, copy=False)
        drawn = np.empty(words.shape, dtype=np.uint8)
        scale_words(words.reshape(-1), bound, drawn.reshape(-1))
        return drawn

    def words(self, nonces: UInt8Array, count: int) -> UInt64Array:
        """Read little-endian 64-bit words. Returns a uint64 array, (N, count)."""
        return self.bytes(nonces, 8 * count).view("<u8").astype(np.uint64, copy=False)


def fixed_nonce(shape: tuple[int, int, int]) -> UInt8Array:
    """Return the nonce of fixed scope: height, width and channels, each as 4 bytes, big-endian. Shape (1, 12)."""
    return np.frombuffer(b"".join(side.to_bytes(4, "big") for side in shape), dtype=np.uint8).reshape(1, ID_BYTES)


def random_order(words: UInt64Array) -> IndexArray:
    """Put positions into a random order, by sorting random words.

    Each word has as many of its low bits replaced by its own position as positions need, so that no two are equal, and
    sorting the words sorts the positions: many times faster than an indirect sort of short rows.

    Parameters
    ----------
    words : uint64 array, (..., n)
        Uniform and independent.

    Returns
    -------
    intp array, (..., n)
        Each row is a permutation of 0 to n - 1.
    """
    count = words.shape[-1]
    low = np.uint64((1 << (count - 1).bit_length()) - 1)
    tagged = (words & ~low) | np.arange(count, dtype=np.uint64)
    tagged.sort(axis=-1)
    order: npt.NDArray[Any] = tagged & low
    return order.astype(np.intp)
