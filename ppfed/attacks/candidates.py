"""Which of some candidate pictures an encrypted image is, told without restoring it.

A cipher hides which of many images an original was, and a fresh key no more than that: what is the same in all of these
images (docs/cipher.md, "Leaves") can be read off the ciphertext, and off a picture that the attacker already has. Where
the two agree, the picture was sent. No key, no training, no search.

What is compared are values that the cipher leaves, folded as it folds them, and put in order wherever it exchanges
them: the colours of a pixel, the values of a block, the blocks of an image. Blocks are put in order rank by rank: all
their smallest values, all their second smallest, and so on. So a picture that was stored or resized in another way is
not equal but near.

Ours. Of the logistic map with RC4 nothing is known that a fresh key leaves of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ppfed.attacks.blocks.cutting import cut
from ppfed.attacks.values.fold import fold, fold_twice
from ppfed.ciphers.spec import BLOCK_PX, CipherSpec
from ppfed.images.types import UInt8Array

FloatArray = npt.NDArray[np.float64]

_COLUMNS = 4096
"""Values of all images that are turned into doubles at once."""


def applies(cipher: str) -> bool:
    """Tell whether something is known that a cipher leaves of each image, whatever its key."""
    return cipher in _LEFT


def signature(spec: CipherSpec, images: UInt8Array) -> UInt8Array:
    """Read off what a cipher leaves: the same of an image and of each of its ciphertexts, in either scope.

    Parameters
    ----------
    spec : CipherSpec
    images : uint8 array, (N, H, W, C)
        Plain or encrypted.

    Returns
    -------
    uint8 array, (N, V)

    Raises
    ------
    ValueError
        If nothing of the kind is known of the cipher, or images cannot be cut into its blocks.
    """
    if spec.name not in _LEFT:
        raise ValueError(f"nothing is known that {spec.name} leaves of each image")
    left = _LEFT[spec.name](images, spec.colour_shuffle)
    return left.reshape(len(images), -1)


def distances(spec: CipherSpec, encrypted: UInt8Array, candidates: UInt8Array) -> FloatArray:
    """Compare what encrypted images and candidate pictures have in common, whatever the key.

    Parameters
    ----------
    spec : CipherSpec
    encrypted : uint8 array, (N, H, W, C)
    candidates : uint8 array, (M, H, W, C)
        Plain pictures of the same size.

    Returns
    -------
    float64 array, (N, M)
        Squared L2 distances of signatures, whole numbers: 0 where a picture may be what was encrypted.

    Raises
    ------
    ValueError
        As ``signature``.
    """
    seen, held = signature(spec, encrypted), signature(spec, candidates)
    apart = np.zeros((len(seen), len(held)))
    for start in range(0, seen.shape[1], _COLUMNS):
        # Whole numbers far below 2^53: sums are exact in any order, and equal signatures are 0 apart.
        one, other = (values[:, start : start + _COLUMNS].astype(np.float64) for values in (seen, held))
        apart += (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * (one @ other.T)
    return apart


def unequal_values(shown: UInt8Array, candidates: UInt8Array) -> FloatArray:
    """Count the values in which images differ, place by place: for images that have parts of others in them.

    Parameters
    ----------
    shown : uint8 array, (N, H, W, C)
    candidates : uint8 array, (M, H, W, C)

    Returns
    -------
    float64 array, (N, M)
    """
    rows, held = (images.reshape(len(images), -1) for images in (shown, candidates))
    return np.stack([np.count_nonzero(held != row, axis=1) for row in rows]).astype(np.float64)


def _np(images: UInt8Array, shuffled: bool) -> UInt8Array:
    return _in_order(fold(images), 3) if shuffled else fold(images)


def _np_twice(images: UInt8Array, shuffled: bool) -> UInt8Array:
    return _in_order(fold_twice(images), 3) if shuffled else fold_twice(images)


def _le(images: UInt8Array, _shuffled: bool) -> UInt8Array:
    """Leave the 4-bit values of each block, up to order and reversal, at its place: (N, B, V)."""
    values = cut(images, BLOCK_PX).reshape(len(images), -1, BLOCK_PX * BLOCK_PX * images.shape[3])
    return _in_order(np.concatenate([fold(values, 4), fold(values >> np.uint8(4), 4)], axis=2), 2)


def _ele(images: UInt8Array, shuffled: bool) -> UInt8Array:
    return _in_order(_le(images, shuffled), 1)


def _etc(images: UInt8Array, _shuffled: bool) -> UInt8Array:
    blocks = fold(cut(images, BLOCK_PX))
    return _in_order(_in_order(blocks.reshape(*blocks.shape[:2], -1), 2), 1)


def _block_pixel(images: UInt8Array, _shuffled: bool) -> UInt8Array:
    # Pixels move whole: each colour has an order of its own.
    blocks = cut(images, BLOCK_PX)
    return _in_order(_in_order(blocks.reshape(*blocks.shape[:2], -1, blocks.shape[4]), 2), 1)


def _in_order(values: UInt8Array, axis: int) -> UInt8Array:
    ordered: UInt8Array = np.sort(values, axis=axis)
    return ordered


_LEFT: Mapping[str, Callable[[UInt8Array, bool], UInt8Array]] = MappingProxyType(
    {
        "np-v1": _np,
        "np2-v1": _np_twice,
        "le-v1": _le,
        "ele-v1": _ele,
        "etc-v1": _etc,
        "block-pixel-v1": _block_pixel,
    }
)
