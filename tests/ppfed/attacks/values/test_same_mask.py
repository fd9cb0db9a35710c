"""Ciphertexts alone: one mask for all is read off, fresh masks are not."""

from __future__ import annotations

import numpy as np
import pytest

from ppfed.attacks.values.fold import fold
from ppfed.attacks.values.known_plaintext import chosen_image
from ppfed.attacks.values.known_plaintext import recover as recover_chosen
from ppfed.attacks.values.same_mask import recover
from ppfed.attacks.values.stream import NP_CONSTANTS, NP_TWICE_CONSTANTS, RecoveredStream, mask_bits_found
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from ...photographs import tiles
from .orders import orders_found

KEY = MasterKey(bytes(range(32)))
CONSTANTS = {"np-v1": NP_CONSTANTS, "np2-v1": NP_TWICE_CONSTANTS}


def encrypted(pixels: UInt8Array, spec: CipherSpec) -> tuple[UInt8Array, RecoveredStream]:
    """Encrypt, and tell the true stream of the first image."""
    cipher = make_cipher(spec, KEY)
    images = cipher.encrypt(PlainImages(pixels))
    chosen = chosen_image(*pixels.shape[1:])
    answer = cipher.encrypt(PlainImages(chosen), images.ids[:1]).pixels
    true = recover_chosen(chosen, answer, colour_shuffle=spec.colour_shuffle, constants=CONSTANTS[spec.name])
    return images.pixels, true


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_one_mask_for_all_is_found(name: str, shuffle: bool) -> None:
    plain = tiles()
    hidden, true = encrypted(plain, CipherSpec(name, Scope.FIXED, shuffle))
    found = recover(hidden, colour_shuffle=shuffle, constants=CONSTANTS[name])
    # 34 photographs gave every bit and order; a hundredth is left to other numerics.
    assert mask_bits_found(found, true.mask, true.permutation, either_sign=True) > 0.99
    if shuffle:
        assert true.permutation is not None
        assert orders_found(found, true.permutation, any_names=True) > 0.99
    # What differences cannot tell, these photographs' light and colours do.
    assert (found.restore(hidden) == plain).mean() > 0.99


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_fresh_masks_leave_it_at_chance(name: str, shuffle: bool) -> None:
    hidden, true = encrypted(tiles(2), CipherSpec(name, Scope.IMAGE, shuffle))
    found = recover(hidden, colour_shuffle=shuffle, constants=CONSTANTS[name])
    # 3,072 coins of 146 images; neighbours' guesses hang together, so that chance spreads wider than one coin's 0.009.
    assert mask_bits_found(found, true.mask, true.permutation, either_sign=True) < 0.6
    if shuffle:
        assert true.permutation is not None
        # One in six.
        assert orders_found(found, true.permutation) < 0.3


def test_shuffle_need_not_be_known() -> None:
    """Looking for a shuffle where there is none finds the order that is there."""
    plain = tiles()
    hidden, _ = encrypted(plain, CipherSpec(scope=Scope.FIXED, colour_shuffle=False))
    assert (recover(hidden).restore(hidden) == plain).mean() > 0.99


def test_grey_images() -> None:
    plain = tiles()[..., 1:2]
    hidden, true = encrypted(plain, CipherSpec(scope=Scope.FIXED, colour_shuffle=False))
    assert mask_bits_found(recover(hidden), true.mask, either_sign=True) > 0.99


def test_what_it_is_given_is_checked() -> None:
    with pytest.raises(ValueError, match="no ciphertexts"):
        recover(np.zeros((0, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="constants"):
        recover(np.zeros((2, 4, 4, 3), dtype=np.uint8), constants=(0, 1, 2, 4))


def test_a_secret_part_shared_by_all_images_shows_under_a_fresh_one() -> None:
    # The top bit is inverted at the same secret places in all images, then each image gets an NP mask of its own.
    plain = tiles()
    rng = np.random.default_rng(0)
    secret = (rng.integers(0, 2, plain.shape[1:]) * 0x80).astype(np.uint8)
    hidden = plain ^ secret ^ (rng.integers(0, 2, plain.shape) * 0xFF).astype(np.uint8)
    # The fresh mask is folded away; where the top bit was inverted, the fold is upside down.
    found = recover(fold(hidden) * np.uint8(2), colour_shuffle=False).mask > 0
    right = float((found == (secret > 0)).mean())
    # 34 small tiles leave flat corners open.
    assert max(right, 1 - right) > 0.95
