"""The pixel-based ciphers: negative-positive transform, once or twice, and colour shuffle.

Source: Sirichotedumrong et al., ICIP 2019, sections 3.2 and 3.4; the bits come from AES as docs/cipher.md defines them.
NP twice is ppfed's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ppfed.ciphers.kernels import permute_colours
from ppfed.ciphers.keyed import KeyedCipher
from ppfed.ciphers.keystream import spread, xor_spread
from ppfed.ciphers.spec import Scope
from ppfed.images.types import UInt8Array

COLOUR_PERMUTATIONS: UInt8Array = np.array(
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], dtype=np.uint8
)
"""(6, 3): row k lists the old channel that each new channel takes: RGB, RBG, GRB, GBR, BRG, BGR (paper, 3.2)."""

_INVERSES: UInt8Array = np.argsort(COLOUR_PERMUTATIONS, axis=1).astype(np.uint8)


@dataclass(frozen=True)
class NPStream:
    """What the key makes of a batch: the paper's random integers.

    Attributes
    ----------
    shape : (height, width, channels)
    bits : uint8 array, (K, N, H W C / 8, rounded up)
        K bits for each value (step 2), least significant first.
    constants : uint8 array, (K,)
        What a value is XORed with where its bit is 1.
    permutation : uint8 array, (N, H, W), or None
        0 to 5: a row of ``COLOUR_PERMUTATIONS`` for each pixel (step 3); None where nothing is shuffled.
    """

    shape: tuple[int, int, int]
    bits: UInt8Array
    constants: UInt8Array
    permutation: UInt8Array | None

    @property
    def mask(self) -> UInt8Array:
        """What step 2 XORs with the pixels: 0 or 255, and in NP twice also 0x80 or 0x7f.

        Returns
        -------
        uint8 array, (N, H, W, C)
        """
        return spread(self.bits, self.constants, math.prod(self.shape)).reshape(-1, *self.shape)


class NegativePositiveCipher(KeyedCipher[NPStream]):
    """The NP cipher, version 1."""

    name = "np-v1"
    label = "np"
    uses: ClassVar[tuple[str, ...]] = ("mask", "shuffle")
    constants: ClassVar[UInt8Array] = np.array([0xFF], dtype=np.uint8)
    """What values are XORed with where their bits are 1."""

    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> NPStream:
        height, width, _ = shape
        bits = self._bits(nonces, math.prod(shape))
        if not self._shuffles(shape):
            return NPStream(shape, bits, self.constants, None)
        permutation = self._keystreams["shuffle"].below(nonces, height * width, len(COLOUR_PERMUTATIONS))
        return NPStream(shape, bits, self.constants, permutation.reshape(len(nonces), height, width))

    def _bits(self, nonces: UInt8Array, values: int) -> UInt8Array:
        """Draw a bit for each value and each constant: (K, N, values / 8, rounded up)."""
        return self._keystreams["mask"].bits(nonces, values)[None]

    def _shuffles(self, shape: tuple[int, int, int]) -> bool:
        return self._spec.colour_shuffle and shape[2] == 3

    def _chunk_values(self, shape: tuple[int, int, int], values: int) -> int:
        chunk_values = super()._chunk_values(shape, values)
        # What is made of them on the way is three times their size with a shuffle, and an eighth of it without (twice
        # that in NP twice), except where ``xor_spread`` stores a mask for each image.
        stores_masks = self._spec.scope is Scope.IMAGE and math.prod(shape) % 8 != 0
        if not self._shuffles(shape) and not stores_masks:
            return 16 * chunk_values
        if self._threads == 1:
            return chunk_values
        # Between its loops each chunk queues for the interpreter's lock, some tens of microseconds each time, as two
        # threads wait for one another there: in small ones more than what a second thread gains.
        return min(8 * chunk_values, max(chunk_values, -(-values // self._threads)))

    def _apply(self, pixels: UInt8Array, stream: NPStream, out: UInt8Array) -> None:
        if stream.permutation is None:
            _flip(pixels, stream, out)
        else:
            flipped = np.empty_like(pixels)
            _flip(pixels, stream, flipped)
            _permute(flipped, stream.permutation, COLOUR_PERMUTATIONS, out)

    def _remove(self, pixels: UInt8Array, stream: NPStream, out: UInt8Array) -> None:
        if stream.permutation is None:
            _flip(pixels, stream, out)
        else:
            upright = np.empty_like(pixels)
            _permute(pixels, stream.permutation, _INVERSES, upright)
            _flip(upright, stream, out)


class NegativePositiveTwiceCipher(NegativePositiveCipher):
    """NP twice, version 1: the top bit of each value is inverted at random too, independently of its negative.

    So the top bit is lost to whoever lacks the key, and the lower seven bits are left up to their negative.
    """

    name = "np2-v1"
    label = "np2"
    uses = ("mask", "top", "shuffle")
    constants = np.array([0xFF, 0x80], dtype=np.uint8)

    def _bits(self, nonces: UInt8Array, values: int) -> UInt8Array:
        top = self._keystreams["top"].bits(nonces, values)[None]
        return np.concatenate([super()._bits(nonces, values), top])


def _flip(pixels: UInt8Array, stream: NPStream, out: UInt8Array) -> None:
    """Step 2, which undoes itself."""
    xor_spread(pixels.reshape(len(pixels), -1), stream.bits, stream.constants, out.reshape(len(out), -1))


def _permute(pixels: UInt8Array, permutation: UInt8Array, places: UInt8Array, out: UInt8Array) -> None:
    """Step 3, or with the inverses as places what undoes it."""
    flat = permutation.reshape(len(permutation), -1)
    permute_colours(pixels.reshape(len(pixels), -1), flat, places, out.reshape(len(out), -1))
