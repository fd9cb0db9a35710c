"""Pairs under one key stream give it away; under fresh ones they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfed.attacks.values.known_plaintext import chosen_image, recover
from ppfed.attacks.values.stream import NP_CONSTANTS, NP_TWICE_CONSTANTS, RecoveredStream, mask_bits_found
from ppfed.attacks.values.upright import ORDERS
from ppfed.ciphers.negative_positive import COLOUR_PERMUTATIONS
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from ...paper_steps import Integers, encrypted_in_numpy
from ...photographs import tiles
from .orders import orders_found

KEY = MasterKey(bytes(range(32)))
CONSTANTS = {"np-v1": NP_CONSTANTS, "np2-v1": NP_TWICE_CONSTANTS}


def stream(seed: int, constants: tuple[int, ...], shuffle: bool, side: int = 32, channels: int = 3) -> Integers:
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array(constants, dtype=np.uint8), (1, side, side, channels))
    return Integers(mask, rng.integers(6, size=(1, side, side), dtype=np.uint8) if shuffle else None)


def determined_part(found: RecoveredStream) -> float:
    """Part of the pixels whose choice the evidence determined, 0 to 1."""
    assert found.determined is not None
    return float(found.determined.mean())


def test_orders_are_numbered_like_the_cipher() -> None:
    assert np.array_equal(ORDERS, COLOUR_PERMUTATIONS)


@settings(max_examples=20)
@given(st.integers(0, 1 << 32), st.sampled_from(list(CONSTANTS.values())), st.booleans(), st.sampled_from([1, 3]))
def test_one_chosen_image_gives_everything(seed: int, constants: tuple[int, ...], shuffle: bool, channels: int) -> None:
    shuffle = shuffle and channels == 3
    true = stream(seed, constants, shuffle, side=8, channels=channels)
    chosen = chosen_image(8, 8, channels)
    found = recover(chosen, encrypted_in_numpy(chosen, true), colour_shuffle=shuffle, constants=constants)
    assert determined_part(found) == 1
    assert np.array_equal(found.mask, true.mask[0])
    assert mask_bits_found(found, true.mask, true.permutation) == 1
    if true.permutation is not None:
        assert found.permutation is not None
        assert np.array_equal(found.permutation, true.permutation[0])
    pixels = np.random.default_rng(seed).integers(256, size=(3, 8, 8, channels), dtype=np.uint8)
    assert np.array_equal(found.restore(encrypted_in_numpy(pixels, true)), pixels)


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_few_known_images_give_it_away(name: str, shuffle: bool) -> None:
    plain = tiles()
    cipher = make_cipher(CipherSpec(name, Scope.FIXED, shuffle), KEY)
    hidden = cipher.encrypt(PlainImages(plain)).pixels
    found = [
        recover(plain[:pairs], hidden[:pairs], colour_shuffle=shuffle, constants=CONSTANTS[name]) for pairs in (1, 5)
    ]
    # Pairs can only exclude choices.
    assert determined_part(found[0]) <= determined_part(found[1])
    assert np.array_equal(found[0].restore(hidden[:1]), plain[:1]), "what was given is explained"
    assert np.array_equal(found[1].restore(hidden[:5]), plain[:5])
    # Without shuffle one value gives its mask. Five pairs left no pixel open here; a hundredth is for other versions
    # of the photographs.
    assert determined_part(found[0 if not shuffle else 1]) > 0.99
    assert (found[1].restore(hidden[5:]) == plain[5:]).mean() > 0.99


@pytest.mark.parametrize("name", CONSTANTS)
def test_fresh_masks_leave_other_images_at_chance(name: str) -> None:
    plain = tiles()
    cipher = make_cipher(CipherSpec(name, Scope.IMAGE, True), KEY)
    images = cipher.encrypt(PlainImages(plain))
    found = recover(plain[:5], images.pixels[:5], colour_shuffle=True, constants=CONSTANTS[name])
    assert determined_part(found) < 0.01
    chosen = chosen_image(32, 32)
    answer = cipher.encrypt(PlainImages(chosen), images.ids[-1:]).pixels
    other = recover(chosen, answer, colour_shuffle=True, constants=CONSTANTS[name])
    assert other.permutation is not None
    # 3,072 coins: five standard deviations are 0.045. 1,024 dice: five are 0.058.
    assert abs(mask_bits_found(found, other.mask, other.permutation) - 1 / 2) < 0.045
    assert abs(orders_found(found, other.permutation) - 1 / 6) < 0.058


def test_equal_colours_leave_the_order_open_but_not_the_mask() -> None:
    true = stream(1, NP_CONSTANTS, True)
    grey = np.full((1, 32, 32, 3), 77, dtype=np.uint8)
    found = recover(grey, encrypted_in_numpy(grey, true), colour_shuffle=True)
    assert determined_part(found) == 0
    # On the ciphertext's channels the mask shows all the same.
    assert mask_bits_found(found, true.mask, true.permutation) == 1


def test_bits_are_counted() -> None:
    mask = stream(2, NP_CONSTANTS, False).mask[0]
    one_wrong = mask.copy()
    one_wrong[0, 0, 0] ^= 0xFF
    assert mask_bits_found(RecoveredStream(one_wrong), mask) == pytest.approx(1 - 1 / mask.size)
    assert mask_bits_found(RecoveredStream(255 - mask), mask) == 0
    assert mask_bits_found(RecoveredStream(255 - mask), mask, either_sign=True) == 1
    assert mask_bits_found(RecoveredStream(mask ^ 0x80), mask) == 0.5


def test_what_it_is_given_is_checked() -> None:
    def some(count: int) -> UInt8Array:
        return np.zeros((count, 2, 2, 3), dtype=np.uint8)

    for plain, hidden in ((some(0), some(0)), (some(1), some(2))):
        with pytest.raises(ValueError, match="not pairs"):
            recover(plain, hidden, colour_shuffle=True)
