"""What anyone takes from NP ciphertexts without a key (docs/leakage.md): 255 - v is as good as v, so fold the two."""

from __future__ import annotations

import numpy as np

from ppfed.images.types import EncryptedImages, UInt8Array

_STRETCH = {"np-v1": 2, "np2-v1": 4}
"""What brings the folded values of a cipher to the whole range."""


def folds(cipher: str) -> bool:
    """Tell whether a cipher leaves folded values at their place."""
    return cipher in _STRETCH


def fold(pixels: UInt8Array, bits: int = 8) -> UInt8Array:
    """Map each value to min(v, 255 - v), which the negative-positive transform leaves unchanged.

    Parameters
    ----------
    pixels : uint8 array, any shape
        Plain or encrypted: without colour shuffle both give the same.
    bits : int
        Fold so many of the lower bits alone, 1 to 8, and drop the others: what is left where these are hidden too.

    Returns
    -------
    uint8 array, same shape
        0 to 127; below half of 2 to the power of ``bits``.
    """
    top = np.uint8((1 << bits) - 1)
    lower = pixels & top
    folded: UInt8Array = np.minimum(lower, top - lower)
    return folded


def fold_twice(pixels: UInt8Array) -> UInt8Array:
    """Map each value to min(w, 127 - w) with w its lower seven bits, which NP twice leaves unchanged: 0 to 63."""
    return fold(pixels, 7)


def folded_view(images: EncryptedImages) -> UInt8Array:
    """Fold images. With colour shuffle, what remains of a pixel is the sorted triple; this gives its mean, as grey.

    Parameters
    ----------
    images : EncryptedImages, N images of (H, W, C), under NP or NP twice

    Returns
    -------
    uint8 array, (N, H, W, C), or (N, H, W, 1) where colours were shuffled
    """
    folded = fold(images.pixels) if images.cipher.name == "np-v1" else fold_twice(images.pixels)
    return _grey_if_shuffled(folded, images)


def keyless_view(images: EncryptedImages) -> UInt8Array:
    """Fold images and stretch the result over the whole range, for a person to look at; as ``folded_view``.

    Returns
    -------
    uint8 array, (N, H, W, C), or (N, H, W, 1) where colours were shuffled
        0 to 254.
    """
    folded = fold(images.pixels) if images.cipher.name == "np-v1" else fold_twice(images.pixels)
    return _grey_if_shuffled(folded * np.uint8(_STRETCH[images.cipher.name]), images)


def _grey_if_shuffled(values: UInt8Array, images: EncryptedImages) -> UInt8Array:
    if not images.cipher.colour_shuffle or values.shape[3] == 1:
        return values
    grey: UInt8Array = ((values.sum(axis=3, dtype=np.uint16, keepdims=True) + 1) // 3).astype(np.uint8)
    return grey
