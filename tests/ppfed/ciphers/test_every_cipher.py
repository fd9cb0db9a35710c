"""What every cipher but NP must do, which has a file of its own: vectors, the slow reference, and the common rules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ppfed.ciphers import keyed
from ppfed.ciphers.keystream import Keystream, random_order
from ppfed.ciphers.learnable import LearnableCipher
from ppfed.ciphers.registry import cipher_info, cipher_names, make_cipher
from ppfed.ciphers.shuffling import from_blocks, to_blocks
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import UsageError, WrongKeyError
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from . import reference
from .cases import KEY, batches, noise, secrets

FILES: dict[str, list[dict[str, Any]]] = {
    name: json.loads((Path(__file__).parents[2] / "vectors" / f"{name}.json").read_text()) for name in reference.FILES
}
VECTORS = [vector for vectors in FILES.values() for vector in vectors]

NAMES = tuple(name for name in cipher_names() if name != "np-v1")
SPECS = tuple(
    cipher_info(name).spec(scope, colour_shuffle=shuffle)
    for name in NAMES
    for scope in Scope
    for shuffle in sorted({False, cipher_info(name).colour_shuffle})
)

specs = st.sampled_from(SPECS)
cases = specs.flatmap(lambda spec: st.tuples(st.just(spec), batches(spec.name)))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    key = MasterKey(bytes.fromhex(vector["key"]))
    assert key.fingerprint == vector["fingerprint"]
    plain, expected = (
        np.frombuffer(bytes.fromhex(vector[field]), dtype=np.uint8).reshape(1, *vector["shape"])
        for field in ("image", "ciphertext")
    )
    scope = Scope.FIXED if vector["image_id"] is None else Scope.IMAGE
    cipher = make_cipher(CipherSpec(vector["cipher"], scope, vector.get("colour_shuffle", False)), key)
    ids = np.frombuffer(bytes.fromhex(vector["image_id"] or "00" * ID_BYTES), dtype=np.uint8)[None]
    encrypted = cipher.encrypt(PlainImages(plain), ids)
    assert np.array_equal(encrypted.pixels, expected)
    assert np.array_equal(cipher.decrypt(encrypted).pixels, plain)


@pytest.mark.parametrize("file", FILES)
def test_the_vectors_are_the_references(file: str) -> None:
    # Compared as text: JSON is what another implementation reads.
    assert json.loads(json.dumps(reference.vectors(file))) == FILES[file]


def test_the_vectors_cover_every_setting() -> None:
    covered = {(vector["cipher"], vector["image_id"] is None, vector["shape"][2]) for vector in VECTORS}
    assert covered == {(name, fixed, channels) for name in NAMES for fixed in (False, True) for channels in (1, 3)}
    shuffled = {
        (vector["cipher"], vector["image_id"] is None, vector.get("colour_shuffle", False)) for vector in VECTORS
    }
    assert shuffled == {(spec.name, spec.scope is Scope.FIXED, spec.colour_shuffle) for spec in SPECS}


@given(cases, secrets)
def test_equals_the_reference(case: tuple[CipherSpec, PlainImages], secret: bytes) -> None:
    spec, images = case
    encrypted = make_cipher(spec, MasterKey(secret)).encrypt(images)
    for pixels, drawn, ciphertext in zip(images.pixels, encrypted.ids, encrypted.pixels, strict=True):
        image_id = None if spec.scope is Scope.FIXED else drawn.tobytes()
        expected = reference.encrypt(
            spec.name, secret, image_id, images.shape, pixels.tobytes(), colour_shuffle=spec.colour_shuffle
        )
        assert ciphertext.tobytes() == expected


@given(cases, secrets)
def test_round_trip(case: tuple[CipherSpec, PlainImages], secret: bytes) -> None:
    spec, images = case
    cipher = make_cipher(spec, MasterKey(secret))
    before = images.pixels.copy()
    encrypted = cipher.encrypt(images)
    assert (encrypted.cipher, encrypted.fingerprint) == (spec, cipher.fingerprint)
    assert np.array_equal(cipher.decrypt(encrypted).pixels, before)
    assert np.array_equal(images.pixels, before)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_empty_batch_stays_empty(spec: CipherSpec) -> None:
    cipher = make_cipher(spec, KEY)
    encrypted = cipher.encrypt(PlainImages(np.zeros((0, 4, 8, 3), np.uint8)))
    assert cipher.decrypt(encrypted).pixels.shape == (0, 4, 8, 3)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("chunk_values", [1, 95, 96, 97, 288])
def test_chunks_and_batches_leave_no_trace(
    spec: CipherSpec, chunk_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(5, 4, 8, 3)
    # With threads chunks are larger.
    monkeypatch.setattr(keyed, "cores", lambda: 1)
    cipher = make_cipher(spec, KEY)
    whole = cipher.encrypt(images)
    monkeypatch.setattr(keyed, "_CHUNK_VALUES", chunk_values)
    assert np.array_equal(cipher.encrypt(images, whole.ids).pixels, whole.pixels)
    assert np.array_equal(cipher.decrypt(whole).pixels, images.pixels)
    assert np.array_equal(cipher.decrypt(whole[1:3]).pixels, images.pixels[1:3])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_scopes(name: str, channels: int) -> None:
    images = PlainImages(np.repeat(noise(1, 16, 16, channels).pixels, 4, axis=0))
    fixed = make_cipher(cipher_info(name).spec(Scope.FIXED), KEY)
    alike = fixed.encrypt(images)
    assert len(np.unique(alike.pixels.reshape(4, -1), axis=0)) == 1
    assert np.array_equal(fixed.encrypt(images).pixels, alike.pixels)
    fresh = make_cipher(cipher_info(name).spec(Scope.IMAGE), KEY).encrypt(images)
    assert len(np.unique(fresh.pixels.reshape(4, -1), axis=0)) == 4
    for encrypted in (alike, fresh):
        # Most values change: a value keeps its own by chance, 1 in 256, or by staying where and as it is. NP twice
        # leaves a quarter of the values as they are, if it does not move them.
        assert (encrypted.pixels == images.pixels).mean() < 0.1 + 0.25 * (name == "np2-v1")


def test_ciphers_scopes_and_uses_share_no_keystream(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    derive = MasterKey.derive

    def noted(self: MasterKey, label: str, length: int = 32) -> bytes:
        labels.append(label)
        return derive(self, label, length)

    key = MasterKey(bytes(32))
    monkeypatch.setattr(MasterKey, "derive", noted)
    for name in cipher_names():
        for scope in Scope:
            make_cipher(cipher_info(name).spec(scope), key)
    assert len(labels) == 2 * (2 + 2 + 4 + 2 + 3 + 2 + 3) == len(set(labels))


@given(cases)
def test_another_key_is_refused_by_name(case: tuple[CipherSpec, PlainImages]) -> None:
    spec, images = case
    wrong = MasterKey(bytes(32))
    encrypted = make_cipher(spec, KEY).encrypt(images)
    with pytest.raises(WrongKeyError, match=f"(?s){KEY.fingerprint}.*{wrong.fingerprint}"):
        make_cipher(spec, wrong).decrypt(encrypted)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_relabelled_ciphertext_does_not_decrypt(spec: CipherSpec) -> None:
    """The fingerprint is a label, not a proof: under another key the pixels stay scrambled."""
    images, wrong = noise(1, 16, 16, 3), MasterKey(bytes(32))
    encrypted = make_cipher(spec, KEY).encrypt(images)
    relabelled = EncryptedImages(encrypted.pixels, encrypted.ids, spec, wrong.fingerprint)
    assert not np.array_equal(make_cipher(spec, wrong).decrypt(relabelled).pixels, images.pixels)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_other_parameters_are_refused(spec: CipherSpec) -> None:
    encrypted = make_cipher(spec, KEY).encrypt(noise(1, 4, 4, 3))
    for other in {*SPECS, CipherSpec()} - {spec}:
        with pytest.raises(WrongKeyError):
            make_cipher(other, KEY).decrypt(encrypted)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "np2-v1"])
def test_only_np_has_a_colour_shuffle(name: str) -> None:
    info = cipher_info(name)
    assert info.spec() == CipherSpec(name, Scope.IMAGE, colour_shuffle=False)
    assert "shuffle" not in str(info.spec())
    for refused in (lambda: info.spec(colour_shuffle=True), lambda: make_cipher(CipherSpec(name), KEY)):
        with pytest.raises(UsageError, match=f"{name} has no colour shuffle"):
            refused()


def test_the_catalogue() -> None:
    rivals = ("le-v1", "etc-v1", "logistic-rc4-v1", "ele-v1")
    assert cipher_names() == ("np-v1", *rivals, "block-pixel-v1", "np2-v1")
    assert cipher_info("np-v1").spec() == CipherSpec()
    for name in ("np-v1", "np2-v1"):
        assert cipher_info(name).spec().colour_shuffle
        assert not cipher_info(name).spec(colour_shuffle=False).colour_shuffle
    for name in cipher_names():
        info = cipher_info(name)
        assert info.name == name == make_cipher(info.spec(), KEY).spec.name
        assert info.title
        assert info.source
        assert info.leaves
    with pytest.raises(UsageError, match="'le-v9'") as caught:
        cipher_info("le-v9")
    assert all(name in caught.value.hint for name in cipher_names())
    with pytest.raises(ValueError, match="le-v1"):
        LearnableCipher(KEY, CipherSpec())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("logistic-rc4-v1", "np2-v1")])
@pytest.mark.parametrize("shape", [(1, 6, 8, 3), (0, 8, 6, 3), (2, 1, 1, 1)], ids=str)
def test_sides_that_blocks_do_not_fill_are_refused(name: str, shape: tuple[int, int, int, int]) -> None:
    cipher = make_cipher(cipher_info(name).spec(), KEY)
    with pytest.raises(UsageError, match=f"{shape[1]}x{shape[2]}") as caught:
        cipher.encrypt(PlainImages(np.zeros(shape, np.uint8)))
    assert "multiples of 4" in caught.value.hint
    ids = np.zeros((shape[0], ID_BYTES), np.uint8)
    with pytest.raises(UsageError):
        cipher.decrypt(EncryptedImages(np.zeros(shape, np.uint8), ids, cipher.spec, KEY.fingerprint))


@given(arrays(np.uint8, st.tuples(st.integers(0, 3), st.just(8), st.just(12), st.sampled_from([1, 3]))))
def test_blocks_are_where_they_belong(pixels: UInt8Array) -> None:
    blocks = to_blocks(pixels)
    assert np.array_equal(from_blocks(blocks, pixels.shape), pixels)
    assert np.array_equal(blocks[:, 4].reshape(-1, 4, 4, pixels.shape[3]), pixels[:, 4:8, 4:8])


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_a_random_order_is_the_sorted_order(count: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**64, (3, count), dtype=np.uint64)
    order = random_order(words)
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(count), (3, 1)))
    # 400 words of 64 bits are all different in their upper 55, but for a chance of 2^-38.
    assert np.array_equal(order, np.argsort(words, axis=1))


def test_equal_words_keep_their_order() -> None:
    assert random_order(np.zeros((2, 100), np.uint64)).tolist() == [list(range(100))] * 2


def test_drawn_orders_are_uniform() -> None:
    nonces = np.arange(6000 * 3, dtype=np.uint32).view(np.uint8).reshape(6000, ID_BYTES)
    counts = Counter(map(tuple, random_order(Keystream(bytes(32)).words(nonces, 3)).tolist()))
    # A share of 1/6 of n draws has a standard deviation of 0.373 / sqrt(n); five of them.
    assert len(counts) == 6
    assert max(abs(count / len(nonces) - 1 / 6) for count in counts.values()) < 5 * 0.373 / len(nonces) ** 0.5


def test_numbers_below_a_bound_are_uniform() -> None:
    drawn = Keystream(bytes(32)).below(np.zeros((1, ID_BYTES), np.uint8), 60_000, 6)
    # Standard deviation of a share 0.0015.
    assert np.abs(np.bincount(drawn[0], minlength=6) / 60_000 - 1 / 6).max() < 0.0075


def test_no_warning_is_printed() -> None:
    code = "import ppfed.ciphers.registry as r; from ppfed.keys.master import MasterKey; import numpy as np; "
    code += "from ppfed.images.types import PlainImages; key = MasterKey(bytes(32)); "
    code += "[r.make_cipher(r.cipher_info(n).spec(), key).encrypt(PlainImages(np.zeros((1, 4, 4, 3), np.uint8))) "
    code += "for n in r.cipher_names()]"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_importing_the_catalogue_loads_no_key_module() -> None:
    code = "import sys, ppfed.ciphers.spec; sys.exit(any(name.startswith('ppfed.keys') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
