"""Values masked with RC4, pixels moved by a logistic map. Source: Gaata and Hantoosh, 2013.

Only the two building blocks are taken from there; docs/cipher.md fixes everything else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.algorithms import ARC4
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher

from ppfed.ciphers.kernels import UInt64Array
from ppfed.ciphers.keystream import IndexArray
from ppfed.ciphers.shuffling import ShuffleStream, ShufflingCipher
from ppfed.errors import UsageError
from ppfed.images.types import UInt8Array

Float64Array = npt.NDArray[np.float64]

GROWTH = 3.99
"""r of the map x -> r x (1 - x): chaotic, and away from 4, where rounding can throw an orbit onto 0 for good."""

BURN_IN = 1000
"""Steps of an orbit that are left out, so that similar initial values do not show in it."""

_RC4_KEY_BYTES = 16


class LogisticRC4Cipher(ShufflingCipher):
    """The logistic-map and RC4 cipher, version 1: the values are masked, then the pixels are moved."""

    name = "logistic-rc4-v1"
    label = "logistic-rc4"
    uses = ("rc4", "logistic")

    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> ShuffleStream:
        height, width, channels = shape
        pixels = height * width
        mask = rc4_keystreams(self._keystreams["rc4"].bytes(nonces, _RC4_KEY_BYTES), pixels * channels)
        start = initial_values(self._keystreams["logistic"].words(nonces, 1)[:, 0])
        order: IndexArray = logistic_orbits(start, pixels).argsort(axis=1, kind="stable")
        source = order[..., None] * channels + np.arange(channels, dtype=np.intp)
        return ShuffleStream(mask, source.reshape(len(nonces), -1))


def initial_values(words: UInt64Array) -> Float64Array:
    """Turn 64-bit words into numbers between 0 and 1, exclusive: odd multiples of 2^-53, without rounding."""
    return ((words >> np.uint64(12)) * np.uint64(2) + np.uint64(1)).astype(np.float64) * 2.0**-53


def logistic_orbits(start: Float64Array, length: int) -> Float64Array:
    """Follow the logistic map from many initial values at once.

    Each step is two products and a difference of IEEE 754 doubles, rounded one by one: (r * x) * (1 - x). They are
    separate calls, so that no compiler can fuse them, and the result is the same on every machine.

    Parameters
    ----------
    start : float64 array, (N,)
    length : int
        Steps to keep after ``BURN_IN``.

    Returns
    -------
    float64 array, (N, length)
    """
    value, rest = start.copy(), np.empty_like(start)
    orbit = np.empty((length, len(start)))
    for step in range(-BURN_IN, length):
        np.subtract(1.0, value, out=rest)
        np.multiply(GROWTH, value, out=value)
        np.multiply(value, rest, out=value)
        if step >= 0:
            orbit[step] = value
    return np.ascontiguousarray(orbit.T)


def rc4_keystreams(keys: UInt8Array, length: int) -> UInt8Array:
    """RC4 keystreams from their first byte.

    Parameters
    ----------
    keys : uint8 array, (N, 16)
    length : int
        Bytes of each.

    Returns
    -------
    uint8 array, (N, length)

    Raises
    ------
    UsageError
        If the OpenSSL of this machine has RC4 switched off.
    """
    zeros = bytes(length)
    try:
        # A call for each key: RC4 in C takes less time for an image than NumPy for one byte of all images.
        streams = [BlockCipher(ARC4(key.tobytes()), mode=None).encryptor().update(zeros) for key in keys]
    except UnsupportedAlgorithm:
        raise UsageError(
            "cipher logistic-rc4-v1 needs RC4, which the OpenSSL of this machine has switched off",
            hint="Choose another cipher, or unset CRYPTOGRAPHY_OPENSSL_NO_LEGACY if it is set.",
        ) from None
    return np.frombuffer(b"".join(streams), dtype=np.uint8).reshape(len(keys), length)
