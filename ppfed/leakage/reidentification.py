"""Which of many pictures is it? What restored images are good for, where they need not please the eye."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ppfed.images.types import Int64Array

FloatArray: TypeAlias = npt.NDArray[np.float64]
PixelArray: TypeAlias = npt.NDArray[np.uint8] | FloatArray

_BLOCK_VALUES = 1 << 24
"""Standardised at once: 128 MiB of doubles."""
_SIMILARITY_DECIMALS = 9
"""Sums of doubles differ from the eleventh decimal on with their order; equal candidates must stay equal."""


@dataclass(frozen=True)
class Reidentification:
    """How well restored images tell which of the candidates they are.

    Attributes
    ----------
    first : float
        Part of the images whose original is the nearest candidate; one of k that are equally near counts 1/k.
    median_rank : float
        1 is best; a tie takes half a rank.
    pair_accuracy : float
        Part of all pairs of an image and another candidate in which the original is nearer; a tie counts half.
    """

    first: float
    median_rank: float
    pair_accuracy: float


def reidentify(restored: PixelArray, candidates: PixelArray) -> Reidentification:
    """Look restored images up among candidates.

    Nearness is the L2 distance of the images' values, each image brought to zero mean and unit norm first: a restorer
    gets contrast and brightness wrong more often than structure. Two readings are tried: the images as they are, and
    either sign of each (the fold shows bright images as negatives). That with the greater pair accuracy counts; for
    noise and few images this lifts it a little above chance, by about half its standard error.

    Parameters
    ----------
    restored : uint8 or float64 array, (N, ...)
    candidates : uint8 or float64 array, (M, ...), M > 1
        With as many values each; the first N are the right ones.
    """
    count = candidates[0].size
    block = max(1, _BLOCK_VALUES // count)
    as_is: list[tuple[FloatArray, FloatArray]] = []
    either_sign: list[tuple[FloatArray, FloatArray]] = []
    for start in range(0, len(restored), block):
        # Of unit vectors, the nearest is that with the greatest product.
        rows = _standardised(restored[start : start + block])
        parts = [
            rows @ _standardised(candidates[other : other + block]).T for other in range(0, len(candidates), block)
        ]
        products = np.concatenate(parts, axis=1).round(_SIMILARITY_DECIMALS)
        right = np.arange(start, start + len(rows))
        as_is.append(_nearer_and_tied(products, right))
        either_sign.append(_nearer_and_tied(np.abs(products), right))
    readings = (_reading(as_is, len(candidates)), _reading(either_sign, len(candidates)))
    return max(readings, key=lambda reading: reading.pair_accuracy)


def _standardised(images: PixelArray) -> FloatArray:
    rows = images.reshape(len(images), -1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # A flat image stays zero, as far from one candidate as from any other.
    np.divide(rows, norms, out=rows, where=norms > 0)
    return rows


def _nearer_and_tied(products: FloatArray, right: Int64Array) -> tuple[FloatArray, FloatArray]:
    own = products[np.arange(len(right)), right][:, None]
    nearer = np.count_nonzero(products > own, axis=1).astype(np.float64)
    tied = np.count_nonzero(products == own, axis=1).astype(np.float64) - 1
    return nearer, tied


def _reading(blocks: list[tuple[FloatArray, FloatArray]], candidates: int) -> Reidentification:
    nearer, tied = np.concatenate(blocks, axis=1)
    behind = nearer + tied / 2
    return Reidentification(
        first=float(np.mean((nearer == 0) / (1 + tied))),
        median_rank=float(np.median(1 + behind)),
        pair_accuracy=float(np.mean(1 - behind / (candidates - 1))),
    )
