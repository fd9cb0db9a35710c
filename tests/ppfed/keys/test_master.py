"""The master key: derivation against RFC 5869 written out by hand, and that it does not show itself."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import pickle
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfed.keys.master import KEY_BYTES, MasterKey

secrets = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
labels = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


def hkdf_sha256(secret: bytes, info: bytes, length: int) -> bytes:
    pseudorandom_key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    output, block = b"", b""
    for counter in range(1, 1 + -(-length // 32)):
        block = hmac.new(pseudorandom_key, block + info + bytes([counter]), hashlib.sha256).digest()
        output += block
    return output[:length]


@given(secrets, labels, st.integers(1, 200))
def test_sub_keys_are_hkdf_sha256_without_salt(secret: bytes, label: str, length: int) -> None:
    assert MasterKey(secret).derive(label, length) == hkdf_sha256(secret, label.encode(), length)


@given(secrets)
def test_fingerprint_is_eight_derived_bytes_in_hex(secret: bytes) -> None:
    assert MasterKey(secret).fingerprint == hkdf_sha256(secret, b"ppfed/v1/fingerprint", 8).hex()


@given(secrets, labels, labels)
def test_labels_separate_sub_keys(secret: bytes, first: str, second: str) -> None:
    key = MasterKey(secret)
    assert (key.derive(first) == key.derive(second)) == (first == second)


@given(secrets)
def test_repr_and_str_hide_the_secret(secret: bytes) -> None:
    key = MasterKey(secret)
    for shown in (repr(key), str(key), f"{key}"):
        assert shown == f"MasterKey(fingerprint={key.fingerprint})"
        assert secret.hex() not in shown
        assert base64.urlsafe_b64encode(secret).decode().rstrip("=") not in shown


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cannot_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(MasterKey.generate(), protocol)


def test_cannot_be_copied() -> None:
    with pytest.raises(TypeError):
        copy.deepcopy(MasterKey.generate())


def test_has_no_dict_to_dump() -> None:
    with pytest.raises(TypeError):
        vars(MasterKey.generate())


@given(st.binary(max_size=100).filter(lambda secret: len(secret) != KEY_BYTES))
def test_wrong_length_is_refused_without_showing_it(secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a master key is 32 bytes long$"):
        MasterKey(secret)


def test_generated_keys_differ_and_use_the_given_source() -> None:
    assert MasterKey.generate().reveal() != MasterKey.generate().reveal()
    assert MasterKey.generate(lambda count: b"\x07" * count).reveal() == b"\x07" * 32


def test_a_process_that_holds_a_key_leaves_no_core_dump() -> None:
    """Where it crashes, the system writes all of its memory to the disk if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        MasterKey(bytes(KEY_BYTES))
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
