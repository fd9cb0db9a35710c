"""Ciphertexts alone: one key stream for all is read off by frequencies, fresh ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from ppfed.attacks.blocks import template
from ppfed.attacks.values.frequencies import MOST_PIXELS, recover
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from ...photographs import likeness, pieces

SIDE = 12
CIPHERTEXTS, OWN = 400, 400


def attacked(plain: UInt8Array, own: UInt8Array, scope: Scope) -> tuple[UInt8Array, float, float]:
    """Restore ciphertexts, and tell the parts of masks and places that are right."""
    cipher = make_cipher(CipherSpec("logistic-rc4-v1", scope, colour_shuffle=False), MasterKey(bytes(range(32))))
    hidden = cipher.encrypt(PlainImages(plain)).pixels
    found, true = recover(hidden, own), template.recover("logistic-rc4-v1", plain, hidden)
    return found.restore(hidden), float(np.mean(found.mask == true.mask)), float(np.mean(found.source == true.source))


@pytest.fixture(scope="module")
def images() -> tuple[UInt8Array, UInt8Array]:
    """What is encrypted, and the attacker's: no piece is the other's, though they overlap."""
    drawn = pieces(CIPHERTEXTS + OWN, side=SIDE, scale=8)
    return drawn[:CIPHERTEXTS], drawn[CIPHERTEXTS:]


def test_one_key_stream_for_all_is_found(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = images
    restored, masks, places = attacked(plain, own, Scope.FIXED)
    # All masks; a tenth of the places, in the flat corners of pieces that overlap, is a neighbour's.
    assert masks > 0.95
    assert places > 0.8
    assert likeness(plain[:30], restored[:30]) > 0.95


def test_grey_images(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = (drawn[..., 1:2] for drawn in images)
    _, masks, places = attacked(plain, own, Scope.FIXED)
    # All of both, by this machine's rounding.
    assert masks > 0.9
    assert places > 0.9


def test_fresh_key_streams_leave_nothing(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = images
    restored, _, _ = attacked(plain, own, Scope.IMAGE)
    # Values that agree by chance are 1 of 256 for evenly spread ones; photographs whose values crowd reach 2 of 100.
    assert np.mean(restored == plain) < 0.03


def test_few_ciphertexts_are_not_enough(images: tuple[UInt8Array, UInt8Array]) -> None:
    plain, own = images
    _, _, places = attacked(plain[:8], own, Scope.FIXED)
    # Eight images do not say how 144 places vary together: chance is 1 in 144.
    assert places < 0.1


def test_bad_requests_are_refused() -> None:
    few = pieces(2, side=8)
    with pytest.raises(ValueError, match="same shape"):
        recover(few, pieces(2, side=12))
    with pytest.raises(ValueError, match="ciphertexts"):
        recover(few[:0], few)
    with pytest.raises(ValueError, match="ciphertexts"):
        recover(few, few[:0])
    too_large = np.zeros((1, 1, MOST_PIXELS + 1, 1), dtype=np.uint8)
    with pytest.raises(ValueError, match="pixels"):
        recover(too_large, too_large)
