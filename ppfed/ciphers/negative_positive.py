"""The pixel-based ciphers: negative-positive transform, once or twice, and colour shuffle.

Source: Sirichotedumrong et al., ICIP 2019, sections 3.2 and 3.4; the bits come from AES as docs/cipher.md defines them.
NP twice is ppfed's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ppfed.ciphers.kernels import UInt32Array, permute_colours
from ppfed.ciphers.keyed import KeyedCipher
from ppfed.images.types import UInt8Array

COLOUR_PERMUTATIONS: UInt8Array = np.array(
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], dtype=np.uint8
)
"""(6, 3): row k lists the old channel that each new channel takes: RGB, RBG, GRB, GBR, BRG, BGR (paper, 3.2)."""

_SHUFFLE = 8 * COLOUR_PERMUTATIONS.astype(np.uint32)
_UNDO = 8 * np.argsort(COLOUR_PERMUTATIONS, axis=1).astype(np.uint32)
"""(6, 3): the permutations and their inverses in bits, as ``permute_colours`` takes them."""

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


def apply_stream(pixels: UInt8Array, stream: NPStream, out: UInt8Array | None = None) -> UInt8Array:
    """Encrypt: step 2, then step 3.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, C), C-contiguous
    stream : NPStream
        Of the same shape, or with N = 1 for a mask shared by the batch.
    out : uint8 array, (N, H, W, C), C-contiguous, or None
        Where the result goes; a new array if it is None.

    Returns
    -------
    uint8 array, (N, H, W, C)
    """
    out = np.bitwise_xor(pixels, stream.mask, out=out)
    if stream.permutation is not None:
        _permute_colours(out, stream.permutation, _SHUFFLE, out)
    return out


def remove_stream(pixels: UInt8Array, stream: NPStream, out: UInt8Array) -> None:
    """Decrypt: undo step 3, then step 2. Shapes as in ``apply_stream``."""
    if stream.permutation is None:
        np.bitwise_xor(pixels, stream.mask, out=out)
        return
    _permute_colours(pixels, stream.permutation, _UNDO, out)
    out ^= stream.mask


def _permute_colours(pixels: UInt8Array, permutation: UInt8Array, shifts: UInt32Array, out: UInt8Array) -> None:
    count, height, width, channels = pixels.shape
    flat = np.ascontiguousarray(permutation).reshape(len(permutation), height * width)
    values = height * width * channels
    permute_colours(pixels.reshape(count, values), flat, shifts, out.reshape(count, values))


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

    def _apply(self, pixels: UInt8Array, stream: NPStream, out: UInt8Array) -> None:
        apply_stream(pixels, stream, out)

    def _remove(self, pixels: UInt8Array, stream: NPStream, out: UInt8Array) -> None:
        remove_stream(pixels, stream, out)


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
