"""The rivals' ciphers against their vectors, the slow reference, and what each is published to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ppfed.ciphers import keyed, logistic_rc4
from ppfed.ciphers.keystream import Keystream, random_order
from ppfed.ciphers.learnable import ExtendedLearnableCipher, LearnableCipher
from ppfed.ciphers.logistic_rc4 import initial_values, logistic_orbits, rc4_keystreams
from ppfed.ciphers.registry import cipher_info, cipher_names, make_cipher
from ppfed.ciphers.shuffling import from_blocks, to_blocks
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import UsageError, WrongKeyError
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from . import reference

VECTORS_FILE = Path(__file__).parents[2] / "vectors" / "rivals-v1.json"
VECTORS: list[dict[str, Any]] = json.loads(VECTORS_FILE.read_text())

RIVALS = tuple(name for name in cipher_names() if name != "np-v1")
SPECS = tuple(cipher_info(name).spec(scope) for name in RIVALS for scope in Scope)
KEY = MasterKey(bytes(range(32)))

specs = st.sampled_from(SPECS)
secrets = st.binary(min_size=32, max_size=32)


def batches(spec: CipherSpec, most: int = 3) -> st.SearchStrategy[PlainImages]:
    step = cipher_info(spec.name).sides_px
    side = st.integers(1, 3 if step > 1 else 9).map(lambda number: step * number)
    shapes = st.tuples(st.integers(1, most), side, side, st.sampled_from([1, 3]))
    return shapes.flatmap(lambda shape: arrays(np.uint8, shape)).map(PlainImages)


cases = specs.flatmap(lambda spec: st.tuples(st.just(spec), batches(spec)))


def noise(*shape: int, seed: int = 0) -> PlainImages:
    return PlainImages(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def nibbles(blocks: UInt8Array) -> UInt8Array:
    """Take 4-bit values out of blocks, (..., V) to (..., 2 V)."""
    return np.concatenate([blocks & 15, blocks >> 4], axis=-1)


def folded(nibble: UInt8Array) -> UInt8Array:
    return np.minimum(nibble, 15 - nibble)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    key = MasterKey(bytes.fromhex(vector["key"]))
    assert key.fingerprint == vector["fingerprint"]
    plain, expected = (
        np.frombuffer(bytes.fromhex(vector[field]), dtype=np.uint8).reshape(1, *vector["shape"])
        for field in ("image", "ciphertext")
    )
    scope = Scope.FIXED if vector["image_id"] is None else Scope.IMAGE
    cipher = make_cipher(CipherSpec(vector["cipher"], scope, colour_shuffle=False), key)
    ids = np.frombuffer(bytes.fromhex(vector["image_id"] or "00" * ID_BYTES), dtype=np.uint8)[None]
    encrypted = cipher.encrypt(PlainImages(plain), ids)
    assert np.array_equal(encrypted.pixels, expected)
    assert np.array_equal(cipher.decrypt(encrypted).pixels, plain)


def test_the_vectors_are_the_references_and_cover_every_setting() -> None:
    # Compared as text: JSON is what another implementation reads.
    assert json.loads(json.dumps(reference.vectors())) == VECTORS
    covered = {(vector["cipher"], vector["image_id"] is None, vector["shape"][2]) for vector in VECTORS}
    assert covered == {(name, fixed, channels) for name in RIVALS for fixed in (False, True) for channels in (1, 3)}


@given(cases, secrets)
def test_equals_the_reference(case: tuple[CipherSpec, PlainImages], secret: bytes) -> None:
    spec, images = case
    encrypted = make_cipher(spec, MasterKey(secret)).encrypt(images)
    for pixels, drawn, ciphertext in zip(images.pixels, encrypted.ids, encrypted.pixels, strict=True):
        image_id = None if spec.scope is Scope.FIXED else drawn.tobytes()
        expected = reference.encrypt(spec.name, secret, image_id, images.shape, pixels.tobytes())
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
    cipher = make_cipher(spec, KEY)
    whole = cipher.encrypt(images)
    monkeypatch.setattr(keyed, "_CHUNK_VALUES", chunk_values)
    assert np.array_equal(cipher.encrypt(images, whole.ids).pixels, whole.pixels)
    assert np.array_equal(cipher.decrypt(whole).pixels, images.pixels)
    assert np.array_equal(cipher.decrypt(whole[1:3]).pixels, images.pixels[1:3])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RIVALS)
def test_scopes(name: str, channels: int) -> None:
    images = PlainImages(np.repeat(noise(1, 16, 16, channels).pixels, 4, axis=0))
    fixed = make_cipher(cipher_info(name).spec(Scope.FIXED), KEY)
    alike = fixed.encrypt(images)
    assert len(np.unique(alike.pixels.reshape(4, -1), axis=0)) == 1
    assert np.array_equal(fixed.encrypt(images).pixels, alike.pixels)
    fresh = make_cipher(cipher_info(name).spec(Scope.IMAGE), KEY).encrypt(images)
    assert len(np.unique(fresh.pixels.reshape(4, -1), axis=0)) == 4
    for encrypted in (alike, fresh):
        # Most values change: a value keeps its own by chance, 1 in 256, or by staying where and as it is.
        assert (encrypted.pixels == images.pixels).mean() < 0.1


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
    assert len(labels) == 2 * (2 + 2 + 4 + 2 + 3) == len(set(labels))


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


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_have_no_colour_shuffle(name: str) -> None:
    info = cipher_info(name)
    assert info.spec() == CipherSpec(name, Scope.IMAGE, colour_shuffle=False)
    assert "shuffle" not in str(info.spec())
    for refused in (lambda: info.spec(colour_shuffle=True), lambda: make_cipher(CipherSpec(name), KEY)):
        with pytest.raises(UsageError, match=f"{name} has no colour shuffle"):
            refused()


def test_the_catalogue() -> None:
    assert cipher_names() == ("np-v1", "le-v1", "etc-v1", "logistic-rc4-v1", "ele-v1")
    assert cipher_info("np-v1").spec() == CipherSpec()
    assert not cipher_info("np-v1").spec(colour_shuffle=False).colour_shuffle
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


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "logistic-rc4-v1"])
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


# LE


@given(batches(SPECS[0]), st.sampled_from(Scope), secrets)
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


def test_no_warning_is_printed() -> None:
    code = "import ppfed.ciphers.registry as r; from ppfed.keys.master import MasterKey; import numpy as np; "
    code += "from ppfed.images.types import PlainImages; key = MasterKey(bytes(32)); "
    code += "[r.make_cipher(r.cipher_info(n).spec(), key).encrypt(PlainImages(np.zeros((1, 4, 4, 3), np.uint8))) "
    code += "for n in r.cipher_names()]"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""


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


@given(batches(SPECS[-1]), st.sampled_from(Scope), secrets)
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


def test_importing_the_catalogue_loads_no_key_module() -> None:
    code = "import sys, ppfed.ciphers.spec; sys.exit(any(name.startswith('ppfed.keys') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
