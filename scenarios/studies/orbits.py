"""Candidates for a better cipher, told by what a fresh key for each image leaves of it.

With fresh keys, network and attacker see the same: which of the equally likely originals it was is lost, and nothing
else. Those originals are an orbit, and one image that stands for all of them, always the same, is as good as the
ciphertext to everyone without the key. So a candidate is a function from an image to that representative; it becomes a
cipher with keys, ids and vectors only if it wins. What a cipher hides altogether, its representative has as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ppfed.attacks.blocks.cutting import cut, join
from ppfed.attacks.values.fold import fold
from ppfed.attacks.values.stream import NP_CONSTANTS, NP_TWICE_CONSTANTS
from ppfed.attacks.values.unfold import unfold
from ppfed.images.types import UInt8Array

Change = Callable[[UInt8Array], UInt8Array]
"""From uint8 (N, H, W, 3) to the same shape."""

EIGHT_CONSTANTS = (0x00, 0xFF, 0x80, 0x7F, 0x40, 0xBF, 0xC0, 0x3F)
_LOWEST_HIDDEN = 4
_BLOCK_PX = 2


@dataclass(frozen=True)
class Orbit:
    """A candidate.

    Attributes
    ----------
    name : str
        Short, for tables.
    secret : str
        What a key would choose for each image, in words.
    keep : callable
        Makes the representative of each image.
    solve : callable or None
        Restores images from representatives without training, (N, H, W, 3) to (N, H, W, 3 or 1); None where no
        classical solver is known.
    """

    name: str
    secret: str
    keep: Change
    solve: Change | None = None


def sort_colours(pixels: UInt8Array) -> UInt8Array:
    """Sort the three values of each pixel."""
    return np.sort(pixels, axis=3)


def to_lightness(pixels: UInt8Array) -> UInt8Array:
    """Turn red, green, blue into lightness and two colour differences, without loss and modulo 256.

    YCoCg-R (Malvar and Sullivan, JVT-I014, 2003) with wrap-around instead of ninth bits. Differences are two's
    complement, so that a value's negative in the sense of NP, 255 - v, is a difference of the other sign (but for one
    level).

    Returns
    -------
    uint8 array, (N, H, W, 3): Y, Co, Cg
    """
    red, green, blue = (pixels[..., channel] for channel in range(3))
    orange = red - blue
    middle = blue + _half(orange)
    leaf = green - middle
    return np.stack([middle + _half(leaf), orange, leaf], axis=3)


def _half(difference: UInt8Array) -> UInt8Array:
    halved: UInt8Array = (difference.view(np.int8) >> 1).view(np.uint8)
    return halved


def _folded(bits: int) -> Change:
    return lambda pixels: fold(pixels, bits)


def _folded_and_sorted(bits: int) -> Change:
    return lambda pixels: sort_colours(fold(pixels, bits))


def _lightness(lightness_bits: int, colour_bits: int) -> Change:
    """Fold lightness and colour differences, of so many lower bits each; none hides them altogether."""

    def keep(pixels: UInt8Array) -> UInt8Array:
        parts = to_lightness(pixels)
        return np.concatenate(
            [_fold_or_hide(parts[..., :1], lightness_bits), _fold_or_hide(parts[..., 1:], colour_bits)], 3
        )

    return keep


def _fold_or_hide(values: UInt8Array, bits: int) -> UInt8Array:
    return fold(values, bits) if bits else np.zeros_like(values)


def _coarse(pixels: UInt8Array) -> UInt8Array:
    return sort_colours(fold(pixels) & np.uint8(0xFF << _LOWEST_HIDDEN & 0xFF))


def _half_of_the_pixels(pixels: UInt8Array) -> UInt8Array:
    kept = sort_colours(fold(pixels))
    rows, columns = np.indices(pixels.shape[1:3])
    kept[:, (rows + columns) % 2 == 1] = 0
    return kept


def _pairs(pixels: UInt8Array) -> UInt8Array:
    """Let neighbours in a row change places or not, as whole pixels."""
    kept = sort_colours(fold(pixels))
    count, height, width, channels = kept.shape
    return _sort_pixels(kept.reshape(count, height, width // 2, 2, channels)).reshape(kept.shape)


def _blocks(pixels: UInt8Array) -> UInt8Array:
    """Let the four pixels of a block change places, as whole pixels."""
    blocks = cut(sort_colours(fold(pixels)), _BLOCK_PX)
    count, number, _, _, channels = blocks.shape
    return _joined(_sort_pixels(blocks.reshape(count, number, _BLOCK_PX**2, channels)), pixels.shape)


def _blocks_of_values(pixels: UInt8Array) -> UInt8Array:
    """Let all twelve values of a block change places."""
    blocks = cut(fold(pixels), _BLOCK_PX)
    return _joined(np.sort(blocks.reshape(*blocks.shape[:2], -1), axis=-1), pixels.shape)


def _joined(blocks: UInt8Array, shape: tuple[int, ...]) -> UInt8Array:
    """Join blocks, (N, B, ...), to images of ``shape``."""
    return join(blocks.reshape(*blocks.shape[:2], _BLOCK_PX, _BLOCK_PX, shape[3]), shape[1] // _BLOCK_PX)


def _sort_pixels(groups: UInt8Array) -> UInt8Array:
    """Sort the pixels of each group, (..., pixels, 3), as words of three digits."""
    words = groups.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    order = np.argsort(words, axis=-1, kind="stable")
    return np.take_along_axis(groups, order[..., None], axis=-2)


def _unfold(constants: tuple[int, ...], *, colour_shuffle: bool) -> Change:
    return lambda pixels: unfold(pixels, colour_shuffle=colour_shuffle, constants=constants)


def _unfold_lightness(constants: tuple[int, ...]) -> Change:
    """Restore the lightness, without the colours: a grey picture."""
    return lambda pixels: unfold(np.ascontiguousarray(pixels[..., :1]), colour_shuffle=False, constants=constants)


ORBITS: tuple[Orbit, ...] = (
    Orbit("plain", "nothing", lambda pixels: pixels, lambda pixels: pixels),
    Orbit("NP", "which values are negatives", _folded(8), _unfold(NP_CONSTANTS, colour_shuffle=False)),
    Orbit(
        "NP + shuffle",
        "negatives, and the order of each pixel's colours",
        _folded_and_sorted(8),
        _unfold(NP_CONSTANTS, colour_shuffle=True),
    ),
    Orbit(
        "NP twice",
        "XOR with 00, FF, 80 or 7F",
        _folded(7),
        _unfold(NP_TWICE_CONSTANTS, colour_shuffle=False),
    ),
    Orbit(
        "NP twice + shuffle",
        "the same, and the order of colours",
        _folded_and_sorted(7),
        _unfold(NP_TWICE_CONSTANTS, colour_shuffle=True),
    ),
    Orbit(
        "eight constants + shuffle",
        "XOR with the former, or with 40, BF, C0 or 3F, and the order of colours",
        _folded_and_sorted(6),
        _unfold(EIGHT_CONSTANTS, colour_shuffle=True),
    ),
    Orbit(
        "NP on lightness and colour",
        "which of Y, Co, Cg are negatives",
        _lightness(8, 8),
        _unfold_lightness(NP_CONSTANTS),
    ),
    Orbit(
        "NP twice on lightness, NP on colour",
        "the same, and the top bit of Y",
        _lightness(7, 8),
        _unfold_lightness(NP_TWICE_CONSTANTS),
    ),
    Orbit("colour alone", "all of Y, and the signs of Co and Cg", _lightness(0, 8)),
    Orbit("lightness alone", "all of Co and Cg, and negatives of Y", _lightness(8, 0), _unfold_lightness(NP_CONSTANTS)),
    Orbit(
        "lightness alone, NP twice",
        "the same, and the top bit of Y",
        _lightness(7, 0),
        _unfold_lightness(NP_TWICE_CONSTANTS),
    ),
    Orbit("NP + shuffle, lower four bits hidden", "the same as NP + shuffle, and the lower four bits", _coarse),
    Orbit("NP + shuffle, every other pixel", "the same as NP + shuffle, and half of the pixels", _half_of_the_pixels),
    Orbit("NP + shuffle, pairs", "the same as NP + shuffle, and the order of two neighbours", _pairs),
    Orbit("NP + shuffle, blocks of 2x2", "the same as NP + shuffle, and the order of four pixels", _blocks),
    Orbit("NP, values of 2x2 blocks", "negatives, and the order of twelve values", _blocks_of_values),
)
"""Controls first: no cipher, then those that ppfed has."""
