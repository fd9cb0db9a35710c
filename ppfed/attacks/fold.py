"""What anyone can take from NP ciphertexts without a key (docs/paper.md): 255 - v is as good as v, so fold the two."""

from __future__ import annotations

import numpy as np

from ppfed.images.types import EncryptedImages, UInt8Array


def fold(pixels: UInt8Array) -> UInt8Array:
    """Map each value to min(v, 255 - v), which the negative-positive transform leaves unchanged.

    Parameters
    ----------
    pixels : uint8 array, any shape
        Plain or encrypted: without colour shuffle both give the same.

    Returns
    -------
    uint8 array, same shape
        0 to 127.
    """
    folded: UInt8Array = np.minimum(pixels, 255 - pixels)
    return folded


def keyless_view(images: EncryptedImages) -> UInt8Array:
    """Fold images and stretch the result over the whole range, for a person to look at.

    With colour shuffle, what remains of a pixel is the sorted triple of its folded values; their order, and with it
    the hue, is gone. The view shows the mean of the triple as grey.

    Parameters
    ----------
    images : EncryptedImages, N images of (H, W, C)

    Returns
    -------
    uint8 array, (N, H, W, C), or (N, H, W, 1) where colours were shuffled
        0 to 254.
    """
    stretched = fold(images.pixels) * np.uint8(2)
    if not images.cipher.colour_shuffle or stretched.shape[3] == 1:
        return stretched
    grey: UInt8Array = ((stretched.sum(axis=3, dtype=np.uint16, keepdims=True) + 1) // 3).astype(np.uint8)
    return grey
