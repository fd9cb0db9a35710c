"""How much restored images resemble the originals.

Of an image and its negative the better one counts, by SSIM: a cipher that hides a global sign hides nothing from eyes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage.metrics import structural_similarity

from ppfed.errors import DataError
from ppfed.images.types import Int64Array, UInt8Array
from ppfed.leakage.judge import Judge
from ppfed.leakage.record import EXACT_PSNR_DB, Measure, Resemblance
from ppfed.leakage.reidentification import FloatArray, reidentify

SSIM_WINDOW_PX = 7
"""scikit-image's default; smaller images get the largest odd window that fits."""
SMALLEST_SIDE_PX = 3
"""No window with a variance fits below."""
_GREY = (0.299, 0.587, 0.114)
"""Luma of ITU-R BT.601."""


def resemblance(
    restored: UInt8Array,
    originals: UInt8Array,
    *,
    labels: Int64Array | None = None,
    judge: Judge | None = None,
    candidates: UInt8Array | None = None,
) -> Resemblance:
    """Measure restored images against the originals.

    SSIM, PSNR, feature distance and class accuracy are of ``upright(restored, originals)``. Re-identification knows
    nothing of the originals but the candidates: see ``reidentify``.

    Parameters
    ----------
    restored : uint8 array, (N, H, W, C) or (N, H, W, 1)
        Grey images stand for the colour image with equal channels, but re-identify by the originals' grey.
    originals : uint8 array, (N, H, W, C)
    labels : int64 array, (N,), or None
        The originals' classes, for the class accuracy.
    judge : Judge or None
        For feature distance and class accuracy; trained on other images.
    candidates : uint8 array, (M, H, W, C), or None
        What to look the originals up in: its first N images are the originals, in their order, the others are more to
        choose from. None takes the originals alone.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the candidates do not begin with the originals.
    DataError
        If images are too small, or there are fewer than two candidates.
    """
    if candidates is None:
        candidates = originals
    _check(restored, originals, candidates)
    shown, ssim = upright(restored, originals)
    found = reidentify(restored, candidates if restored.shape[3] == candidates.shape[3] else grey_levels(candidates))
    named = None
    if judge is not None and labels is not None:
        named = judge.class_accuracy(shown, labels)
    return Resemblance(
        images=len(originals),
        ssim=_measure(ssim),
        psnr_db=_measure(psnr_each(shown, originals)),
        feature_distance=None if judge is None else _measure(judge.distance(shown, originals)),
        reidentified=found.first,
        candidates=len(candidates),
        median_rank=found.median_rank,
        pair_accuracy=found.pair_accuracy,
        class_accuracy=named,
    )


def upright(restored: UInt8Array, originals: UInt8Array) -> tuple[UInt8Array, FloatArray]:
    """Of each image and its negative, take the one whose SSIM with the original is greater.

    Parameters
    ----------
    restored : uint8 array, (N, H, W, C) or (N, H, W, 1)
    originals : uint8 array, (N, H, W, C)

    Returns
    -------
    uint8 array, like ``restored``
    float64 array, (N,)
        SSIM of what was taken, -1 to 1.

    Raises
    ------
    DataError
        If a side is shorter than 3 pixels.
    """
    negative = 255 - restored
    ssim, negative_ssim = ssim_each(restored, originals), ssim_each(negative, originals)
    turned = negative_ssim > ssim
    return np.where(turned[:, None, None, None], negative, restored), np.maximum(ssim, negative_ssim)


def ssim_each(images: UInt8Array, originals: UInt8Array) -> FloatArray:
    """Structural similarity of the grey images (Wang et al., IEEE TIP 2004), by scikit-image.

    The window is 7x7, its default; for sides under 7 pixels the largest odd window that fits, so that those numbers do
    not compare with others.

    Parameters
    ----------
    images, originals : uint8 array, (N, H, W, 1 or 3)

    Returns
    -------
    float64 array, (N,)
        -1 to 1.

    Raises
    ------
    DataError
        If a side is shorter than 3 pixels.
    """
    side = min(originals.shape[1:3])
    if side < SMALLEST_SIDE_PX:
        raise DataError(
            f"structural similarity needs {SMALLEST_SIDE_PX} pixels a side, and an image has {side}.",
            hint="Measure larger images.",
        )
    window = min(SSIM_WINDOW_PX, side - (side + 1) % 2)
    ssim: Callable[..., float] = structural_similarity
    pairs = zip(grey_levels(images), grey_levels(originals), strict=True)
    return np.array([ssim(one, other, win_size=window, data_range=255) for one, other in pairs])


def psnr_each(images: UInt8Array, originals: UInt8Array) -> FloatArray:
    """Peak signal-to-noise ratio over all channels.

    Parameters
    ----------
    images : uint8 array, (N, H, W, C) or (N, H, W, 1)
    originals : uint8 array, (N, H, W, C)

    Returns
    -------
    float64 array, (N,)
        dB, at most 100.
    """
    pairs = zip(images, originals, strict=True)
    error = np.array([np.mean(np.square(image.astype(np.float64) - original)) for image, original in pairs])
    with np.errstate(divide="ignore"):
        decibels: FloatArray = np.minimum(10 * np.log10(255**2 / error), EXACT_PSNR_DB)
    return decibels


def grey_levels(pixels: UInt8Array) -> FloatArray:
    """Luma 0.299 R + 0.587 G + 0.114 B.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, 1 or 3)

    Returns
    -------
    float64 array, (N, H, W)
        0 to 255.
    """
    if pixels.shape[3] == 1:
        return pixels[..., 0].astype(np.float64)
    grey: FloatArray = pixels @ np.array(_GREY)
    return grey


def _measure(values: FloatArray) -> Measure:
    return Measure(mean=float(np.mean(values)), spread=float(np.std(values)))


def _check(restored: UInt8Array, originals: UInt8Array, candidates: UInt8Array) -> None:
    for images in (restored, originals, candidates):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images are uint8 of shape (N, H, W, C), not {images.dtype} of shape {images.shape}")
    if not len(originals):
        raise DataError("there are no images to measure.", hint="Give at least one.")
    if restored.shape[:3] != originals.shape[:3] or restored.shape[3] not in (1, originals.shape[3]):
        raise ValueError(f"restored images of shape {restored.shape} do not fit originals of shape {originals.shape}")
    if len(candidates) < 2:
        raise DataError("one image cannot be taken for another.", hint="Measure at least two, or give candidates.")
    if candidates.shape[1:] != originals.shape[1:] or not np.array_equal(candidates[: len(originals)], originals):
        raise ValueError("the candidates must begin with the originals, in their order")
