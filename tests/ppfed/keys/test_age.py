"""Sealing with age: round trips, refusals, and agreement with the standard ``age`` program."""

from __future__ import annotations

import base64
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfed.errors import KeyFileError, KeyFileFormatError, PassphraseError, UsageError
from ppfed.keys.age import identity_text, is_sealed, new_identity, open_sealed, recipients_in, seal
from ppfed.keys.files import key_text, read_key_text
from ppfed.keys.master import KEY_BYTES, MasterKey

BEGIN, END = "-----BEGIN AGE ENCRYPTED FILE-----", "-----END AGE ENCRYPTED FILE-----"
needs_age = pytest.mark.skipif(
    shutil.which("age") is None, reason="the age program is not installed (Debian package: age)"
)
keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(MasterKey)
SECRET, RECIPIENT = new_identity()


def ssh_pair(kind: str) -> tuple[str, str]:
    private: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if kind == "ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
    elif kind == "rsa":
        private = rsa.generate_private_key(65537, 2048)
    else:
        private = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.NoEncryption()
    text = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption)
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return text.decode(), public.decode()


@settings(deadline=None)
@given(keys, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_sealed_key_opens(key: MasterKey, newline: str, binary: bool) -> None:
    sealed = seal(key_text(key), [RECIPIENT])
    data = dearmored(sealed) if binary else sealed.replace(b"\n", newline.encode())
    assert is_sealed(data)
    opened = open_sealed(data, [SECRET])
    assert opened == key_text(key)
    assert read_key_text(opened, None).reveal() == key.reveal()


def dearmored(sealed: bytes) -> bytes:
    return base64.b64decode("".join(sealed.decode().splitlines()[1:-1]), validate=True)


def test_armor_is_as_age_defines_it() -> None:
    lines = seal(key_text(MasterKey.generate()), [RECIPIENT]).decode().split("\n")
    assert lines[0] == BEGIN
    assert lines[-2:] == [END, ""]
    assert all(len(line) == 64 for line in lines[1:-3])
    assert 0 < len(lines[-3]) <= 64


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_ssh_keys_are_recipients(kind: str) -> None:
    private, public = ssh_pair(kind)
    assert open_sealed(seal("text", [f"{public} bob@example.org"]), [private]) == "text"


def test_each_recipient_opens_and_a_stranger_does_not() -> None:
    pairs = [new_identity(), new_identity(), ssh_pair("ed25519")]
    sealed = seal("text", [recipient for _, recipient in pairs])
    for secret, _ in pairs:
        assert open_sealed(sealed, [secret]) == "text"
    for stranger in (new_identity()[0], ssh_pair("ed25519")[0]):
        with pytest.raises(PassphraseError) as caught:
            open_sealed(sealed, [stranger])
        assert stranger.strip() not in str(caught.value)
    assert open_sealed(sealed, [new_identity()[0], pairs[0][0]]) == "text"


@settings(deadline=None)
@given(st.integers(min_value=0), st.integers(0, 255), st.booleans())
def test_damage_and_a_wrong_identity_read_the_same(position: int, value: int, binary: bool) -> None:
    sealed = seal("text", [RECIPIENT])
    damaged = bytearray(dearmored(sealed) if binary else sealed)
    damaged[position % len(damaged)] = value
    with pytest.raises(PassphraseError) as wrong:
        open_sealed(sealed, [new_identity()[0]])
    try:
        assert open_sealed(bytes(damaged), [SECRET]) == "text"
    except PassphraseError as error:
        same = str(error) == str(wrong.value)
        assert same
    except KeyFileFormatError:
        assert not is_sealed(bytes(damaged))


@given(st.text(max_size=60).filter(lambda text: "SECRET-KEY" not in text.upper() and "PRIVATE KEY" not in text))
def test_bad_recipient_is_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        seal("text", [RECIPIENT, text])
    assert repr(text) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "recipient",
    [RECIPIENT[:-1], RECIPIENT + "q", "ssh-ed25519 AAAA", ssh_pair("ecdsa")[1]],
    ids=["cut", "long", "ssh", "ecdsa"],
)
def test_almost_a_recipient_is_refused(recipient: str) -> None:
    with pytest.raises(UsageError, match="is not a recipient"):
        seal("text", [recipient])


def test_nobody_to_seal_for() -> None:
    with pytest.raises(UsageError):
        seal("text", [])


