"""The NP cipher against its vectors, a slow reference written from docs/cipher.md, and its properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ppfed.ciphers import keyed
from ppfed.ciphers.negative_positive import NegativePositiveCipher
from ppfed.ciphers.registry import cipher_names, make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import UsageError, WrongKeyError
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from .reference import fixed_nonce, hkdf, keystream

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "vectors" / "np-v1.json").read_text())

specs = st.builds(CipherSpec, scope=st.sampled_from(Scope), colour_shuffle=st.booleans())
keys = st.binary(min_size=32, max_size=32).map(MasterKey)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3]))
batches = shapes.flatmap(lambda shape: arrays(np.uint8, shape)).map(PlainImages)


def reference(secret: bytes, spec: CipherSpec, image: UInt8Array, image_id: bytes) -> UInt8Array:
    """Encrypt one image value by value, as docs/cipher.md words it."""
    height, width, channels = image.shape
    nonce = fixed_nonce(image.shape) if spec.scope is Scope.FIXED else image_id
    values = [int(value) for value in image.reshape(-1)]
    mask = keystream(hkdf(secret, f"ppfed/v1/np/{spec.scope}/mask"), nonce, len(values) // 8 + 1)
    values = [255 - v if mask[i // 8] >> (i % 8) & 1 else v for i, v in enumerate(values)]
    if spec.colour_shuffle and channels == 3:
        words = keystream(hkdf(secret, f"ppfed/v1/np/{spec.scope}/shuffle"), nonce, 4 * height * width)
        for pixel in range(height * width):
            word = int.from_bytes(words[4 * pixel : 4 * pixel + 4], "little")
            order = ["RGB", "RBG", "GRB", "GBR", "BRG", "BGR"][(word * 6) >> 32]
            old = dict(zip("RGB", values[3 * pixel : 3 * pixel + 3], strict=True))
            values[3 * pixel : 3 * pixel + 3] = [old[colour] for colour in order]
    return np.array(values, dtype=np.uint8).reshape(image.shape)


def one(vector: dict[str, Any], field: str) -> UInt8Array:
    return np.frombuffer(bytes.fromhex(vector[field]), dtype=np.uint8).reshape(1, *vector["shape"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    key = MasterKey(bytes.fromhex(vector["key"]))
    assert key.fingerprint == vector["fingerprint"]
    scope = Scope.FIXED if vector["image_id"] is None else Scope.IMAGE
    cipher = NegativePositiveCipher(key, CipherSpec("np-v1", scope, vector["colour_shuffle"]))
    ids = np.frombuffer(bytes.fromhex(vector["image_id"] or "00" * ID_BYTES), dtype=np.uint8)[None]
    encrypted = cipher.encrypt(PlainImages(one(vector, "image")), ids)
    assert np.array_equal(encrypted.pixels, one(vector, "ciphertext"))
    assert np.array_equal(cipher.decrypt(encrypted).pixels, one(vector, "image"))


def test_the_vectors_cover_every_setting() -> None:
    covered = {(vector["image_id"] is None, vector["colour_shuffle"]) for vector in VECTORS}
    assert covered == {(fixed, shuffle) for fixed in (False, True) for shuffle in (False, True)}


@given(batches, specs, st.binary(min_size=32, max_size=32))
def test_equals_the_reference(images: PlainImages, spec: CipherSpec, secret: bytes) -> None:
    encrypted = NegativePositiveCipher(MasterKey(secret), spec).encrypt(images)
    for pixels, image_id, ciphertext in zip(images.pixels, encrypted.ids, encrypted.pixels, strict=True):
        assert np.array_equal(reference(secret, spec, pixels, image_id.tobytes()), ciphertext)


@given(batches, specs, keys)
def test_round_trip(images: PlainImages, spec: CipherSpec, key: MasterKey) -> None:
    cipher = make_cipher(spec, key)
    before = images.pixels.copy()
    encrypted = cipher.encrypt(images)
    assert encrypted.cipher == spec
    assert encrypted.fingerprint == key.fingerprint
    assert np.array_equal(cipher.decrypt(encrypted).pixels, before)
    assert np.array_equal(images.pixels, before)


def test_an_empty_batch_stays_empty() -> None:
    cipher = make_cipher(CipherSpec(), MasterKey(bytes(32)))
    encrypted = cipher.encrypt(PlainImages(np.zeros((0, 4, 5, 3), np.uint8)))
    assert cipher.decrypt(encrypted).pixels.shape == (0, 4, 5, 3)


@given(batches, specs, keys)
def test_a_batch_equals_its_images_one_by_one(images: PlainImages, spec: CipherSpec, key: MasterKey) -> None:
    cipher = make_cipher(spec, key)
    whole = cipher.encrypt(images)
    for row in range(len(images)):
        rows = slice(row, row + 1)
        single = cipher.encrypt(PlainImages(images.pixels[rows]), whole.ids[rows])
        assert np.array_equal(single.pixels, whole.pixels[rows])
        assert np.array_equal(cipher.decrypt(whole[rows]).pixels, images.pixels[rows])


@pytest.mark.parametrize("chunk_values", [1, 60, 61, 119, 120, 121])
@pytest.mark.parametrize("spec", [CipherSpec(scope=scope) for scope in Scope], ids=str)
def test_chunks_leave_no_trace(chunk_values: int, spec: CipherSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    images = PlainImages(np.random.default_rng(0).integers(0, 256, (5, 4, 5, 3), dtype=np.uint8))
    # With threads chunks are larger.
    monkeypatch.setattr(keyed, "cores", lambda: 1)
    cipher = make_cipher(spec, MasterKey(bytes(32)))
    whole = cipher.encrypt(images)
    monkeypatch.setattr(keyed, "_CHUNK_VALUES", chunk_values)
    assert np.array_equal(cipher.encrypt(images, whole.ids).pixels, whole.pixels)
    assert np.array_equal(cipher.decrypt(whole).pixels, images.pixels)


@pytest.mark.parametrize(
    "spec", [CipherSpec(scope=scope, colour_shuffle=on) for scope in Scope for on in (False, True)], ids=str
)
def test_threads_leave_no_trace(spec: CipherSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "_CHUNK_VALUES", 60)
    images = PlainImages(np.random.default_rng(0).integers(0, 256, (40, 4, 5, 3), dtype=np.uint8))
    alone = NegativePositiveCipher(MasterKey(bytes(32)), spec, threads=1)
    whole = alone.encrypt(images)
    several = NegativePositiveCipher(MasterKey(bytes(32)), spec, threads=4)
    assert np.array_equal(several.encrypt(images, whole.ids).pixels, whole.pixels)
    assert np.array_equal(several.decrypt(whole).pixels, images.pixels)


@given(batches, specs, keys)
def test_images_that_cannot_be_written_to_are_read(images: PlainImages, spec: CipherSpec, key: MasterKey) -> None:
    cipher = make_cipher(spec, key)
    encrypted = cipher.encrypt(images)
    for part in (images.pixels, encrypted.pixels, encrypted.ids):
        part.flags.writeable = False
    assert np.array_equal(cipher.encrypt(images, encrypted.ids).pixels, encrypted.pixels)
    assert np.array_equal(cipher.decrypt(encrypted).pixels, images.pixels)


@given(batches, st.sampled_from(Scope), keys)
def test_without_shuffle_each_value_is_itself_or_its_negative(
    images: PlainImages, scope: Scope, key: MasterKey
) -> None:
    encrypted = make_cipher(CipherSpec(scope=scope, colour_shuffle=False), key).encrypt(images)
    assert np.all((encrypted.pixels == images.pixels) | (encrypted.pixels == 255 - images.pixels))


@given(batches, specs, keys)
def test_each_pixel_keeps_its_folded_values(images: PlainImages, spec: CipherSpec, key: MasterKey) -> None:
    encrypted = make_cipher(spec, key).encrypt(images)
    folds = [np.sort(np.minimum(pixels, 255 - pixels), axis=3) for pixels in (images.pixels, encrypted.pixels)]
    assert np.array_equal(*folds)


@given(specs, keys)
def test_ids_are_fresh_each_time(spec: CipherSpec, key: MasterKey) -> None:
    cipher = make_cipher(spec, key)
    images = PlainImages(np.zeros((4, 2, 2, 3), np.uint8))
    ids = np.concatenate([cipher.encrypt(images).ids for _ in range(3)])
    assert len(np.unique(ids, axis=0)) == 12


def test_image_scope_masks_each_image_differently() -> None:
    images = PlainImages(np.zeros((6, 8, 8, 3), np.uint8))
    encrypted = make_cipher(CipherSpec(), MasterKey(bytes(32))).encrypt(images)
    assert len(np.unique(encrypted.pixels.reshape(6, -1), axis=0)) == 6


@given(batches, st.booleans(), keys)
@settings(max_examples=50)
def test_fixed_scope_masks_all_images_alike(images: PlainImages, shuffle: bool, key: MasterKey) -> None:
    cipher = make_cipher(CipherSpec(scope=Scope.FIXED, colour_shuffle=shuffle), key)
    alike = PlainImages(np.repeat(images.pixels[:1], 3, axis=0))
    encrypted = cipher.encrypt(alike)
    assert np.array_equal(encrypted.pixels, np.repeat(encrypted.pixels[:1], 3, axis=0))
    assert np.array_equal(cipher.encrypt(alike).pixels, encrypted.pixels)


def test_all_masks_and_permutations_occur_equally_often() -> None:
    cipher = NegativePositiveCipher(MasterKey(bytes(32)), CipherSpec())
    ids = np.arange(100 * ID_BYTES, dtype=np.uint32).astype(np.uint8).reshape(100, ID_BYTES)
    ids[:, 0] = np.arange(100)
    stream = cipher.stream(ids, (32, 32, 3))
    assert stream.permutation is not None
    # 307,200 fair bits: a deviation of 0.005 is 5.5 standard deviations; 102,400 sixths: 0.006 is 5.1 of them.
    assert abs((stream.mask == 255).mean() - 0.5) < 0.005
    shares = np.bincount(stream.permutation.reshape(-1), minlength=6) / stream.permutation.size
    assert np.abs(shares - 1 / 6).max() < 0.006


@given(batches, specs)
def test_another_key_is_refused_by_name(images: PlainImages, spec: CipherSpec) -> None:
    right, wrong = MasterKey(bytes(32)), MasterKey(bytes(31) + b"\x01")
    encrypted = make_cipher(spec, right).encrypt(images)
    with pytest.raises(WrongKeyError, match=f"(?s){right.fingerprint}.*{wrong.fingerprint}"):
        make_cipher(spec, wrong).decrypt(encrypted)


@pytest.mark.parametrize("other", [CipherSpec(scope=Scope.FIXED), CipherSpec(colour_shuffle=False)], ids=str)
def test_other_parameters_are_refused(other: CipherSpec) -> None:
    key = MasterKey(bytes(32))
    encrypted = make_cipher(CipherSpec(), key).encrypt(PlainImages(np.zeros((1, 2, 2, 3), np.uint8)))
    with pytest.raises(WrongKeyError):
        make_cipher(other, key).decrypt(encrypted)


def test_a_relabelled_ciphertext_does_not_decrypt() -> None:
    """The fingerprint is a label, not a proof: under another key the pixels stay noise."""
    right, wrong = MasterKey(bytes(32)), MasterKey(bytes(31) + b"\x01")
    images = PlainImages(np.zeros((1, 16, 16, 3), np.uint8))
    encrypted = make_cipher(CipherSpec(), right).encrypt(images)
    relabelled = EncryptedImages(encrypted.pixels, encrypted.ids, encrypted.cipher, wrong.fingerprint)
    assert not np.array_equal(make_cipher(CipherSpec(), wrong).decrypt(relabelled).pixels, images.pixels)


def test_the_registry_names_its_ciphers() -> None:
    assert "np-v1" in cipher_names()
    with pytest.raises(UsageError, match="np-v9"):
        make_cipher(CipherSpec("np-v9"), MasterKey(bytes(32)))
