"""What each of the rivals is published to do to images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfed.ciphers import logistic_rc4
from ppfed.ciphers.learnable import ExtendedLearnableCipher, LearnableCipher
from ppfed.ciphers.logistic_rc4 import initial_values, logistic_orbits, rc4_keystreams
from ppfed.ciphers.registry import cipher_info, make_cipher
from ppfed.ciphers.shuffling import to_blocks
from ppfed.ciphers.spec import Scope
from ppfed.errors import UsageError
from ppfed.images.types import ID_BYTES, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from . import reference
from .cases import KEY, batches, noise, secrets


def nibbles(blocks: UInt8Array) -> UInt8Array:
    """Take 4-bit values out of blocks, (..., V) to (..., 2 V)."""
    return np.concatenate([blocks & 15, blocks >> 4], axis=-1)


def folded(nibble: UInt8Array) -> UInt8Array:
    return np.minimum(nibble, 15 - nibble)


# LE


@given(batches("le-v1"), st.sampled_from(Scope), secrets)
def test_le_keeps_the_folded_half_bytes_of_each_block(images: PlainImages, scope: Scope, secret: bytes) -> None:
    encrypted = make_cipher(cipher_info("le-v1").spec(scope), MasterKey(secret)).encrypt(images)
    before, after = (np.sort(folded(nibbles(to_blocks(pixels)))) for pixels in (images.pixels, encrypted.pixels))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("scope", Scope)
def test_le_is_one_map_for_all_blocks(scope: Scope) -> None:
    block = noise(1, 4, 4, 3).pixels
    images = PlainImages(np.tile(block, (2, 3, 5, 1)))
    blocks = to_blocks(make_cipher(cipher_info("le-v1").spec(scope), KEY).encrypt(images).pixels)
    per_image = [len(np.unique(of_image, axis=0)) for of_image in blocks]
    assert per_image == [1, 1]
    assert np.array_equal(blocks[0, 0], blocks[1, 0]) == (scope is Scope.FIXED)


def test_le_of_another_shape_has_another_key() -> None:
    block = noise(1, 4, 4, 3).pixels
    cipher = make_cipher(cipher_info("le-v1").spec(Scope.FIXED), KEY)
    small, large = (cipher.encrypt(PlainImages(np.tile(block, (1, side, side, 1)))).pixels for side in (1, 2))
    assert not np.array_equal(small[0], large[0, :4, :4])


def test_le_reverses_half_of_the_values_and_mixes_both_halves() -> None:
    ids = np.arange(2000 * 3, dtype=np.uint32).view(np.uint8).reshape(2000, ID_BYTES)
    stream = LearnableCipher(KEY, cipher_info("le-v1").spec()).stream(ids, (4, 4, 3))
    assert set(np.unique(stream.mask)) == {0, 15}
    # 192,000 fair bits: 0.006 is five standard deviations; the same number for a nibble to change halves (48 of 96).
    assert abs((stream.mask == 15).mean() - 0.5) < 0.006
    assert abs((stream.source[:, :48] < 48).mean() - 0.5) < 0.006


# EtC


def appearances(block: UInt8Array) -> set[bytes]:
    """List all that EtC can make of a block of (4, 4, C)."""
    seen = set()
    for turned in (np.rot90(block, turns) for turns in range(4)):
        for mirrored in (turned, turned[:, ::-1], turned[::-1], turned[::-1, ::-1]):
            for signed in (mirrored, 255 - mirrored):
                orders = [(0,)] if block.shape[2] == 1 else colour_orders()
                seen |= {np.ascontiguousarray(signed[:, :, order]).tobytes() for order in orders}
    return seen


def colour_orders() -> list[tuple[int, ...]]:
    return [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scope", Scope)
def test_etc_keeps_the_blocks_up_to_their_appearance(scope: Scope, channels: int) -> None:
    images = noise(3, 12, 16, channels)
    encrypted = make_cipher(cipher_info("etc-v1").spec(scope), KEY).encrypt(images)
    # The least of all appearances stands for a block.
    for plain, cipher in zip(to_blocks(images.pixels), to_blocks(encrypted.pixels), strict=True):
        before, after = (
            Counter(min(appearances(block.reshape(4, 4, channels))) for block in blocks) for blocks in (plain, cipher)
        )
        assert before == after


def test_etc_takes_every_appearance_equally_often() -> None:
    block = noise(1, 4, 4, 3).pixels
    images = PlainImages(np.tile(block, (3, 64, 64, 1)))
    encrypted = make_cipher(cipher_info("etc-v1").spec(), KEY).encrypt(images)
    counts = Counter(blocks.tobytes() for blocks in to_blocks(encrypted.pixels).reshape(-1, 48))
    expected = appearances(block[0])
    assert len(expected) == 8 * 2 * 6
    assert set(counts) == expected
    # 12,288 blocks: 128 of each, standard deviation 11.3; the largest of 96 deviations stays below five.
    assert max(abs(count - 128) for count in counts.values()) < 57


@pytest.mark.parametrize("name", ["etc-v1", "ele-v1"])
def test_blocks_go_everywhere(name: str) -> None:
    # Flat blocks, each of its own grey; folded they are known again, for EtC as for the half-bytes of ELE.
    levels = np.arange(8, dtype=np.uint8).repeat(2)
    pixels = np.repeat((levels * 17).reshape(1, 4, 4, 1), 2000, axis=0).repeat(4, axis=1).repeat(4, axis=2)
    encrypted = to_blocks(make_cipher(cipher_info(name).spec(), KEY).encrypt(PlainImages(pixels)).pixels)
    level = folded(encrypted & 15)
    assert np.array_equal(level, np.broadcast_to(level[:, :, :1], level.shape))
    for place in range(16):
        # 2,000 images: 250 of each level at each place, standard deviation 14.8; five of them.
        counts = np.bincount(level[:, place, 0], minlength=8)
        assert np.abs(counts - 250).max() < 75


# logistic map and RC4


def test_rc4_is_rc4() -> None:
    # RFC 6229, 128-bit key 0102..10, offset 0.
    key = np.arange(1, 17, dtype=np.uint8)[None]
    stream = rc4_keystreams(key, 4112)[0].tobytes()
    assert stream[:16].hex() == "9ac7cc9a609d1ef7b2932899cde41b97"
    assert stream == reference.rc4(key.tobytes(), 4112)


def test_rc4_switched_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise logistic_rc4.UnsupportedAlgorithm("RC4")

    monkeypatch.setattr(logistic_rc4, "BlockCipher", refuse)
    with pytest.raises(UsageError, match="RC4"):
        make_cipher(cipher_info("logistic-rc4-v1").spec(), KEY).encrypt(noise(1, 4, 4, 3))


def test_initial_values_are_exact_and_never_special() -> None:
    words = np.array([0, 2**64 - 1, 2**12, 2**63], np.uint64)
    assert initial_values(words).tolist() == [2**-53, 1 - 2**-53, 3 * 2**-53, 0.5 + 2**-53]


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=20)
def test_orbits_equal_pythons(word: int) -> None:
    start = initial_values(np.array([word, 1], np.uint64))
    orbit = logistic_orbits(start, 50)[0].tolist()
    value = float(start[0])
    for _ in range(1000):
        value = (3.99 * value) * (1.0 - value)
    for step in orbit:
        value = (3.99 * value) * (1.0 - value)
        assert step == value


def test_orbits_stay_chaotic() -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 100, dtype=np.uint64)
    orbits = np.sort(logistic_orbits(initial_values(words), 20_000), axis=1)
    # A value met twice would be a cycle from there on. Between them lie the bounds of the map's attractor.
    assert np.all(np.diff(orbits, axis=1) > 0)
    assert orbits.min() > 0.0099
    assert orbits.max() <= 3.99 / 4


def test_logistic_rc4_leaves_a_flat_histogram() -> None:
    images = PlainImages(np.full((40, 32, 32, 3), 77, np.uint8))
    encrypted = make_cipher(cipher_info("logistic-rc4-v1").spec(), KEY).encrypt(images)
    counts = np.bincount(encrypted.pixels.reshape(-1), minlength=256)
    # 122,880 values: 480 of each, standard deviation 21.9; five of them.
    assert np.abs(counts - 480).max() < 110


def test_logistic_rc4_moves_whole_pixels() -> None:
    images = noise(2, 8, 8, 3)
    other = PlainImages(images.pixels[::-1].copy())
    cipher = make_cipher(cipher_info("logistic-rc4-v1").spec(Scope.FIXED), KEY)
    # What the catalogue says it leaves: the XOR of two ciphertexts is that of the plain images, pixels moved.
    before = (images.pixels[0] ^ other.pixels[0]).reshape(64, 3)
    after = (cipher.encrypt(images).pixels[0] ^ cipher.encrypt(other).pixels[0]).reshape(64, 3)
    assert Counter(map(bytes, before)) == Counter(map(bytes, after))
    assert not np.array_equal(before, after)


# ELE


@given(batches("ele-v1"), st.sampled_from(Scope), secrets)
def test_ele_keeps_the_folded_half_bytes_of_blocks_somewhere(images: PlainImages, scope: Scope, secret: bytes) -> None:
    encrypted = make_cipher(cipher_info("ele-v1").spec(scope), MasterKey(secret)).encrypt(images)
    for plain, cipher in zip(to_blocks(images.pixels), to_blocks(encrypted.pixels), strict=True):
        before, after = (Counter(row.tobytes() for row in np.sort(folded(nibbles(b)))) for b in (plain, cipher))
        assert before == after


@pytest.mark.parametrize("scope", Scope)
def test_ele_treats_equal_blocks_differently(scope: Scope) -> None:
    images = PlainImages(np.tile(noise(1, 4, 4, 3).pixels, (2, 4, 4, 1)))
    blocks = to_blocks(make_cipher(cipher_info("ele-v1").spec(scope), KEY).encrypt(images).pixels)
    assert [len(np.unique(of_image, axis=0)) for of_image in blocks] == [16, 16]


def test_ele_stays_within_blocks() -> None:
    ids = np.arange(30, dtype=np.uint32).view(np.uint8).reshape(10, ID_BYTES)
    stream = ExtendedLearnableCipher(KEY, cipher_info("ele-v1").spec()).stream(ids, (8, 8, 3))
    home = (stream.source // 96).reshape(10, 4, 96)
    assert np.array_equal(home, np.broadcast_to(home[:, :, :1], home.shape))
    assert np.array_equal(np.sort(home[:, :, 0], axis=1), np.tile(np.arange(4), (10, 1)))
