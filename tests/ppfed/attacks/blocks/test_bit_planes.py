"""LE's one shuffle for all blocks shows in their statistics, whatever the key."""

from __future__ import annotations

import numpy as np
import pytest

from ppfed.attacks.blocks.bit_planes import NibbleMap, find_map, nibbles, restore_le
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from ...photographs import likeness, pieces


def encrypted(plain: UInt8Array, scope: Scope, name: str = "le-v1", key: int = 0) -> UInt8Array:
    cipher = make_cipher(CipherSpec(name, scope, colour_shuffle=False), MasterKey(bytes([key]) * 32))
    return cipher.encrypt(PlainImages(plain)).pixels


def views(pictures: UInt8Array) -> list[UInt8Array]:
    """What the attack leaves open: the negative, and red and blue exchanged."""
    swapped = pictures[..., ::-1]
    return [pictures, 255 - pictures, swapped, 255 - swapped]


def test_a_known_map_is_undone() -> None:
    generator = np.random.default_rng(0)
    plain = pieces(2)
    found = NibbleMap(generator.permutation(96), generator.integers(0, 2, 96).astype(np.uint8) * np.uint8(15))
    hidden = nibbles(plain)
    moved = np.empty_like(hidden)
    moved[..., found.place] = hidden ^ found.reversal
    low, high = np.split(moved, 2, axis=2)
    joined = (low | (high << np.uint8(4))).reshape(2, 8, 8, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(plain.shape)
    assert np.array_equal(found.restore(joined), plain)


@pytest.mark.parametrize("key", range(3))
def test_twenty_ciphertexts_give_every_bit(key: int) -> None:
    plain = pieces(20)
    restored = restore_le(encrypted(plain, Scope.FIXED, key=key))
    assert any(np.array_equal(view, plain) for view in views(restored))


def test_grey_ciphertexts_give_every_bit() -> None:
    plain = pieces(40)[..., 1:2]
    restored = restore_le(encrypted(plain, Scope.FIXED))
    assert any(np.array_equal(view, plain) for view in (restored, 255 - restored))


def test_one_image_is_enough_for_a_picture() -> None:
    """In image scope too: the 64 blocks of an image share a key."""
    plain = pieces(8)
    hidden = encrypted(plain, Scope.IMAGE)
    # The ciphertexts' own likeness is below 0.15, and 0.83 was measured over ten such pictures: single pictures vary.
    assert likeness(plain, hidden) < 0.15
    assert likeness(plain, restore_le(hidden, pooled=False)) > 0.6


@pytest.mark.parametrize(("name", "scope"), [("le-v1", Scope.IMAGE), ("ele-v1", Scope.FIXED), ("ele-v1", Scope.IMAGE)])
def test_blocks_with_different_keys_do_not_pool(name: str, scope: Scope) -> None:
    plain = pieces(20)
    assert likeness(plain, restore_le(encrypted(plain, scope, name))) < 0.15


def test_noise_gives_no_map() -> None:
    """Without statistics there is nothing to go by: right by chance is one place of 96."""
    noise = np.random.default_rng(3).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    found = find_map(encrypted(noise, Scope.FIXED))
    assert sorted(found.place.tolist()) == list(range(96))
    assert np.mean(found.restore(encrypted(noise, Scope.FIXED)) == noise) < 0.05