@pytest.mark.parametrize("secret", [SECRET, SECRET.lower(), ssh_pair("ed25519")[0]], ids=["age", "lower-case", "ssh"])
def test_secret_in_place_of_a_recipient_is_not_repeated(secret: str) -> None:
    for call in (lambda: seal("text", [secret]), lambda: recipients_in(secret, "a.txt")):
        with pytest.raises(UsageError, match="secret") as caught:
            call()
        assert all(line not in str(caught.value) for line in secret.splitlines())


def test_recipients_file() -> None:
    public = ssh_pair("ed25519")[1]
    assert recipients_in(f"# Bob\n{RECIPIENT}\r\n\n  {public} bob@host \n", "a.txt") == [
        RECIPIENT,
        f"{public} bob@host",
    ]
    with pytest.raises(UsageError, match=r"Line 2 of a\.txt") as caught:
        recipients_in(f"{RECIPIENT}\nprivate words\n", "a.txt")
    assert "private words" not in str(caught.value)
    with pytest.raises(UsageError, match="no recipient"):
        recipients_in("# nobody\n", "a.txt")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "hello",
        SECRET[:-1],
        RECIPIENT,
        ssh_pair("ecdsa")[0],
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
    ids=["empty", "comment", "prose", "cut", "recipient", "ecdsa", "pem"],
)
def test_unusable_identity(text: str) -> None:
    with pytest.raises(KeyFileFormatError, match="identity") as caught:
        open_sealed(seal("text", [RECIPIENT]), [text])
    assert not text or text.strip() not in str(caught.value)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", tmp_path / "id"], check=True, timeout=60
    )
    sealed = seal("text", [(tmp_path / "id.pub").read_text()])
    with pytest.raises(KeyFileFormatError) as caught:
        open_sealed(sealed, [(tmp_path / "id").read_text()])
    assert "without passphrase" in caught.value.hint


@given(st.binary(max_size=200).filter(lambda data: not is_sealed(data)))
def test_other_data_is_not_sealed(data: bytes) -> None:
    with pytest.raises(KeyFileFormatError, match="not sealed"):
        open_sealed(data, [SECRET])


@given(st.text(max_size=100))
def test_any_identity_text_is_used_or_refused(text: str) -> None:
    with pytest.raises(KeyFileError):
        open_sealed(seal("text", [RECIPIENT]), [text])


def test_sealed_bytes_that_are_no_text_are_no_key() -> None:
    sealed = pyrage.encrypt(b"\xff\x00PNG", [pyrage.x25519.Recipient.from_str(RECIPIENT)])
    with pytest.raises(KeyFileFormatError, match="not a ppfed key"):
        read_key_text(open_sealed(sealed, [SECRET]), None)


def test_identity_file_opens_what_was_sealed_for_it() -> None:
    text = identity_text(SECRET, RECIPIENT, datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC))
    assert text == f"# created: 2025-01-02T03:04:05+00:00\n# public key: {RECIPIENT}\n{SECRET}\n"
    assert open_sealed(seal("text", [RECIPIENT]), [text]) == "text"


@needs_age
@pytest.mark.parametrize("kind", ["x25519", "ed25519", "rsa"])
def test_age_opens_what_ppfed_sealed(tmp_path: Path, kind: str) -> None:
    secret, recipient = new_identity() if kind == "x25519" else ssh_pair(kind)
    key = MasterKey.generate()
    (tmp_path / "identity").write_text(
        identity_text(secret, recipient, datetime.now(tz=UTC)) if kind == "x25519" else secret
    )
    (tmp_path / "key.age").write_bytes(seal(key_text(key), [recipient]))
    opened = subprocess.run(
        ["age", "-d", "-i", tmp_path / "identity", tmp_path / "key.age"], capture_output=True, check=True, timeout=60
    )
    assert opened.stdout.decode() == key_text(key)


@needs_age
@pytest.mark.parametrize("options", [[], ["--armor"]])
def test_ppfed_opens_what_age_sealed(tmp_path: Path, options: list[str]) -> None:
    subprocess.run(["age-keygen", "-o", tmp_path / "identity"], capture_output=True, check=True, timeout=60)
    identity = (tmp_path / "identity").read_text()
    recipient = identity.partition("# public key: ")[2].split()[0]
    key = MasterKey.generate()
    sealed = subprocess.run(
        ["age", *options, "-r", recipient], input=key_text(key).encode(), capture_output=True, check=True, timeout=60
    )
    assert open_sealed(sealed.stdout, [identity]) == key_text(key)
