"""Read the map of a block cipher off leaked pairs, and undo it in all other images under the same key stream.

In fixed scope such a cipher does the same to every image: it exchanges symbols and reverses some. Two columns of
symbols that agree over all pairs are the same symbol: a known-plaintext attack as arXiv 2004.13263 has it for NP. In
image scope the map of one image says nothing about the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ppfed.attacks.blocks.cutting import cut, join
from ppfed.attacks.blocks.edges import COLOURS, Variants, turned
from ppfed.ciphers.spec import BLOCK_PX
from ppfed.images.types import UInt8Array

IndexArray = npt.NDArray[np.intp]

_LOW = np.uint8(15)


@dataclass(frozen=True)
class Template:
    """What a key stream does to every image of a shape.

    Attributes
    ----------
    nibbles : bool
        Symbols are 4-bit values, of each block the lower halves first; otherwise bytes.
    block_px : int
        Symbols are numbered block by block; 1 for none.
    source : intp array, (V,)
        Encrypted symbol i is plain symbol ``source[i]``,
    mask : uint8 array, (V,)
        XORed with ``mask[i]``.
    """

    nibbles: bool
    block_px: int
    source: IndexArray
    mask: UInt8Array

    def restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        """Undo the map: uint8 array (N, H, W, C) to the same."""
        count, height, _, channels = ciphertexts.shape
        seen = symbols(ciphertexts, self.block_px, nibbles=self.nibbles)
        plain = np.empty_like(seen.reshape(count, -1))
        plain[:, self.source] = seen.reshape(count, -1) ^ self.mask
        values = plain.reshape(seen.shape)
        if self.nibbles:
            low, high = np.split(values, 2, axis=2)
            values = low | (high << np.uint8(4))
        side = self.block_px
        return join(values.reshape(count, -1, side, side, channels), height // side)


def recover(cipher: str, plain: UInt8Array, encrypted: UInt8Array) -> Template:
    """Read the map off pairs.

    Parameters
    ----------
    cipher : str
        ``le-v1``, ``ele-v1``, ``etc-v1``, ``block-pixel-v1`` or ``logistic-rc4-v1``.
    plain, encrypted : uint8 arrays, (K, H, W, C)
        K pairs in the same order. Of logistic-rc4 at least 2; one pair of the others goes far, more settle what flat
        parts of a picture leave open.

    Returns
    -------
    Template

    Raises
    ------
    ValueError
        If the cipher is none of these, or there are too few pairs.
    """
    if cipher not in _READERS:
        raise ValueError(f"no template attack on {cipher!r}: only on {', '.join(_READERS)}")
    if plain.shape != encrypted.shape or len(plain) < (2 if cipher == "logistic-rc4-v1" else 1):
        raise ValueError("pairs must have the same shape, and there must be one at least, of logistic-rc4-v1 two")
    return _READERS[cipher](plain, encrypted)


def _le(plain: UInt8Array, encrypted: UInt8Array) -> Template:
    before, after = (symbols(images, BLOCK_PX, nibbles=True) for images in (plain, encrypted))
    blocks, width = before.shape[1:]
    source, mask = _matched(before.reshape(-1, width), after.reshape(-1, width))
    return Template(True, BLOCK_PX, tiled(source, np.arange(blocks), width), np.tile(mask, blocks))


def _ele(plain: UInt8Array, encrypted: UInt8Array) -> Template:
    before, after = (symbols(images, BLOCK_PX, nibbles=True) for images in (plain, encrypted))
    origin = _same_blocks(*(np.sort(np.minimum(values, _LOW - values), axis=2) for values in (before, after)))
    found = [_matched(before[:, old], after[:, new]) for new, old in enumerate(origin)]
    source = tiled(np.stack([source for source, _ in found]), origin, before.shape[2])
    return Template(True, BLOCK_PX, source, np.concatenate([mask for _, mask in found]))


def _etc(plain: UInt8Array, encrypted: UInt8Array) -> Template:
    channels = plain.shape[3]
    before, after = (symbols(images, BLOCK_PX) for images in (plain, encrypted))
    origin = _same_blocks(*(np.sort(np.minimum(values, 255 - values), axis=2) for values in (before, after)))
    before = before[:, origin]
    variants = Variants.of(turns=True, negatives=True, colours=channels == 3)
    square = np.arange(BLOCK_PX * BLOCK_PX).reshape(BLOCK_PX, BLOCK_PX)
    colours = COLOURS if channels == 3 else np.zeros((1, 1), dtype=np.intp)
    inside = np.stack(
        [
            (turned(square, turn).reshape(-1, 1) * channels + colours[colour]).reshape(-1)
            for turn, colour in zip(variants.turn, variants.colour, strict=True)
        ]
    )
    signs = (variants.negative * 255).astype(np.uint8)
    ways = zip(inside, signs, strict=True)
    misses = np.stack([((before[..., way] ^ sign) != after).sum(axis=(0, 2)) for way, sign in ways])
    best = misses.argmin(axis=0)
    width = before.shape[2]
    return Template(False, BLOCK_PX, tiled(inside[best], origin, width), np.repeat(signs[best], width))


def _block_pixel(plain: UInt8Array, encrypted: UInt8Array) -> Template:
    channels = plain.shape[3]
    before, after = (symbols(images, BLOCK_PX) for images in (plain, encrypted))
    origin = _same_blocks(np.sort(before, axis=2), np.sort(after, axis=2))
    pixels = [values.reshape(-1, BLOCK_PX * BLOCK_PX, channels) for values in (before[:, origin], after)]
    apart = [(pixels[0] != pixels[1][:, [number]]).any(axis=2).sum(axis=0) for number in range(BLOCK_PX * BLOCK_PX)]
    inside = linear_sum_assignment(np.stack(apart))[1]
    source = (inside[:, None] * channels + np.arange(channels)).reshape(-1)
    return Template(False, BLOCK_PX, tiled(source, origin, before.shape[2]), np.zeros(before[0].size, dtype=np.uint8))


def _logistic_rc4(plain: UInt8Array, encrypted: UInt8Array) -> Template:
    """Differences (XOR) between images lose the mask; equal differences belong to the same pixel."""
    count, channels = len(plain), plain.shape[3]
    orders = []
    for images in (plain, encrypted):
        difference = (images[1:] ^ images[0]).reshape(count - 1, -1, channels).transpose(0, 2, 1)
        orders.append(np.lexsort(difference.reshape(-1, difference.shape[2])))
    pixels = np.empty_like(orders[0])
    pixels[orders[1]] = orders[0]
    source = (pixels[:, None] * channels + np.arange(channels)).reshape(-1)
    return Template(False, 1, source, plain[0].reshape(-1)[source] ^ encrypted[0].reshape(-1))


_READERS: dict[str, Callable[[UInt8Array, UInt8Array], Template]] = {
    "le-v1": _le,
    "ele-v1": _ele,
    "etc-v1": _etc,
    "block-pixel-v1": _block_pixel,
    "logistic-rc4-v1": _logistic_rc4,
}


def symbols(images: UInt8Array, block_px: int, *, nibbles: bool = False) -> UInt8Array:
    """Take images apart into the symbols of blocks.

    Parameters
    ----------
    images : uint8 array, (N, H, W, C)
    block_px : int
        Side of a block; 1 for none.
    nibbles : bool
        4-bit values, of each block the lower halves first; otherwise bytes.

    Returns
    -------
    uint8 array, (N, B, V)
    """
    blocks = cut(images, block_px)
    values = blocks.reshape(*blocks.shape[:2], -1)
    return np.concatenate([values & _LOW, values >> np.uint8(4)], axis=2) if nibbles else values


def _matched(before: UInt8Array, after: UInt8Array) -> tuple[IndexArray, UInt8Array]:
    """Match columns of 4-bit values, (S, V) each, as they are or reversed, with the fewest misses."""
    levels = np.arange(16)
    old, new = ((values[..., None] == levels).astype(np.float32) for values in (before, after))
    straight = np.einsum("snl,sml->nm", new, old, optimize=True)
    reverse = np.einsum("snl,sml->nm", new[..., ::-1], old, optimize=True)
    source = linear_sum_assignment(np.maximum(straight, reverse), maximize=True)[1]
    chosen = np.arange(len(source)), source
    return source, np.where(reverse[chosen] > straight[chosen], _LOW, np.uint8(0))


def _same_blocks(before: UInt8Array, after: UInt8Array) -> IndexArray:
    """Match blocks by what the cipher leaves of them, (K, B, V) each: for each encrypted one the plain one."""
    old, new = (values.transpose(1, 0, 2).reshape(values.shape[1], -1) for values in (before, after))
    origin: IndexArray = linear_sum_assignment(cdist(new, old, "cityblock"))[1]
    return origin


def tiled(inside: IndexArray, origin: IndexArray, width: int) -> IndexArray:
    """Count through the symbols of whole images, as ``Template.source`` does.

    Parameters
    ----------
    inside : intp array, (B, V) or (V,)
        Old numbers in a block, of each or of all.
    origin : intp array, (B,)
        Old numbers of blocks.
    width : int
        Symbols of a block.

    Returns
    -------
    intp array, (B V,)
    """
    result: IndexArray = (origin[:, None] * width + inside).reshape(-1)
    return result
