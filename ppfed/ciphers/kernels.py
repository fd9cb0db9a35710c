"""The inner loops of the ciphers that NumPy has no fast way to say, compiled.

NumPy would need an index of eight bytes for each value that a colour shuffle moves, three passes over 64-bit numbers
for each that is drawn, strided writes for counter blocks, a byte in memory for each bit of a mask, and a call of its
own for each row that is XORed with one that rows share. All loops release the interpreter lock.
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
    """Describe a C-contiguous array, anywhere in memory; what is only read may be read-only, as mapped images are."""
    return types.Array(kind, dimensions, "C", readonly=not out, aligned=False)


_Loop = TypeVar("_Loop", bound=Callable[..., None])
_Function = TypeVar("_Function", bound=Callable[..., object])


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


def _inlined(function: _Function) -> _Function:
    """Compile a function into the loops that call it."""
    return cast(_Function, njit(function))


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


@_compiled(_array(types.uint32, 2), _array(types.uint64, 2, out=True))
def lay_out_counters(nonces: UInt32Array, out: UInt64Array) -> None:
    """Write the counter blocks of AES-CTR: the nonce, then the block's number as a big-endian word.

    Parameters
    ----------
    nonces : uint32 array, (N, 3)
    out : uint64 array, (N, 2 B)
        Two halves for each block.
    """
    for image in range(out.shape[0]):
        first = np.uint64(nonces[image, 0]) | (np.uint64(nonces[image, 1]) << np.uint64(32))
        second = np.uint64(nonces[image, 2])
        for block in range(out.shape[1] // 2):
            number = np.uint32(block)
            swapped = (
                (number << np.uint32(24))
                | ((number & np.uint32(0xFF00)) << np.uint32(8))
                | ((number >> np.uint32(8)) & np.uint32(0xFF00))
                | (number >> np.uint32(24))
            )
            out[image, 2 * block] = first
            out[image, 2 * block + 1] = second | (np.uint64(swapped) << np.uint64(32))


_EACH_BYTE = np.uint64(0x0101010101010101)
_BIT_OF_EACH = np.uint64(0x8040201008040201)
"""In byte number k, as words lie in memory, bit number k."""
_BELOW_TOP = np.uint64(0x7F7F7F7F7F7F7F7F)


@_inlined
def _spread(bits: np.uint8, constants: np.uint64) -> np.uint64:
    """Keep those of eight bytes whose bit is 1."""
    # A copy of all bits in each byte, of which it keeps its own; if that is 1, the sum reaches the byte's top bit.
    own = (np.uint64(bits) * _EACH_BYTE) & _BIT_OF_EACH
    ones = ((own + _BELOW_TOP) >> np.uint64(7)) & _EACH_BYTE
    return ((ones << np.uint64(8)) - ones) & constants


@_compiled(_array(types.uint64, 2), _array(types.uint8, 3), _array(types.uint8, 1), _array(types.uint64, 2, out=True))
def xor_bits(values: UInt64Array, bits: UInt8Array, constants: UInt8Array, out: UInt64Array) -> None:
    """XOR eight values at a time with constants, each where its bit is 1.

    Parameters
    ----------
    values : uint64 array, (N, B) or (1, B)
    bits : uint8 array, (K, N, B)
        The least significant is for the value that is first in memory.
    constants : uint8 array, (K,)
    out : uint64 array, (N, B)
        May be ``values``.
    """
    for image in range(out.shape[0]):
        source = image if values.shape[0] > 1 else 0
        constant = np.uint64(constants[0]) * _EACH_BYTE
        for index in range(out.shape[1]):
            out[image, index] = values[source, index] ^ _spread(bits[0, image, index], constant)
        # A row is still in the cache.
        for more in range(1, bits.shape[0]):
            constant = np.uint64(constants[more]) * _EACH_BYTE
            for index in range(out.shape[1]):
                out[image, index] ^= _spread(bits[more, image, index], constant)


@_compiled(_array(types.uint8, 2), _array(types.uint8, 2), _array(types.uint8, 2, out=True))
def xor_masks(values: UInt8Array, masks: UInt8Array, out: UInt8Array) -> None:
    """XOR rows with masks.

    Parameters
    ----------
    values : uint8 array, (N, V)
    masks : uint8 array, (N, V or more) or (1, V or more)
        One for all rows, or each its own.
    out : uint8 array, (N, V)
        May be ``values``.
    """
    for image in range(values.shape[0]):
        row = image if masks.shape[0] > 1 else 0
        for index in range(values.shape[1]):
            out[image, index] = values[image, index] ^ masks[row, index]


_Three = tuple[np.uint8, np.uint8, np.uint8]
_Six = tuple[np.uint8, np.uint8, np.uint8, np.uint8, np.uint8, np.uint8]


@_inlined
def _column(table: UInt8Array, number: int) -> _Six:
    return (
        table[0, number],
        table[1, number],
        table[2, number],
        table[3, number],
        table[4, number],
        table[5, number],
    )


@_inlined
def _of_three(values: _Three, number: np.uint8) -> np.uint8:
    """Choose by comparing, which is done for many pixels at once; to look up is not."""
    return values[0] if number == 0 else values[1] if number == 1 else values[2]


@_inlined
def _of_six(values: _Six, number: np.uint8) -> np.uint8:
    lower = _of_three((values[0], values[1], values[2]), number)
    return lower if number < 3 else _of_three((values[3], values[4], values[5]), number - np.uint8(3))


@_compiled(_array(types.uint8, 2), _array(types.uint8, 2), _array(types.uint8, 2), _array(types.uint8, 2, out=True))
def permute_colours(pixels: UInt8Array, permutation: UInt8Array, places: UInt8Array, out: UInt8Array) -> None:
    """Permute the three values of each pixel.

    Parameters
    ----------
    pixels : uint8 array, (N, 3 P)
    permutation : uint8 array, (N, P) or (1, P)
        A row of ``places`` for each pixel; one for all images, or each its own.
    places : uint8 array, (6, 3)
        The old place of each new value.
    out : uint8 array, (N, 3 P)
        Shares no memory with ``pixels``.
    """
    first_places = _column(places, 0)
    second_places = _column(places, 1)
    for image in range(pixels.shape[0]):
        row = image if permutation.shape[0] > 1 else 0
        # Unsigned: a signed index might be negative and count from the end, which would have to be looked at each time.
        for pixel in range(np.uint64(permutation.shape[1])):
            first = pixel * np.uint64(3)
            second, third = first + np.uint64(1), first + np.uint64(2)
            old = pixels[image, first], pixels[image, second], pixels[image, third]
            number = permutation[row, pixel]
            new_first = _of_three(old, _of_six(first_places, number))
            new_second = _of_three(old, _of_six(second_places, number))
            out[image, first] = new_first
            out[image, second] = new_second
            # The one that is left.
            out[image, third] = old[0] ^ old[1] ^ old[2] ^ new_first ^ new_second
