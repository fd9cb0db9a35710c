"""The compiled loops against NumPy and OpenSSL, at sizes that do and do not fill a processor's registers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfed.ciphers import keyed
from ppfed.ciphers.kernels import permute_colours, scale_words
from ppfed.ciphers.keystream import Keystream, spread, xor_spread
from ppfed.ciphers.negative_positive import (
    COLOUR_PERMUTATIONS,
    NegativePositiveCipher,
    NegativePositiveTwiceCipher,
)
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import ID_BYTES, PlainImages, UInt8Array

from ..paper_steps import Integers, encrypted_in_numpy
from .cases import KEY, noise
from .reference import keystream

CIPHERS = {cipher.name: cipher for cipher in (NegativePositiveCipher, NegativePositiveTwiceCipher)}
SPECS = [CipherSpec(name, scope, shuffle) for name in CIPHERS for scope in Scope for shuffle in (False, True)]
SHAPES = [(3, 5, 7, 3), (3, 5, 7, 1), (2, 16, 16, 3), (2, 16, 16, 1), (2, 33, 31, 3), (5, 1, 1, 3), (2, 2, 4, 1)]
"""Whole words and not, more pixels than are permuted at once and fewer."""


def ids(count: int) -> UInt8Array:
    return np.random.default_rng(count).integers(0, 256, (count, ID_BYTES), dtype=np.uint8)


def misplaced(array: UInt8Array) -> UInt8Array:
    """Copy to an odd address."""
    memory = np.empty(array.size + 1, np.uint8)[1:]
    memory[:] = array.reshape(-1)
    return memory.reshape(array.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_images_are_encrypted_as_their_stream_says(spec: CipherSpec, shape: tuple[int, int, int, int]) -> None:
    images, numbers = noise(*shape), ids(shape[0])
    cipher = CIPHERS[spec.name](KEY, spec)
    encrypted = cipher.encrypt(images, numbers)
    stream = cipher.stream(numbers, images.shape)
    assert np.array_equal(
        encrypted.pixels, encrypted_in_numpy(images.pixels, Integers(stream.mask, stream.permutation))
    )
    assert np.array_equal(cipher.decrypt(encrypted).pixels, images.pixels)


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_two_threads_make_what_one_makes(spec: CipherSpec, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several chunks, without shuffle too.
    monkeypatch.setattr(keyed, "_CHUNK_VALUES", 1 << 13)
    images, numbers = noise(100, side, side, 3), ids(100)
    alone, two = (CIPHERS[spec.name](KEY, spec, threads=threads) for threads in (1, 2))
    encrypted = alone.encrypt(images, numbers)
    assert np.array_equal(two.encrypt(images, numbers).pixels, encrypted.pixels)
    assert np.array_equal(two.decrypt(encrypted).pixels, images.pixels)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (4, 5, 7, 3)], ids=str)
def test_images_may_lie_anywhere(spec: CipherSpec, shape: tuple[int, int, int, int], tmp_path: Path) -> None:
    pixels, numbers = noise(*shape).pixels, ids(4)
    cipher = CIPHERS[spec.name](KEY, spec)
    expected = cipher.encrypt(PlainImages(pixels), numbers)

    on_disk = tmp_path / "pixels"
    on_disk.write_bytes(b"an odd header" + pixels.tobytes())
    mapped = np.memmap(on_disk, np.uint8, "r", offset=13, shape=shape)
    assert not mapped.flags.writeable
    between = np.zeros((4, shape[1], 2 * shape[2], 3), np.uint8)[:, :, ::2]
    between[:] = pixels
    assert not between.flags.c_contiguous
    for same in (mapped, between, misplaced(pixels)):
        encrypted = cipher.encrypt(PlainImages(same), misplaced(numbers))
        assert np.array_equal(encrypted.pixels, expected.pixels)
        assert np.array_equal(cipher.decrypt(encrypted).pixels, pixels)


@given(st.integers(1, 3), st.integers(1, 300), st.booleans(), st.lists(st.integers(0, 255), min_size=1, max_size=3))
def test_bits_are_xored_as_numpy_unpacks_them(rows: int, count: int, shared: bool, constants: list[int]) -> None:
    rng = np.random.default_rng(count)
    values = rng.integers(0, 256, (rows, count), dtype=np.uint8)
    bits = rng.integers(0, 256, (len(constants), 1 if shared else rows, -(-count // 8)), dtype=np.uint8)
    each = np.array(constants, np.uint8)
    unpacked = np.unpackbits(bits, axis=2, bitorder="little")[:, :, :count]
    masks = np.bitwise_xor.reduce(unpacked * each[:, None, None], axis=0)
    assert np.array_equal(spread(bits, each, count), masks)
    out = np.empty_like(values)
    xor_spread(values, bits, each, out)
    assert np.array_equal(out, values ^ masks)
    xor_spread(out, bits, each, out)
    assert np.array_equal(out, values)


@pytest.mark.parametrize("pixels", [1, 2, 31, 32, 33, 64, 95, 128, 1000])
@pytest.mark.parametrize("shared", [False, True])
def test_colours_are_permuted_as_numpy_takes_them(pixels: int, shared: bool) -> None:
    rng = np.random.default_rng(pixels)
    values = rng.integers(0, 256, (3, pixels, 3), dtype=np.uint8)
    permutation = rng.integers(0, 6, (1 if shared else 3, pixels), dtype=np.uint8)
    for places in (COLOUR_PERMUTATIONS, COLOUR_PERMUTATIONS[::-1].copy()):
        out = np.empty_like(values)
        permute_colours(values.reshape(3, -1), permutation, places, out.reshape(3, -1))
        order = np.broadcast_to(places[permutation].astype(np.intp), values.shape)
        assert np.array_equal(out, np.take_along_axis(values, order, axis=2))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70), st.integers(1, 256))
def test_words_are_scaled_as_python_scales_them(words: list[int], bound: int) -> None:
    out = np.empty(len(words), np.uint8)
    scale_words(np.array(words, np.uint32), bound, out)
    assert out.tolist() == [word * bound >> 32 for word in words]


# The number of the last block takes one, two and three bytes.
@pytest.mark.parametrize("length", [1, 16, 17, 16 * 256 + 3, 16 * 65_536 + 16])
def test_a_keystream_is_ctr_mode(length: int) -> None:
    secret, nonces = bytes(range(32)), ids(2)
    drawn = Keystream(secret).bytes(nonces, length)
    assert [row.tobytes() for row in drawn] == [keystream(secret, nonce.tobytes(), length) for nonce in nonces]


def test_threads_share_a_keystream() -> None:
    shared, nonces, length = Keystream(bytes(32)), ids(4), 1 << 20
    expected = shared.bytes(nonces, length)
    with ThreadPoolExecutor(4) as executor:
        for drawn in executor.map(lambda _: shared.bytes(nonces, length), range(16)):
            assert np.array_equal(drawn, expected)
