"""Choose how restored pictures are to be looked at, where an attack leaves that open.

A jigsaw solver cannot tell a picture from the same picture turned, mirrored, negative or with its channels exchanged.
An attacker with eyes mostly can; here, small versions of the attacker's own photographs say which view is likeliest.
Left and right hardly differ in photographs, so a mirror image often stays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ppfed.attacks.blocks.edges import COLOURS, Variants, turned
from ppfed.images.types import UInt8Array

FloatArray = npt.NDArray[np.float64]

_CELLS = 4
"""Side of the small versions."""


def views(pictures: UInt8Array, variants: Variants) -> list[UInt8Array]:
    """Show pictures, uint8 (N, H, W, C), in all ways that keep their shape, as many as ``variants`` has."""
    shown = []
    for turn, negative, colour in zip(variants.turn, variants.negative, variants.colour, strict=True):
        view = turned(pictures.transpose(1, 2, 0, 3), int(turn)).transpose(2, 0, 1, 3)
        if view.shape == pictures.shape:
            view = view[..., COLOURS[colour]] if pictures.shape[3] == 3 else view
            shown.append(np.ascontiguousarray(255 - view if negative else view))
    return shown


def likeliest_view(pictures: UInt8Array, reference: UInt8Array, variants: Variants, *, pooled: bool) -> UInt8Array:
    """Show pictures in the way in which they look most like photographs.

    Parameters
    ----------
    pictures : uint8 array, (N, H, W, C)
        H and W are multiples of 4.
    reference : uint8 array, (M, H, W, C)
        The attacker's own; a few hundred.
    variants : Variants
        What is open.
    pooled : bool
        The same way is right for all pictures.

    Returns
    -------
    uint8 array, (N, H, W, C)
    """
    own = _small(reference)
    mean = own.mean(axis=0)
    # Some grey levels of noise keep the inverse from resting on differences that no photograph is sure to have.
    precision = np.linalg.inv(np.cov(own.T) + 25 * np.eye(len(mean)))
    shown = views(pictures, variants)
    offsets = [_small(view) - mean for view in shown]
    unlikely = np.stack([np.einsum("ni,ij,nj->n", offset, precision, offset) for offset in offsets])
    if pooled:
        return shown[int(unlikely.sum(axis=1).argmin())]
    chosen: UInt8Array = np.stack(shown)[unlikely.argmin(axis=0), np.arange(len(pictures))]
    return chosen


def _small(pictures: UInt8Array) -> FloatArray:
    count, height, width, channels = pictures.shape
    cells = pictures.reshape(count, _CELLS, height // _CELLS, _CELLS, width // _CELLS, channels)
    result: FloatArray = cells.mean(axis=(2, 4)).reshape(count, -1)
    return result
