"""Leaked pairs give the map of a cipher away in fixed scope, and nothing in image scope."""

from __future__ import annotations

import numpy as np
import pytest

from ppfed.attacks.blocks.template import recover
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from ...photographs import pieces

CIPHERS = ("le-v1", "ele-v1", "etc-v1", "block-pixel-v1", "logistic-rc4-v1")


def attacked(name: str, scope: Scope, pairs: int, plain: UInt8Array) -> UInt8Array:
    """Restore all but the first ``pairs`` images with what those give away."""
    cipher = make_cipher(CipherSpec(name, scope, colour_shuffle=False), MasterKey(bytes(range(32))))
    encrypted = cipher.encrypt(PlainImages(plain)).pixels
    return recover(name, plain[:pairs], encrypted[:pairs]).restore(encrypted[pairs:])


@pytest.mark.parametrize("name", CIPHERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_enough_in_fixed_scope(name: str, channels: int) -> None:
    plain = pieces(48)[..., :channels]
    # ELE has a key for each block, so that a pair shows each of its keys one block only: 40 pairs settle them all. The
    # other maps are settled by a few.
    pairs = 40 if name == "ele-v1" else 8
    assert np.array_equal(attacked(name, Scope.FIXED, pairs, plain), plain[pairs:])


def test_one_pair_tells_most_of_le() -> None:
    plain = pieces(9, seed=1)[[1, *range(9)]]
    assert np.mean(attacked("le-v1", Scope.FIXED, 1, plain) == plain[1:]) > 0.9


@pytest.mark.parametrize("name", CIPHERS)
def test_pairs_say_nothing_about_another_key_stream(name: str) -> None:
    plain = pieces(16)
    restored = attacked(name, Scope.IMAGE, 8, plain)
    # Values that agree by chance are 1 of 256 for evenly spread ones; photographs whose values crowd reach 2 of 100.
    assert np.mean(restored == plain[8:]) < 0.03


def test_bad_requests_are_refused() -> None:
    plain = pieces(2)
    with pytest.raises(ValueError, match="np-v1"):
        recover("np-v1", plain, plain)
    with pytest.raises(ValueError, match="two"):
        recover("logistic-rc4-v1", plain[:1], plain[:1])
    with pytest.raises(ValueError, match="same shape"):
        recover("le-v1", plain, plain[:1])
