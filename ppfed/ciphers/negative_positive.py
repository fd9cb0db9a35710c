"""The pixel-based ciphers: negative-positive transform, once or twice, and colour shuffle.

Source: Sirichotedumrong et al., ICIP 2019, sections 3.2 and 3.4; the bits come from AES as docs/cipher.md defines them.
NP twice is ppfed's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ppfed.ciphers.keyed import KeyedCipher
from ppfed.images.types import UInt8Array

COLOUR_PERMUTATIONS: UInt8Array = np.array(
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], dtype=np.uint8
)
"""(6, 3): row k lists the old channel that each new channel takes: RGB, RBG, GRB, GBR, BRG, BGR (paper, 3.2)."""

_GATHER = np.argsort(COLOUR_PERMUTATIONS, axis=1).astype(np.uint8)
"""(6, 3): the inverse permutations, which undo the shuffle."""

_TOP_BIT = np.uint8(0x80)


@dataclass(frozen=True)
class NPStream:
    """What the key makes of a batch: the paper's random integers.

    Attributes
    ----------
    mask : uint8 array, (N, H, W, C)
        XORed with the pixels (step 2): 0 or 255, and in NP twice also 0x80 or 0x7f.
    permutation : uint8 array, (N, H, W), or None
        0 to 5: a row of ``COLOUR_PERMUTATIONS`` for each pixel (step 3); None where nothing is shuffled.
    """

    mask: UInt8Array
    permutation: UInt8Array | None


def apply_stream(pixels: UInt8Array, stream: NPStream) -> UInt8Array:
    """Encrypt: step 2, then step 3.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, C)
    stream : NPStream
        Of the same shape, or with N = 1 for a mask shared by the batch.

    Returns
    -------
    uint8 array, (N, H, W, C)
    """
    masked = pixels ^ stream.mask
    return masked if stream.permutation is None else _permute_colours(masked, stream.permutation, COLOUR_PERMUTATIONS)


def remove_stream(pixels: UInt8Array, stream: NPStream) -> UInt8Array:
    """Decrypt: undo step 3, then step 2. Shapes as in ``apply_stream``."""
    if stream.permutation is not None:
        pixels = _permute_colours(pixels, stream.permutation, _GATHER)
    return pixels ^ stream.mask


def _permute_colours(pixels: UInt8Array, permutation: UInt8Array, table: UInt8Array) -> UInt8Array:
    shape = pixels.shape
    permutation = np.broadcast_to(permutation, shape[:3])
    # One flat gather: value 3p + table[permutation of p] becomes the new value at each channel of pixel p.
    index = table.astype(np.int32)[permutation].reshape(-1, 3)
    index += np.arange(0, pixels.size, 3, dtype=np.int32)[:, None]
    return pixels.reshape(-1)[index].reshape(shape)


class NegativePositiveCipher(KeyedCipher[NPStream]):
    """The NP cipher, version 1."""

    name = "np-v1"
    label = "np"
    uses: ClassVar[tuple[str, ...]] = ("mask", "shuffle")

    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> NPStream:
        height, width, channels = shape
        mask = self._masks(nonces, height * width * channels).reshape(len(nonces), *shape)
        if not self._spec.colour_shuffle or channels == 1:
            return NPStream(mask, None)
        permutation = self._keystreams["shuffle"].below(nonces, height * width, len(COLOUR_PERMUTATIONS))
        return NPStream(mask, permutation.reshape(len(nonces), height, width))

    def _masks(self, nonces: UInt8Array, values: int) -> UInt8Array:
        """Draw what is XORed with each value: (N, values)."""
        return self._keystreams["mask"].masks(nonces, values)

    def _apply(self, pixels: UInt8Array, stream: NPStream) -> UInt8Array:
        return apply_stream(pixels, stream)

    def _remove(self, pixels: UInt8Array, stream: NPStream) -> UInt8Array:
        return remove_stream(pixels, stream)


class NegativePositiveTwiceCipher(NegativePositiveCipher):
    """NP twice, version 1: the top bit of each value is inverted at random too, independently of its negative.

    So the top bit is lost to whoever lacks the key, and the lower seven bits are left up to their negative.
    """

    name = "np2-v1"
    label = "np2"
    uses = ("mask", "top", "shuffle")

    def _masks(self, nonces: UInt8Array, values: int) -> UInt8Array:
        masks: UInt8Array = super()._masks(nonces, values)
        masks ^= self._keystreams["top"].masks(nonces, values) & _TOP_BIT
        return masks
