"""From a nonce to random bits, numbers and orders: the part of docs/cipher.md that every cipher shares."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from ppfed.ciphers.kernels import UInt64Array, lay_out_counters, scale_words, xor_bits, xor_masks
from ppfed.images.types import ID_BYTES, UInt8Array

IndexArray = npt.NDArray[np.intp]

_BLOCK_BYTES = 16
_WORDS = 2
"""Of 64 bits, in a block."""
_ALL_BITS: UInt8Array = np.array([0xFF], dtype=np.uint8)


class _Encryptor(threading.local):
    """AES, one for each thread: two may not use one at once, and to make one costs as much as ten kilobytes of AES.

    Parameters
    ----------
    key : bytes
        32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        # ECB over counter blocks that we lay out ourselves is CTR mode for all images of a batch in one call.
        self.blocks = BlockCipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305


class Keystream:
    """AES-256-CTR keystreams under one sub-key.

    Parameters
    ----------
    key : bytes
        32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._aes = _Encryptor(key)

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
        size = len(nonces) * blocks * _BLOCK_BYTES
        # The interface asks for room for a block more than it fills.
        memory = np.empty(size + _BLOCK_BYTES - 1, dtype=np.uint8)
        filled = memory[:size]
        lay_out_counters(
            np.ascontiguousarray(nonces).view("<u4"), filled.view("<u8").reshape(len(nonces), _WORDS * blocks)
        )
        # In place, which takes half the memory. OpenSSL allows it where input and output begin at the same address and
        # no part of a block is left from the call before: only whole blocks are ever passed.
        self._aes.blocks.update_into(filled.data, memory.data)
        return np.ascontiguousarray(filled.reshape(len(nonces), blocks * _BLOCK_BYTES)[:, :length])

    def bits(self, nonces: UInt8Array, count: int) -> UInt8Array:
        """Draw ``count`` bits, least significant first. Returns a uint8 array, (N, count / 8, rounded up)."""
        return self.bytes(nonces, -(-count // 8))

    def masks(self, nonces: UInt8Array, count: int) -> UInt8Array:
        """Spread each bit to a byte: 0 or 255. Returns a uint8 array, (N, count)."""
        return spread(self.bits(nonces, count)[None], _ALL_BITS, count)

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


def spread(bits: UInt8Array, constants: UInt8Array, count: int) -> UInt8Array:
    """Spread bits to bytes.

    Parameters
    ----------
    bits : uint8 array, (K, N, count / 8, rounded up)
        Least significant bit first.
    constants : uint8 array, (K,)
        What a bit of 1 becomes; what becomes of K bits is XORed.
    count : int

    Returns
    -------
    uint8 array, (N, count)
    """
    return _spread_whole(bits, constants)[:, :count]


def _spread_whole(bits: UInt8Array, constants: UInt8Array) -> UInt8Array:
    """Spread all bits, also those that fill up the last byte: (N, 8 times as many)."""
    _, rows, words = bits.shape
    masks: UInt64Array = np.empty((rows, words), dtype="<u8")
    xor_bits(np.zeros((1, words), dtype="<u8"), bits, constants, masks)
    return masks.view(np.uint8)


def xor_spread(values: UInt8Array, bits: UInt8Array, constants: UInt8Array, out: UInt8Array) -> None:
    """XOR values with bits spread to bytes.

    Where each row has bits of its own and is whole words, they are spread on the way; else they are stored in between.

    Parameters
    ----------
    values : uint8 array, (N, V), C-contiguous
    bits : uint8 array, (K, N, V / 8, rounded up), or (K, 1, ...) for bits that all rows share
        Least significant bit first.
    constants : uint8 array, (K,)
        What a bit of 1 becomes.
    out : uint8 array, (N, V), C-contiguous
        May be ``values``.
    """
    rows, count = values.shape
    if count % 8 or bits.shape[1] < rows:
        xor_masks(values, _spread_whole(bits, constants), out)
    else:
        xor_bits(values.view("<u8"), bits, constants, out.view("<u8"))


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
