"""Resemblance: every number against one computed another way, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ppfed.errors import DataError
from ppfed.images.types import UInt8Array
from ppfed.leakage import reidentification
from ppfed.leakage.metrics import grey_levels, psnr_each, resemblance, ssim_each, upright
from ppfed.leakage.reidentification import reidentify

SHAPES = [(12, 16, 16, 3), (9, 9, 20, 1)]


def smooth(shape: tuple[int, ...], seed: int = 0) -> UInt8Array:
    """Images with structure: blurred noise, stretched to the whole range."""
    noise = np.random.default_rng(seed).normal(size=shape)
    blurred = gaussian_filter(noise, (0, 2, 2, 0))
    low, high = (limit(axis=(1, 2, 3), keepdims=True) for limit in (blurred.min, blurred.max))
    return ((blurred - low) / (high - low) * 255).round().astype(np.uint8)


def noisy(images: UInt8Array, deviation: float, seed: int = 1) -> UInt8Array:
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def random_like(images: UInt8Array, seed: int = 2) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, images.shape, dtype=np.uint8)


def grey(image: UInt8Array) -> NDArray[np.float64]:
    if image.shape[2] == 1:
        return image[:, :, 0].astype(float)
    return 0.299 * image[:, :, 0] + 0.587 * image[:, :, 1] + 0.114 * image[:, :, 2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ssim_and_psnr_are_those_of_scikit_image(shape: tuple[int, ...]) -> None:
    originals = smooth(shape)
    restored = noisy(originals, 60)
    restored[::2] = 255 - restored[::2]
    shown, chosen = upright(restored, originals)
    expected = [
        max(structural_similarity(grey(one), grey(original), data_range=255) for one in (image, 255 - image))
        for image, original in zip(restored, originals, strict=True)
    ]
    # Both compute in double precision; only the order of the sum that makes grey may differ.
    assert chosen == pytest.approx(expected, abs=1e-9)
    assert np.array_equal(shown[::2], 255 - restored[::2])
    assert np.array_equal(shown[1::2], restored[1::2])
    decibels = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(originals, shown, strict=True)]
    found = resemblance(restored, originals)
    assert found.images == len(originals)
    assert (found.ssim.mean, found.ssim.spread) == pytest.approx((np.mean(expected), np.std(expected)), abs=1e-9)
    assert (found.psnr_db.mean, found.psnr_db.spread) == pytest.approx((np.mean(decibels), np.std(decibels)), abs=1e-9)


@pytest.mark.parametrize(("side", "window"), [(6, 5), (5, 5), (4, 3), (3, 3)])
def test_small_images_have_a_smaller_window(side: int, window: int) -> None:
    originals = smooth((3, side, 10, 1))
    restored = noisy(originals, 40)
    expected = [
        structural_similarity(a[..., 0].astype(float), b[..., 0].astype(float), win_size=window, data_range=255)
        for a, b in zip(restored, originals, strict=True)
    ]
    assert ssim_each(restored, originals) == pytest.approx(expected, abs=1e-9)


def test_images_too_small_for_any_window() -> None:
    with pytest.raises(DataError, match="3 pixels"):
        resemblance(smooth((3, 2, 10, 1)), smooth((3, 2, 10, 1)))


def test_psnr_of_a_copy_is_capped_and_of_anything_else_is_not() -> None:
    originals = smooth((2, 16, 16, 3))
    other = originals.copy()
    other[0, 0, 0, 0] ^= 1
    assert psnr_each(other, originals) == pytest.approx([10 * np.log10(255**2 * 16 * 16 * 3), 100])


def test_grey_counts_in_all_channels() -> None:
    originals = smooth((4, 16, 16, 3))
    restored = originals[..., :1]
    assert psnr_each(restored, originals) == pytest.approx(psnr_each(np.repeat(restored, 3, axis=3), originals))


def unit(image: NDArray[np.floating]) -> NDArray[np.float64]:
    centred = image.astype(float).ravel() - image.mean()
    return centred / (np.linalg.norm(centred) or 1)


def by_hand(restored: UInt8Array, candidates: UInt8Array) -> tuple[float, float, float]:
    """Look each image up among candidates with loops: as it is and with either sign; the better reading counts."""
    readings = []
    for signs in ((1,), (1, -1)):
        first, ranks, pairs = [], [], []
        for row, image in enumerate(restored):
            values = [grey(one) if image.shape[2] == 1 else one for one in candidates]
            away = [
                round(min(float(np.linalg.norm(unit(one) - sign * unit(image))) for sign in signs), 7) for one in values
            ]
            others = away[:row] + away[row + 1 :]
            nearer, tied = sum(other < away[row] for other in others), sum(other == away[row] for other in others)
            first.append(0 if nearer else 1 / (1 + tied))
            ranks.append(1 + nearer + tied / 2)
            pairs.append(1 - (nearer + tied / 2) / len(others))
        readings.append((float(np.mean(first)), float(np.median(ranks)), float(np.mean(pairs))))
    return max(readings, key=lambda reading: reading[2])


@pytest.mark.parametrize("block_values", [1 << 24, 16 * 16 * 3 * 5])
@pytest.mark.parametrize("kind", ["noisy", "noise", "grey", "signs", "ties"])
def test_reidentification_against_loops(kind: str, block_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reidentification, "_BLOCK_VALUES", block_values)
    candidates = smooth((23, 16, 16, 3))
    restored = noisy(candidates[:12], 250)
    if kind == "noise":
        restored = random_like(restored)
    if kind == "grey":
        restored = restored[..., 1:2]
    if kind == "signs":
        restored[::3] = 255 - restored[::3]
    if kind == "ties":
        candidates[12:15] = candidates[0]
        candidates[4] = candidates[5]
        restored[7] = 90
    found = reidentify(restored, grey_levels(candidates) if kind == "grey" else candidates)
    assert (found.first, found.median_rank, found.pair_accuracy) == pytest.approx(by_hand(restored, candidates))
    assert resemblance(restored, candidates[:12], candidates=candidates).reidentified == found.first


def test_a_copy_is_perfect_and_noise_is_at_chance() -> None:
    originals = smooth((400, 8, 8, 3))
    copy = resemblance(originals, originals)
    assert copy.ssim.mean == pytest.approx(1)
    assert (copy.psnr_db.mean, copy.reidentified, copy.median_rank, copy.pair_accuracy) == (100, 1, 1, 1)
    noise = resemblance(random_like(originals), originals)
    # An image's rank is uniform: 400 of them have mean 1/2 with standard error 0.289 / 20 = 0.014; three errors.
    assert noise.pair_accuracy == pytest.approx(0.5, abs=0.045)
    assert noise.median_rank == pytest.approx(200, abs=45)
    # One of 400 is right by chance; 6 or more right have odds below 1 in 1,000.
    assert noise.reidentified < 6 / 400
    assert abs(noise.ssim.mean) < 0.1


def test_contrast_and_brightness_do_not_hide_an_image() -> None:
    """Plain L2 between pixels finds the mean image instead: it is nearer to a pale copy than the original."""
    originals = smooth((50, 16, 16, 3))
    pale = (118 + 0.15 * (originals.astype(float) - 128)).round().astype(np.uint8)
    found = resemblance(pale, originals)
    assert found.reidentified == 1
    flat = originals.reshape(50, -1).astype(float)
    nearest = [np.argmin(np.linalg.norm(flat - one.ravel(), axis=1)) for one in pale]
    assert np.mean(nearest == np.arange(50)) < 0.9


def test_either_sign_is_tried_but_one_sign_is_not_forced() -> None:
    originals = smooth((60, 16, 16, 1))
    mixed = noisy(originals, 40)
    mixed[::2] = 255 - mixed[::2]
    assert reidentify(mixed, originals).first == 1
    # Where candidates hold an image and its negative, only images as they are tell the two apart.
    both = np.concatenate([originals, 255 - originals])
    assert reidentify(noisy(originals, 40), both).first == 1


def test_flat_images_say_nothing() -> None:
    originals = smooth((10, 8, 8, 3))
    found = resemblance(np.full_like(originals, 128), originals)
    assert found.reidentified == pytest.approx(1 / 10)
    assert found.pair_accuracy == 0.5
    assert found.median_rank == 5.5


def test_what_does_not_fit_is_refused() -> None:
    images = smooth((4, 8, 8, 3))
    for restored, originals in ((images[:3], images), (images[:, :7], images), (images, images[..., :1])):
        with pytest.raises(ValueError, match="do not fit"):
            resemblance(restored, originals)
    with pytest.raises(ValueError, match="uint8"):
        resemblance(images.astype(float), images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="begin with"):
        resemblance(images, images, candidates=images[::-1])
    with pytest.raises(DataError, match="one image"):
        resemblance(images[:1], images[:1])
    with pytest.raises(DataError, match="no images"):
        resemblance(images[:0], images[:0])
    assert resemblance(images[:1], images[:1], candidates=images).candidates == 4
