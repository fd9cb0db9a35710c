"""What the ciphers that came after the paper do to images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfed.ciphers.block_pixel import BlockPixelCipher
from ppfed.ciphers.negative_positive import NegativePositiveTwiceCipher
from ppfed.ciphers.registry import cipher_info, make_cipher
from ppfed.ciphers.shuffling import to_blocks
from ppfed.ciphers.spec import Scope
from ppfed.images.types import ID_BYTES, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from .cases import KEY, batches, noise, secrets


def ids(count: int) -> UInt8Array:
    return np.arange(count * 3, dtype=np.uint32).view(np.uint8).reshape(count, ID_BYTES)


# Block scrambling and in-block pixel permutation


@given(batches("block-pixel-v1"), st.sampled_from(Scope), secrets)
def test_block_pixel_keeps_the_pixels_of_each_block_together(images: PlainImages, scope: Scope, secret: bytes) -> None:
    encrypted = make_cipher(cipher_info("block-pixel-v1").spec(scope), MasterKey(secret)).encrypt(images)
    channels = images.pixels.shape[3]
    for plain, cipher in zip(to_blocks(images.pixels), to_blocks(encrypted.pixels), strict=True):
        before, after = (
            Counter(tuple(sorted(map(bytes, block.reshape(16, channels)))) for block in blocks)
            for blocks in (plain, cipher)
        )
        assert before == after


@pytest.mark.parametrize("scope", Scope)
def test_block_pixel_permutes_all_blocks_alike(scope: Scope) -> None:
    # All values of a block are different, so that its permutation can be read off; the block's number is beside them.
    inside = np.tile(np.arange(16, dtype=np.uint8).reshape(4, 4), (3, 3, 5))
    number = np.arange(15, dtype=np.uint8).reshape(3, 5).repeat(4, axis=0).repeat(4, axis=1)
    pixels = np.stack([inside, np.broadcast_to(number, inside.shape), inside + 100], axis=3)
    encrypted = make_cipher(cipher_info("block-pixel-v1").spec(scope), KEY).encrypt(PlainImages(pixels))
    blocks = to_blocks(encrypted.pixels).reshape(3, 15, 16, 3)
    assert np.array_equal(blocks, np.stack([blocks[..., 0], blocks[..., 1], blocks[..., 0] + 100], axis=3))
    permutation = blocks[..., 0]
    assert np.array_equal(permutation, np.broadcast_to(permutation[:, :1], permutation.shape))
    assert np.array_equal(np.sort(permutation[0, 0]), np.arange(16))
    order = blocks[:, :, 0, 1]
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(15), (3, 1)))
    distinct = 1 if scope is Scope.FIXED else 3
    assert len(np.unique(permutation[:, 0], axis=0)) == len(np.unique(order, axis=0)) == distinct


def test_block_pixel_sends_every_pixel_and_every_block_everywhere() -> None:
    source = BlockPixelCipher(KEY, cipher_info("block-pixel-v1").spec()).stream(ids(4000), (16, 16, 1)).source
    inside, order = source[:, :16] % 16, source[:, ::16] // 16
    for drawn in (inside, order):
        # 4,000 draws: 250 of each at each of 16 places, standard deviation 15.3; the largest of 256 deviations stays
        # below five.
        counts = np.stack([np.bincount(drawn[:, place], minlength=16) for place in range(16)])
        assert np.abs(counts - 250).max() < 77
    # Drawn apart: two independent orders agree at one place in 16; 64,000 places, five standard deviations are 0.005.
    assert abs((inside == order).mean() - 1 / 16) < 0.005


# NP twice


def kept(values: UInt8Array) -> UInt8Array:
    """Fold values to what NP twice leaves: the lower seven bits up to their negative, 0 to 63."""
    low = values & 127
    return np.minimum(low, 127 - low)


@given(batches("np2-v1"), st.sampled_from(Scope), secrets)
def test_np2_without_shuffle_keeps_each_value_in_its_orbit(images: PlainImages, scope: Scope, secret: bytes) -> None:
    spec = cipher_info("np2-v1").spec(scope, colour_shuffle=False)
    encrypted = make_cipher(spec, MasterKey(secret)).encrypt(images)
    assert np.isin(encrypted.pixels ^ images.pixels, [0x00, 0xFF, 0x80, 0x7F]).all()
    assert np.array_equal(kept(encrypted.pixels), kept(images.pixels))


@given(batches("np2-v1"), st.sampled_from(Scope), st.booleans(), secrets)
def test_np2_keeps_the_kept_values_of_each_pixel(
    images: PlainImages, scope: Scope, shuffle: bool, secret: bytes
) -> None:
    spec = cipher_info("np2-v1").spec(scope, colour_shuffle=shuffle)
    encrypted = make_cipher(spec, MasterKey(secret)).encrypt(images)
    before, after = (np.sort(kept(pixels), axis=3) for pixels in (images.pixels, encrypted.pixels))
    assert np.array_equal(before, after)


def test_np2_takes_every_mask_and_permutation_equally_often() -> None:
    stream = NegativePositiveTwiceCipher(KEY, cipher_info("np2-v1").spec()).stream(ids(100), (32, 32, 3))
    assert stream.permutation is not None
    values, counts = np.unique(stream.mask, return_counts=True)
    assert values.tolist() == [0x00, 0x7F, 0x80, 0xFF]
    # 307,200 draws of four: a share has a standard deviation of 0.0008; 102,400 of six: 0.0012. Five of them.
    assert np.abs(counts / stream.mask.size - 1 / 4).max() < 0.004
    shares = np.bincount(stream.permutation.reshape(-1), minlength=6) / stream.permutation.size
    assert np.abs(shares - 1 / 6).max() < 0.006


@pytest.mark.parametrize("shuffle", [False, True])
def test_np2_in_image_scope_leaves_values_of_one_orbit_indistinguishable(shuffle: bool) -> None:
    spec = cipher_info("np2-v1").spec(colour_shuffle=shuffle)
    orbit = [77, 255 - 77, 77 ^ 128, 255 - (77 ^ 128)]
    images = PlainImages(np.repeat(np.array(orbit, np.uint8), 32 * 32 * 3).reshape(4, 32, 32, 3))
    encrypted = make_cipher(spec, KEY).encrypt(images, ids(4)).pixels.reshape(4, -1)
    counts = np.stack([(encrypted == value).sum(axis=1) for value in orbit])
    # 3,072 values of each: 768 of each of the four, standard deviation 24; the largest of 16 deviations stays below
    # five.
    assert counts.sum() == 4 * 3072
    assert np.abs(counts - 768).max() < 120


def test_np2_moves_colours_only_if_asked() -> None:
    # Values that NP twice keeps apart, a different one in each channel.
    images = PlainImages(np.tile(np.array([10, 20, 30], np.uint8), (1, 16, 16, 1)))
    for shuffle in (False, True):
        encrypted = make_cipher(cipher_info("np2-v1").spec(colour_shuffle=shuffle), KEY).encrypt(images)
        orders = np.unique(kept(encrypted.pixels).reshape(-1, 3), axis=0)
        # 256 pixels miss one of six orders with a chance below 10^-19.
        assert len(orders) == (6 if shuffle else 1)


def test_np2_has_keystreams_of_its_own() -> None:
    images = noise(2, 8, 8, 3)
    once, twice = (
        make_cipher(cipher_info(name).spec(colour_shuffle=False), KEY).encrypt(images, ids(2)).pixels
        for name in ("np-v1", "np2-v1")
    )
    # Sharing NP's mask would leave only the top bit to differ.
    assert np.unique(once ^ twice).tolist() == [0x00, 0x7F, 0x80, 0xFF]


@pytest.mark.parametrize("name", ["np-v1", "np2-v1"])
def test_grey_images_pass_the_colour_shuffle_unchanged(name: str) -> None:
    images = noise(2, 8, 8, 1)
    with_shuffle, without = (
        make_cipher(cipher_info(name).spec(colour_shuffle=shuffle), KEY).encrypt(images, ids(2)).pixels
        for shuffle in (True, False)
    )
    assert np.array_equal(with_shuffle, without)
