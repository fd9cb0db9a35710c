"""Sealing a key for another owner with age (https://age-encryption.org/v1), so that it can travel by e-mail.

What is sealed is the text of an unprotected key file: the standard ``age -d`` yields one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyrage

from ppfed.errors import KeyFileFormatError, PassphraseError, UsageError

_BINARY_START = b"age-encryption.org/"
_ARMOR_START = b"-----BEGIN AGE ENCRYPTED FILE-----"
_IDENTITY_START = "AGE-SECRET-KEY-"
_RECIPIENT_HINT = "A recipient is age1..., ssh-ed25519 ... or ssh-rsa ..., or @FILE with one a line."
_NOT_PUBLIC = "is a secret identity, not a recipient"
_PUBLIC_HINT = "Pass the public part, age1... or the .pub file, and keep the secret part to its owner."


def is_sealed(data: bytes) -> bool:
    """Whether these bytes begin an age file, binary or ASCII-armored."""
    return data.startswith(_BINARY_START) or data.lstrip().startswith(_ARMOR_START)


def new_identity() -> tuple[str, str]:
    """Make an X25519 identity: the secret ``AGE-SECRET-KEY-1...`` and the recipient ``age1...``."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def identity_text(secret: str, recipient: str, created: datetime) -> str:
    """Lay out an identity file as ``age-keygen`` does."""
    return f"# created: {created.isoformat(timespec='seconds')}\n# public key: {recipient}\n{secret}\n"


def recipients_in(text: str, source: str) -> list[str]:
    """Return the recipients in a file: one a line, besides empty lines and comments.

    Parameters
    ----------
    text : str
    source : str
        Names the file in error messages, which do not quote it.

    Raises
    ------
    UsageError
        If a line is not a recipient, or there is none.
    """
    if _holds_secret(text):
        raise UsageError(f"{source} {_NOT_PUBLIC}.", hint=_PUBLIC_HINT)
    recipients = []
    for number, line in enumerate(text.splitlines(), start=1):
        recipient = line.strip()
        if not recipient or recipient.startswith("#"):
            continue
        if _recipient(recipient) is None:
            raise UsageError(f"Line {number} of {source} is not a recipient.", hint=_RECIPIENT_HINT)
        recipients.append(recipient)
    if not recipients:
        raise UsageError(f"{source} names no recipient.", hint=_RECIPIENT_HINT)
    return recipients


def seal(key_text: str, recipients: Sequence[str]) -> bytes:
    """Encrypt the text of a key file so that each recipient can open it.

    Parameters
    ----------
    key_text : str
        As `ppfed.keys.files.key_text` makes it.
    recipients : sequence of str
        X25519 recipients ``age1...``, and public keys ``ssh-ed25519 ...`` and ``ssh-rsa ...``.

    Returns
    -------
    bytes
        An ASCII-armored age file.

    Raises
    ------
    UsageError
        If a recipient cannot be used, or there is none.
    """
    if not recipients:
        raise UsageError("There is nobody to seal the key for.", hint=_RECIPIENT_HINT)
    parsed = []
    for text in recipients:
        if _holds_secret(text):
            raise UsageError(f"What was given {_NOT_PUBLIC}.", hint=_PUBLIC_HINT)
        recipient = _recipient(text.strip())
        if recipient is None:
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            raise UsageError(f"{shown!r} is not a recipient that can be used.", hint=_RECIPIENT_HINT)
        parsed.append(recipient)
    sealed: bytes = pyrage.encrypt(key_text.encode(), parsed, armored=True)
    return sealed


def open_sealed(data: bytes, identity_texts: Sequence[str], source: str = "The sealed file") -> str:
    """Decrypt a sealed key.

    Parameters
    ----------
    data : bytes
        An age file, binary or ASCII-armored.
    identity_texts : sequence of str
        Contents of age identity files, or of OpenSSH private keys (ed25519, RSA) without a passphrase.
    source : str
        Names the age file in error messages.

    Returns
    -------
    str
        What was sealed; it still is to be parsed.

    Raises
    ------
    KeyFileFormatError
        If ``data`` is not an age file, or an identity cannot be used.
    PassphraseError
        If no identity opens it, or it is damaged.
    """
    if not is_sealed(data):
        raise KeyFileFormatError(
            f"{source} is not sealed with age.", hint="Name the file that `ppfed key seal` or `age` made."
        )
    identities = [identity for text in identity_texts for identity in _identities(text)]
    try:
        opened: bytes = pyrage.decrypt(data.strip() if data.lstrip().startswith(_ARMOR_START) else data, identities)
    except pyrage.DecryptError:
        raise PassphraseError(
            f"{source} does not open with this identity, or it is damaged.",
            hint="Check that it was sealed for the recipient that belongs to this identity.",
        ) from None
    # Bytes that are no UTF-8 cannot be a key file, which is for its parser to say.
    return opened.decode(errors="replace")


def _recipient(text: str) -> object | None:
    kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        parsed: object = kind.from_str(text)
    except pyrage.RecipientError:
        return None
    return parsed


def _identities(text: str) -> list[object]:
    try:
        if "PRIVATE KEY-----" in text:
            return [pyrage.ssh.Identity.from_buffer(text.encode())]
        lines = [line.strip() for line in text.splitlines()]
        identities: list[object] = [
            pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")
        ]
    except pyrage.IdentityError:
        identities = []
    if not identities:
        raise KeyFileFormatError(
            "The identity is neither an age identity file nor an OpenSSH private key that can be used.",
            hint="`ppfed key identity` makes an age identity. OpenSSH keys must be ed25519 or RSA, without passphrase.",
        )
    return identities


def _holds_secret(text: str) -> bool:
    return _IDENTITY_START in text.upper() or "PRIVATE KEY-----" in text
