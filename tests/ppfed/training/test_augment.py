"""Augmentation: it commutes with the cipher, and it does what a plain loop over images does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ppfed.ciphers.negative_positive import NegativePositiveCipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import ID_BYTES, PlainImages, UInt8Array
from ppfed.keys.master import KEY_BYTES, MasterKey
from ppfed.training.augment import NO_AUGMENTATION, Augmentation, Placement, alternating_mirrors, crop_centre, place
from ppfed.training.settings import Padding

from ..paper_steps import Integers, encrypted_in_numpy

MOST_SIDE = 9


@st.composite
def batches(draw: st.DrawFn) -> UInt8Array:
    sides = st.integers(1, MOST_SIDE)
    shape = (draw(st.integers(0, 4)), draw(sides), draw(sides), draw(st.sampled_from([1, 3])))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, shape, dtype=np.uint8)


@st.composite
def placements(draw: st.DrawFn, count: int) -> Placement:
    # Further than any side: images that leave the frame altogether are part of it.
    shifts = st.lists(st.integers(-MOST_SIDE - 2, MOST_SIDE + 2), min_size=count, max_size=count)
    flips = st.lists(st.booleans(), min_size=count, max_size=count)
    return Placement(
        down=torch.tensor(draw(shifts), dtype=torch.int64),
        right=torch.tensor(draw(shifts), dtype=torch.int64),
        mirror=torch.tensor(draw(flips), dtype=torch.bool),
        upend=torch.tensor(draw(flips), dtype=torch.bool),
    )


fills = st.integers(0, 255)


def placed(pixels: UInt8Array, placement: Placement, fill: int = 0) -> UInt8Array:
    return place(torch.from_numpy(pixels.copy()), placement, fill=fill).numpy()


def placed_one_by_one(pixels: UInt8Array, placement: Placement, fill: int) -> UInt8Array:
    result = np.full_like(pixels, fill)
    height, width = pixels.shape[1:3]
    for index, image in enumerate(pixels):
        flipped = np.flip(image, axis=1) if placement.mirror[index] else image
        flipped = np.flip(flipped, axis=0) if placement.upend[index] else flipped
        down, right = int(placement.down[index]), int(placement.right[index])
        part = flipped[max(0, -down) : max(0, height - down), max(0, -right) : max(0, width - right)]
        top, left = max(0, down), max(0, right)
        result[index, top : top + part.shape[0], left : left + part.shape[1]] = part
    return result


@given(st.data(), batches(), st.sampled_from(Scope), st.booleans(), st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_moving_the_ciphertext_is_encrypting_the_moved_image_under_the_moved_stream(
    data: st.DataObject, pixels: UInt8Array, scope: Scope, colour_shuffle: bool, secret: bytes
) -> None:
    count, *shape = pixels.shape
    cipher = NegativePositiveCipher(MasterKey(secret), CipherSpec(scope=scope, colour_shuffle=colour_shuffle))
    ids = data.draw(hnp.arrays(np.uint8, (count, ID_BYTES)))
    placement, fill = data.draw(placements(count)), data.draw(fills)
    encrypted = cipher.encrypt(PlainImages(pixels), ids).pixels

    stream = cipher.stream(ids, (shape[0], shape[1], shape[2]))
    # In fixed scope one stream serves the batch, but each image takes its own copy along. What a shift uncovers has
    # mask 0 and permutation 0 (RGB): the fill stays as it is.
    mask = placed(np.broadcast_to(stream.mask, pixels.shape), placement)
    permutation = None
    if stream.permutation is not None:
        permutation = placed(np.broadcast_to(stream.permutation, pixels.shape[:3])[..., None], placement)[..., 0]
    expected = encrypted_in_numpy(placed(pixels, placement, fill), Integers(mask, permutation))

    assert np.array_equal(placed(encrypted, placement, fill), expected)


@given(st.data(), batches(), st.sampled_from(Scope), st.booleans(), st.floats(0.1, 1))
def test_a_crop_of_the_ciphertext_is_the_crop_encrypted_under_the_cropped_stream(
    data: st.DataObject, pixels: UInt8Array, scope: Scope, colour_shuffle: bool, part: float
) -> None:
    count, *shape = pixels.shape
    cipher = NegativePositiveCipher(MasterKey(bytes(KEY_BYTES)), CipherSpec(scope=scope, colour_shuffle=colour_shuffle))
    ids = data.draw(hnp.arrays(np.uint8, (count, ID_BYTES)))
    stream = cipher.stream(ids, (shape[0], shape[1], shape[2]))
    mask = cropped(np.broadcast_to(stream.mask, pixels.shape), part)
    permutation = None
    if stream.permutation is not None:
        permutation = cropped(np.broadcast_to(stream.permutation, pixels.shape[:3])[..., None], part)[..., 0]
    expected = encrypted_in_numpy(cropped(pixels, part), Integers(mask, permutation))
    assert np.array_equal(cropped(cipher.encrypt(PlainImages(pixels), ids).pixels, part), expected)


def cropped(pixels: UInt8Array, part: float) -> UInt8Array:
    return crop_centre(torch.from_numpy(pixels.copy()), part).numpy()


@given(batches(), st.floats(0.01, 1))
def test_a_crop_is_the_middle(pixels: UInt8Array, part: float) -> None:
    found = crop_centre(torch.from_numpy(pixels.copy()), part)
    _, height, width, _ = pixels.shape
    tall, wide = max(1, round(part * height)), max(1, round(part * width))
    top, left = (height - tall) // 2, (width - wide) // 2
    assert np.array_equal(found.numpy(), pixels[:, top : top + tall, left : left + wide])
    assert found.is_contiguous()


def test_a_crop_after_a_shift_that_fits_shows_the_image_alone() -> None:
    """As many positions as a crop of 24 out of 32 pixels has, and nothing that the shift uncovered."""
    images = torch.full((500, 32, 32, 3), 9, dtype=torch.uint8)
    moved = Augmentation(fill=200)(images, torch.Generator().manual_seed(0))
    assert (moved == 200).any()
    assert (crop_centre(moved, 0.75) == 9).all()


@given(st.integers(0, 60), st.integers(0, 2**31), st.integers(0, 30))
def test_mirrors_given_are_mirrors_used(count: int, seed: int, epoch: int) -> None:
    mirror = alternating_mirrors(count, epoch, torch.Generator().manual_seed(seed))
    after = alternating_mirrors(count, epoch + 1, torch.Generator().manual_seed(seed))
    assert torch.equal(after, ~mirror)
    images = torch.randint(0, 256, (count, 5, 6, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    found = Augmentation(shift=0)(images, generator, mirror=mirror)
    assert torch.equal(found, torch.where(mirror[:, None, None, None], images.flip(2), images))


@given(st.data(), batches(), fills)
def test_place_does_what_a_loop_over_images_does(data: st.DataObject, pixels: UInt8Array, fill: int) -> None:
    placement = data.draw(placements(len(pixels)))
    assert np.array_equal(placed(pixels, placement, fill), placed_one_by_one(pixels, placement, fill))


@given(batches(), st.integers(0, 2**31), st.none() | st.integers(0, MOST_SIDE + 2), st.booleans(), st.booleans(), fills)
def test_a_call_places_what_it_draws(
    pixels: UInt8Array, seed: int, shift: int | None, mirror: bool, upend: bool, fill: int
) -> None:
    augmentation = Augmentation(shift, mirror, upend, fill=fill)
    images = torch.from_numpy(pixels)
    before = images.clone()
    first, second, drawn = (torch.Generator().manual_seed(seed) for _ in range(3))

    result = augmentation(images, first)

    count, height, width, _ = images.shape
    assert torch.equal(result, place(images, augmentation.draw(count, height, width, drawn), fill=fill))
    assert torch.equal(result, augmentation(images, second))
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(images, before)


@given(batches(), st.integers(0, 2**31))
def test_no_augmentation_is_the_identity(pixels: UInt8Array, seed: int) -> None:
    images = torch.from_numpy(pixels)
    assert torch.equal(NO_AUGMENTATION(images, torch.Generator().manual_seed(seed)), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_any_dtype_keeps_it(dtype: torch.dtype) -> None:
    images = torch.ones(2, 4, 5, 3, dtype=dtype)
    result = Augmentation(shift=1)(images, torch.Generator().manual_seed(0))
    assert result.dtype == dtype


def test_draws_cover_the_range_evenly() -> None:
    count, reach = 9000, 4
    draws = Augmentation(shift=reach, vertical_flip=True).draw(count, 32, 32, torch.Generator().manual_seed(1))
    for shifts in (draws.down, draws.right):
        found = torch.bincount(shifts + reach, minlength=2 * reach + 1)
        assert len(found) == 2 * reach + 1
        # Each of 9 values is hit 1000 times on average, with a standard deviation of sqrt(9000 * 1/9 * 8/9) = 30;
        # five of them leave one in a million to chance, and the seed is fixed.
        assert (found - 1000).abs().max() < 150
    for flips in (draws.mirror, draws.upend):
        # The same: 4500 on average, standard deviation sqrt(9000 / 4) = 47.
        assert abs(int(flips.sum()) - 4500) < 240
    # Four independent draws: a shared source would make them agree.
    assert not torch.equal(draws.down, draws.right)
    assert not torch.equal(draws.mirror, draws.upend)


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (28, 4), (32, 4), (64, 8), (224, 28)])
def test_the_default_shift_is_in_proportion(side: int, reach: int) -> None:
    draws = Augmentation().draw(2000, side, 32, torch.Generator().manual_seed(2))
    # 2000 draws of at most 57 values miss an end with a chance of (56/57)^2000, below 1e-15.
    assert (int(draws.down.min()), int(draws.down.max())) == (-reach, reach)
    assert (int(draws.right.min()), int(draws.right.max())) == (-4, 4)


def test_flips_that_are_off_never_happen() -> None:
    draws = Augmentation(horizontal_flip=False).draw(1000, 8, 8, torch.Generator().manual_seed(3))
    assert not draws.mirror.any()
    assert not draws.upend.any()


def test_a_shift_uncovers_the_fill() -> None:
    one, no = torch.tensor([1]), torch.tensor([False])
    result = place(torch.full((1, 2, 2, 1), 9, dtype=torch.uint8), Placement(one, one * 0, no, no), fill=200)
    assert result.flatten().tolist() == [200, 200, 9, 9]


@given(st.data(), batches())
def test_reflection_is_numpys(data: st.DataObject, pixels: UInt8Array) -> None:
    placement = data.draw(placements(len(pixels)))
    height, width = pixels.shape[1:3]
    found = place(torch.from_numpy(pixels.copy()), placement, Padding.REFLECT).numpy()
    reach = MOST_SIDE + 2
    for index, image in enumerate(pixels):
        flipped = np.flip(image, axis=1) if placement.mirror[index] else image
        flipped = np.flip(flipped, axis=0) if placement.upend[index] else flipped
        # Padded on all sides by more than any shift, and cut out again where the shift says.
        padded = np.pad(flipped, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
        top, left = reach - int(placement.down[index]), reach - int(placement.right[index])
        assert np.array_equal(found[index], padded[top : top + height, left : left + width])


@pytest.mark.parametrize("padding", Padding)
def test_shifts_of_any_size_take_no_more_memory(padding: Padding) -> None:
    images = torch.arange(2 * 4 * 5 * 3).to(torch.uint8).reshape(2, 4, 5, 3)
    no = torch.tensor([False, False])
    far = torch.tensor([10**12, -(10**12)])
    found = place(images, Placement(far, far, no, no), padding, fill=7)
    if padding is Padding.FILL:
        assert torch.equal(found, torch.full_like(images, 7))
    else:
        # The mirrored image repeats after 2 * (side - 1) pixels: after 6 rows, of which 10^12 leaves 4, and 8 columns.
        near = Placement(torch.tensor([4, -4]), torch.tensor([0, 0]), no, no)
        assert torch.equal(found, place(images, near, padding))


@pytest.mark.parametrize("padding", Padding)
def test_the_order_in_memory_does_not_matter(padding: Padding) -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8).permute(0, 2, 3, 1)
    assert not images.is_contiguous()
    first, second = (torch.Generator().manual_seed(0) for _ in range(2))
    augmentation = Augmentation(shift=2, vertical_flip=True, padding=padding)
    assert torch.equal(augmentation(images, first), augmentation(images.contiguous(), second))
