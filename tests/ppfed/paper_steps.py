"""Steps 2 and 3 of the NP cipher in plain NumPy, from the paper's random integers: for what the library compiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppfed.ciphers.negative_positive import COLOUR_PERMUTATIONS
from ppfed.images.types import UInt8Array


@dataclass(frozen=True)
class Integers:
    """What ``NPStream`` says too, of any origin.

    Attributes
    ----------
    mask : uint8 array, (N, H, W, C)
    permutation : uint8 array, (N, H, W), or None
        N may be 1: one for all images.
    """

    mask: UInt8Array
    permutation: UInt8Array | None


def encrypted_in_numpy(pixels: UInt8Array, integers: Integers) -> UInt8Array:
    masked = pixels ^ integers.mask
    if integers.permutation is None:
        return masked
    order = COLOUR_PERMUTATIONS[integers.permutation].astype(np.intp)
    return np.take_along_axis(masked, np.broadcast_to(order, masked.shape), axis=3)
