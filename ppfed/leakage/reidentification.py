"""Which of many pictures is it? Told from restored images, which need not please the eye, or without restoring any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ppfed.attacks import candidates as candidate_match
from ppfed.ciphers.spec import CipherSpec
from ppfed.images.types import Int64Array, UInt8Array
from ppfed.leakage.record import CandidateMatch

FloatArray: TypeAlias = npt.NDArray[np.float64]
PixelArray: TypeAlias = npt.NDArray[np.uint8] | FloatArray

_BLOCK_VALUES = 1 << 24
"""Standardised at once: 128 MiB of doubles."""
_SIMILARITY_DECIMALS = 9
"""Sums of doubles differ from the eleventh decimal on with their order; equal candidates must stay equal."""


@dataclass(frozen=True)
class Reidentification:
    """How well images tell which of the candidates they are.

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


def match_candidates(spec: CipherSpec | None, shown: UInt8Array, candidates: UInt8Array) -> CandidateMatch | None:
    """Look images that were sent up among candidates, by what is the same of both whatever the key.

    Parameters
    ----------
    spec : CipherSpec or None
        None for images without a cipher, which are compared value by value.
    shown : uint8 array, (N, H, W, C)
        As they were sent.
    candidates : uint8 array, (M, H, W, C), M > 1
        Plain pictures; the first N are the right ones.

    Returns
    -------
    CandidateMatch or None
        None where nothing is known that the cipher leaves of each image.
    """
    if spec is not None and not candidate_match.applies(spec.name):
        return None
    block = max(1, _BLOCK_VALUES // len(candidates))
    parts: list[tuple[FloatArray, FloatArray]] = []
    certain = 0
    for start in range(0, len(shown), block):
        rows = shown[start : start + block]
        apart = (
            candidate_match.unequal_values(rows, candidates)
            if spec is None
            else candidate_match.distances(spec, rows, candidates)
        )
        right = np.arange(start, start + len(rows))
        parts.append(_nearer_and_tied(-apart, right))
        fits = apart == 0
        certain += int(np.count_nonzero(fits[np.arange(len(rows)), right] & (fits.sum(axis=1) == 1)))
    found = _reading(parts, len(candidates))
    return CandidateMatch(
        images=len(shown),
        candidates=len(candidates),
        reidentified=found.first,
        pair_accuracy=found.pair_accuracy,
        certain=certain / len(shown),
    )


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
