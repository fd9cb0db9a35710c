"""The inner loops of the ciphers that NumPy has no fast way to say, compiled.

NumPy would need an index of eight bytes for each value that a colour shuffle moves, three passes over 64-bit numbers
for each that is drawn, and strided writes for counter blocks. All loops release the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit, types

from ppfed.images.types import UInt8Array

UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]


def _array(kind: types.Type, dimensions: int, *, out: bool = False) -> types.Array:
    """Describe a C-contiguous array; what is only read may be read-only, as images mapped from disk are."""
    return types.Array(kind, dimensions, "C", readonly=not out)


_Loop = TypeVar("_Loop", bound=Callable[..., None])


def _compiled(*arguments: types.Type) -> Callable[[_Loop], _Loop]:
    """Compile a loop when its module is imported, and keep the machine code for the next process."""
    signature = types.void(*arguments)

    def compile_loop(loop: _Loop) -> _Loop:
        settings: dict[str, Any] = {"nogil": True, "boundscheck": False}
        try:
            compiled = njit(signature, cache=True, **settings)(loop)
        except RuntimeError:
            # Neither the package's folder nor the user's cache can be written: compile anew in each process.
            compiled = njit(signature, **settings)(loop)
        return cast(_Loop, compiled)

    return compile_loop


@_compiled(_array(types.uint32, 1), types.uint64, _array(types.uint8, 1, out=True))
def scale_words(words: UInt32Array, bound: int, out: UInt8Array) -> None:
    """Map uniform 32-bit words to uniform numbers below ``bound``: the high half of ``word * bound``.

    Parameters
    ----------
    words : uint32 array, (M,)
    bound : int
        1 to 256.
    out : uint8 array, (M,)
    """
    for index in range(words.size):
        out[index] = (np.uint64(words[index]) * bound) >> np.uint64(32)


@_compiled(_array(types.uint32, 2), _array(types.uint32, 3, out=True))
def lay_out_counters(nonces: UInt32Array, out: UInt32Array) -> None:
    """Write the counter blocks of AES-CTR: the nonce, then the block's number as a big-endian word.

    Parameters
    ----------
    nonces : uint32 array, (N, 3)
    out : uint32 array, (N, B, 4)
    """
    for image in range(out.shape[0]):
        for block in range(out.shape[1]):
            for word in range(3):
                out[image, block, word] = nonces[image, word]
            number = np.uint32(block)
            out[image, block, 3] = (
                (number << np.uint32(24))
                | ((number & np.uint32(0xFF00)) << np.uint32(8))
                | ((number >> np.uint32(8)) & np.uint32(0xFF00))
                | (number >> np.uint32(24))
            )


@_compiled(_array(types.uint8, 1), _array(types.uint64, 1), _array(types.uint64, 1, out=True))
def spread_bits(packed: UInt8Array, table: UInt64Array, out: UInt64Array) -> None:
    """Spread each bit to a byte: ``out[i] = table[packed[i]]``.

    Parameters
    ----------
    packed : uint8 array, (M,)
    table : uint64 array, (256,)
        Eight bytes for each byte.
    out : uint64 array, (M,)
    """
    for index in range(packed.size):
        out[index] = table[packed[index]]


@_compiled(_array(types.uint8, 2), _array(types.uint8, 2), _array(types.uint32, 2), _array(types.uint8, 2, out=True))
def permute_colours(pixels: UInt8Array, permutation: UInt8Array, shifts: UInt32Array, out: UInt8Array) -> None:
    """Permute the three values of each pixel.

    Parameters
    ----------
    pixels : uint8 array, (N, 3 P)
    permutation : uint8 array, (N, P) or (1, P)
        A row of ``shifts`` for each pixel; one for all images, or each its own.
    shifts : uint32 array, (K, 3)
        Eight times the old place of each new value.
    out : uint8 array, (N, 3 P)
        May be ``pixels``.
    """
    for image in range(pixels.shape[0]):
        row = image if permutation.shape[0] > 1 else 0
        for pixel in range(permutation.shape[1]):
            first = 3 * pixel
            packed = (
                np.uint32(pixels[image, first])
                | (np.uint32(pixels[image, first + 1]) << np.uint32(8))
                | (np.uint32(pixels[image, first + 2]) << np.uint32(16))
            )
            order = permutation[row, pixel]
            out[image, first] = np.uint8(packed >> shifts[order, 0])
            out[image, first + 1] = np.uint8(packed >> shifts[order, 1])
            out[image, first + 2] = np.uint8(packed >> shifts[order, 2])
