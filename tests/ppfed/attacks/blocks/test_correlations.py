"""Ciphertexts alone: one key stream of ELE for all is read off by correlations, fresh ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from ppfed.attacks.blocks.correlations import MOST_BLOCKS, recover
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import BLOCK_PX, CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from ...photographs import likeness, pieces

SIDE = 32
CIPHERTEXTS, OWN = 300, 1000


def restored(plain: UInt8Array, own: UInt8Array, scope: Scope) -> UInt8Array:
    """Restore ciphertexts from themselves."""
    cipher = make_cipher(CipherSpec("ele-v1", scope, colour_shuffle=False), MasterKey(bytes(range(32))))
    hidden = cipher.encrypt(PlainImages(plain)).pixels
    return recover(hidden, own).restore(hidden)


@pytest.fixture(scope="module")
def images() -> tuple[UInt8Array, UInt8Array]:
    """What is encrypted, and the attacker's: no piece is the other's, though they overlap."""
    drawn = pieces(CIPHERTEXTS + OWN, side=SIDE, scale=4)
    return drawn[:CIPHERTEXTS], drawn[CIPHERTEXTS:]


def test_one_key_stream_for_all_is_found(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = images
    found = restored(plain, own, Scope.FIXED)
    assert np.mean(found >> 4 == plain >> 4) > 0.95  # 1.000
    assert likeness(plain[:30], found[:30]) > 0.9  # 0.96


def test_grey_images_are_found_too(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = (drawn[..., :1] for drawn in images)
    assert np.mean(restored(plain, own, Scope.FIXED) >> 4 == plain >> 4) > 0.95  # 0.996


def test_small_pictures_are_found_too() -> None:
    drawn = pieces(CIPHERTEXTS + OWN, side=16, scale=4)
    plain = drawn[:CIPHERTEXTS]
    assert np.mean(restored(plain, drawn[CIPHERTEXTS:], Scope.FIXED) >> 4 == plain >> 4) > 0.9


def test_fresh_key_streams_leave_nothing(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = images
    # Upper halves that agree by chance are 1 of 16 for evenly spread ones; those of photographs crowd.
    assert np.mean(restored(plain, own, Scope.IMAGE) >> 4 == plain >> 4) < 0.2


def test_few_ciphertexts_are_not_enough(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = images
    assert likeness(plain[:8], restored(plain[:8], own, Scope.FIXED)) < 0.5


def test_bad_requests_are_refused() -> None:
    few = pieces(3, side=8)
    with pytest.raises(ValueError, match="same shape"):
        recover(few, pieces(3, side=12))
    with pytest.raises(ValueError, match="two of each"):
        recover(few[:1], few)
    too_large = np.zeros((2, BLOCK_PX, BLOCK_PX * (MOST_BLOCKS + 1), 1), dtype=np.uint8)
    with pytest.raises(ValueError, match="blocks"):
        recover(too_large, too_large)
