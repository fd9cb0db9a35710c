"""Key files: text with the key in clear, or locked with a passphrase (docs/cipher.md, docs/keys.md).

A key file is made with O_EXCL and mode 0600 and is never overwritten. Reading one that others may read is an error, as
with SSH keys. Error messages name the file and never quote what stands in it.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ppfed.atomic import sync_folder
from ppfed.errors import (
    KeyFileError,
    KeyFileExistsError,
    KeyFileFormatError,
    KeyFilePermissionError,
    KeyFileTruncatedError,
    PassphraseError,
)
from ppfed.keys.age import is_sealed
from ppfed.keys.master import KEY_BYTES, MasterKey

MAX_FILE_BYTES = 64 * 1024
"""No key, passphrase or identity file is longer; nothing longer is read."""

_PLAIN_MARKER = "PPFED-SECRET-KEY-1"
_LOCKED_MARKER = "PPFED-LOCKED-KEY-1"
_SALT_BYTES = 16
_NONCE_BYTES = 12
_TAG_BYTES = 16
_FINGERPRINT_LINE = re.compile(r"# fingerprint: ([0-9a-f]{16})")
_LOCKED_VALUE = re.compile(
    r"scrypt\$([1-9][0-9]{0,9})\$([1-9][0-9]{0,9})\$([1-9][0-9]{0,9})" + r"\$([A-Za-z0-9_-]+)" * 3
)
# A line that only a key file has: what remains of a truncated one is told from a file of another kind by it.
_TRACE = re.compile(r"# fingerprint:|# ppfed secret key|PPFED-(SECRET|LOCKED)-KEY-")
_SECRET = re.compile(r"PPFED-(SECRET|LOCKED)-KEY-|AGE-SECRET-KEY-")
"""What no path holds; it is not repeated in messages."""
_BARE_SECRET = re.compile(r"(?=.*[A-Z])(?=.*[a-z])(?=.*[0-9])[A-Za-z0-9_+/-]{40,43}=?|[0-9A-Fa-f]{64}")
"""32 bytes as base64, of which a path keeps one of two slashes, or in hexadecimal."""
_BASE64_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?")
_HEX_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_LETTERS_OF_EITHER_CASE = 6
"""Of 43 random characters fewer are upper or lower case once in 10,000 times."""
_OTHER_VERSION = re.compile(r"PPFED-(SECRET|LOCKED)-KEY-[0-9]+ ")


class Protection(StrEnum):
    """What keeps the key in a file from whoever gets hold of the file."""

    NONE = "none (file permissions only)"
    LOCKED = "passphrase (scrypt, ChaCha20-Poly1305)"
    SEALED = "sealed with age"


@dataclass(frozen=True)
class KeyFileInfo:
    """What a key file tells without a passphrase or an identity.

    Attributes
    ----------
    fingerprint : str or None
        The key's public name, 16 hex digits; None for a sealed file, which does not tell it.
    protection : Protection
        What protects the file.
    """

    fingerprint: str | None
    protection: Protection


@dataclass(frozen=True)
class ScryptCost:
    """The work that one guess of a passphrase costs (RFC 7914); memory is about 128 * n * r bytes.

    Attributes
    ----------
    n : int
        A power of two, at most 2**20.
    r : int
        At most 16.
    p : int
        At most 4.

    Raises
    ------
    ValueError
        Beyond these bounds, which keep a hostile file from exhausting the machine.
    """

    n: int = 2**17
    r: int = 8
    p: int = 1

    def __post_init__(self) -> None:
        power_of_two = self.n >= 2 and self.n & (self.n - 1) == 0
        if not (power_of_two and self.n <= 2**20 and 1 <= self.r <= 16 and 1 <= self.p <= 4):
            raise ValueError("scrypt needs n a power of two up to 2**20, r up to 16, p up to 4")


DEFAULT_COST = ScryptCost()


def key_text(key: MasterKey) -> str:
    """Return the text of an unprotected key file: what a passphrase locks and age seals."""
    return (
        "# ppfed secret key: whoever holds it can decrypt the images of every owner\n"
        f"# fingerprint: {key.fingerprint}\n"
        f"{_PLAIN_MARKER} {_base64(key.reveal())}\n"
    )


def write_key_file(path: Path, key: MasterKey, passphrase: str | None, cost: ScryptCost = DEFAULT_COST) -> None:
    """Write a new key file, readable by its owner only.

    Parameters
    ----------
    path : Path
        Must not exist.
    key : MasterKey
    passphrase : str or None
        Locks the file; None leaves the key in clear.
    cost : ScryptCost
        The work that one guess of the passphrase costs.

    Raises
    ------
    KeyFileExistsError
        If ``path`` exists.
    KeyFileError
        If it cannot be written.
    PassphraseError
        If the passphrase is empty.
    """
    text = key_text(key) if passphrase is None else _locked_text(key, passphrase, cost)
    write_private_file(path, text.encode())


def read_key_file(path: str | Path, ask_passphrase: Callable[[], str] | None = None) -> MasterKey:
    """Read a key file.

    Parameters
    ----------
    path : str or Path
    ask_passphrase : callable or None
        Called at most once, and only for a file locked with a passphrase.

    Raises
    ------
    KeyFileError
        If the file is missing or cannot be read.
    KeyFilePermissionError
        If others on this machine may read it.
    KeyFileFormatError
        If it is not a key file, or is sealed with age.
    KeyFileTruncatedError
        If part of it is missing or damaged.
    PassphraseError
        If the passphrase is wrong or there is none.
    """
    path = Path(path)
    data, mode = _read(path, _MISSING_KEY_HINT)
    content = _parse(data, str(path))
    _require_private(path, mode)
    return _key(content, ask_passphrase, str(path))


def read_key_text(text: str, ask_passphrase: Callable[[], str] | None, source: str = "The key text") -> MasterKey:
    """Read the text of a key file that came from elsewhere than a file, such as standard input.

    Parameters
    ----------
    text : str
    ask_passphrase : callable or None
        Called at most once, and only for a text locked with a passphrase.
    source : str
        Names the text in error messages.

    Raises
    ------
    KeyFileFormatError, KeyFileTruncatedError, PassphraseError
        As `read_key_file`.
    """
    data = text.encode(errors="replace")
    if len(data) > MAX_FILE_BYTES:
        raise _too_long(source)
    return _key(_parse(data, source), ask_passphrase, source)


def inspect_key_file(path: Path) -> KeyFileInfo:
    """Tell what a key file shows without a passphrase or an identity.

    The fingerprint of a locked file is the one it states; unlocking the file verifies it.

    Raises
    ------
    KeyFileError, KeyFilePermissionError, KeyFileFormatError, KeyFileTruncatedError
        As `read_key_file`. A sealed file may be readable by others: it is made to be handed over.
    """
    data, mode = _read(path, _MISSING_KEY_HINT)
    if is_sealed(data):
        return KeyFileInfo(None, Protection.SEALED)
    content = _parse(data, str(path))
    _require_private(path, mode)
    if content.locked:
        _parse_locked(content, str(path))
        return KeyFileInfo(content.fingerprint, Protection.LOCKED)
    return KeyFileInfo(_key(content, None, str(path)).fingerprint, Protection.NONE)


def write_private_file(path: Path, data: bytes) -> None:
    """Write a new file, readable by its owner only, and force it to the disk.

    Raises
    ------
    KeyFileExistsError
        If ``path`` exists, be it a dangling link.
    KeyFileError
        If it cannot be written. Nothing of it is left then.
    """
    refuse_existing(path)
    try:
        # The flag, not the check above, is what guarantees that nothing is overwritten.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be created: {error.strerror}.", hint="Choose a path in a folder that exists and is yours."
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise KeyFileError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Free some space or choose another disk, then try again.",
        ) from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_private_file(path: Path) -> bytes:
    """Read a small file that holds a secret.

    Raises
    ------
    KeyFileError
        If it is missing or cannot be read.
    KeyFilePermissionError
        If others on this machine may read it.
    KeyFileFormatError
        If it is no regular file, or longer than 64 KiB.
    """
    data, mode = _read(path)
    _require_private(path, mode)
    return data


def read_public_file(path: Path) -> bytes:
    """Read a small file that others may read too, such as a sealed key or a list of recipients.

    Raises
    ------
    KeyFileError
        If it is missing or cannot be read.
    KeyFileFormatError
        If it is no regular file, or longer than 64 KiB.
    """
    return _read(path)[0]


def refuse_existing(path: Path) -> None:
    """Raise `KeyFileExistsError` if ``path`` exists, before anything is asked of the user in vain."""
    if os.path.lexists(path):
        raise _exists(path)


_MISSING_KEY_HINT = "Check the path. `ppfed key new` makes a key, `ppfed key open` unpacks one that was sealed for you."


SEEN_HINT = (
    "Name the file that holds the key. A key that was typed may stand in your shell's history now, and in logs: if "
    "others can read these, make a new one."
)


def holds_key(argument: str) -> bool:
    """Whether a command's argument is a key, or has one in it, and not the path of a file."""
    if _SECRET.search(argument):
        return True
    value = argument.partition("=")[2] if argument.startswith("--") else argument
    parts = {argument.strip(), Path(value).name.strip()}
    return any(map(_random, parts)) and not (value and Path(value).exists())


def _random(text: str) -> bool:
    """Whether a word looks like 32 random bytes: a name that somebody chose has hardly six letters of either case."""
    letters = re.sub("[^A-Za-z]", "", text)
    capitals = sum(letter.isupper() for letter in letters)
    mixed = min(capitals, len(letters) - capitals) >= _LETTERS_OF_EITHER_CASE
    return (mixed and _BASE64_KEY.fullmatch(text) is not None) or _HEX_KEY.fullmatch(text) is not None


@dataclass(frozen=True, repr=False)
class _Content:
    fingerprint: str
    locked: bool
    value: str


def _read(path: Path, missing_hint: str = "Check the path.") -> tuple[bytes, int]:
    """Return at most 64 KiB of a file, and its mode: both of the same open file, whatever happens to the path."""
    if _SECRET.search(str(path)):
        raise KeyFileError(
            "What was given as the path of a key file is a key itself.",
            hint=SEEN_HINT,
        )
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            # A pipe is what a shell's <(...) hands over.
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
                raise KeyFileFormatError(f"{path} is not a regular file.", hint="Check the path.")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        # A key without its marker; a file may be called so, and then it is read.
        if _BARE_SECRET.fullmatch(str(path).strip()):
            raise KeyFileError(
                "There is no such file, and what was given as its path has the form of a key, so it is not repeated.",
                hint=f"If it is no key, check the path. {SEEN_HINT}",
            ) from None
        raise KeyFileError(f"{path} does not exist.", hint=missing_hint) from None
    except IsADirectoryError:
        raise KeyFileFormatError(f"{path} is a folder, not a file.", hint="Name a file in it.") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}.", hint="Check the path and its owner.") from None
    if len(data) > MAX_FILE_BYTES:
        raise _too_long(str(path))
    return data, stat.S_IMODE(status.st_mode)


def _require_private(path: Path, mode: int) -> None:
    if mode & 0o077:
        raise KeyFilePermissionError(
            f"{path} can be used by others on this machine (mode {mode:04o}).",
            hint=f"Run: chmod 600 {shlex.quote(str(path))}",
        )


def _parse(data: bytes, source: str) -> _Content:
    """Find the fingerprint and the key line of a key file."""
    if is_sealed(data):
        raise KeyFileFormatError(
            f"{source} is sealed with age.",
            hint="Open it first: ppfed key open SEALED --identity IDENTITY --out KEY",
        )
    # Bytes that are no UTF-8 belong to another kind of file, or damage a line that is checked below.
    text = data.decode("utf-8-sig", errors="replace")
    lines = [line.rstrip() for line in text.split("\n")]
    if not any(_TRACE.match(line) for line in lines):
        raise KeyFileFormatError(
            f"{source} is not a ppfed key file.", hint="Name a file made by `ppfed key new` or `ppfed key open`."
        )
    body = [line for line in lines if line and not line.startswith("#")]
    if not body:
        raise _damaged(source, "the line with the key is missing")
    if len(body) > 1:
        raise _damaged(source, "it has more lines than a key file")
    marker, _, value = body[0].partition(" ")
    if marker not in (_PLAIN_MARKER, _LOCKED_MARKER):
        if _OTHER_VERSION.match(body[0]):
            raise KeyFileFormatError(
                f"{source} has a version of the key file that this ppfed does not know.", hint="Update ppfed."
            )
        raise _damaged(source, "the line with the key is damaged")
    stated = [line for line in lines if line.startswith("# fingerprint:")]
    match = _FINGERPRINT_LINE.fullmatch(stated[0]) if len(stated) == 1 else None
    if match is None:
        raise _damaged(source, "its fingerprint is missing or damaged")
    return _Content(match[1], marker == _LOCKED_MARKER, value)


def _key(content: _Content, ask_passphrase: Callable[[], str] | None, source: str) -> MasterKey:
    if content.locked:
        unlocked = _parse(_unlock(content, ask_passphrase, source), source)
        if unlocked.locked or unlocked.fingerprint != content.fingerprint:
            raise _damaged(source, "the key in it is not the one it states")
        content = unlocked
    secret = _unbase64(content.value)
    if secret is None or len(secret) != KEY_BYTES:
        raise _damaged(source, "the line with the key is incomplete or damaged")
    key = MasterKey(secret)
    if key.fingerprint != content.fingerprint:
        raise _damaged(source, "the key does not match its fingerprint")
    return key


def _locked_text(key: MasterKey, passphrase: str, cost: ScryptCost) -> str:
    if not passphrase:
        raise PassphraseError("An empty passphrase protects nothing.", hint="Choose one of several words.")
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    header = f"{_LOCKED_MARKER} scrypt${cost.n}${cost.r}${cost.p}${_base64(salt)}${_base64(nonce)}"
    cipher = ChaCha20Poly1305(_stretch(passphrase, salt, cost))
    ciphertext = cipher.encrypt(nonce, key_text(key).encode(), _associated_data(key.fingerprint, header))
    return (
        "# ppfed secret key, locked with a passphrase\n"
        f"# fingerprint: {key.fingerprint}\n"
        f"{header}${_base64(ciphertext)}\n"
    )


def _parse_locked(content: _Content, source: str) -> tuple[ScryptCost, bytes, bytes, bytes]:
    """Return cost, salt, nonce and ciphertext of a locked key."""
    match = _LOCKED_VALUE.fullmatch(content.value)
    if match is None:
        raise _damaged(source, "the line with the key is incomplete or damaged")
    salt, nonce, ciphertext = (_unbase64(part) for part in match.groups()[3:])
    if salt is None or nonce is None or ciphertext is None:
        raise _damaged(source, "the line with the key is incomplete or damaged")
    if len(salt) != _SALT_BYTES or len(nonce) != _NONCE_BYTES or len(ciphertext) <= _TAG_BYTES:
        raise _damaged(source, "the line with the key is incomplete or damaged")
    try:
        cost = ScryptCost(*map(int, match.groups()[:3]))
    except ValueError:
        raise KeyFileFormatError(
            f"{source} asks for scrypt parameters that ppfed refuses.", hint="Use another copy of the key file."
        ) from None
    return cost, salt, nonce, ciphertext


def _unlock(content: _Content, ask_passphrase: Callable[[], str] | None, source: str) -> bytes:
    cost, salt, nonce, ciphertext = _parse_locked(content, source)
    if ask_passphrase is None:
        raise PassphraseError(f"{source} is locked with a passphrase, and none was given.", hint="Give the passphrase.")
    cipher = ChaCha20Poly1305(_stretch(ask_passphrase(), salt, cost))
    header = f"{_LOCKED_MARKER} {content.value.rpartition('$')[0]}"
    with suppress(InvalidTag):
        return cipher.decrypt(nonce, ciphertext, _associated_data(content.fingerprint, header))
    raise PassphraseError(
        f"The passphrase is wrong, or {source} is damaged.",
        hint="Try again. If it keeps failing, use another copy of the key file.",
    )


def _associated_data(fingerprint: str, header: str) -> bytes:
    return f"# fingerprint: {fingerprint}\n{header}".encode()


def _stretch(passphrase: str, salt: bytes, cost: ScryptCost) -> bytes:
    # NFC, since systems differ in how they type an accented letter.
    secret = unicodedata.normalize("NFC", passphrase).encode(errors="surrogatepass")
    return Scrypt(salt=salt, length=KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(secret)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes | None:
    """Decode base64url without padding; None unless the text is exactly what `_base64` makes of some bytes."""
    if re.fullmatch(r"[A-Za-z0-9_-]*", text) is None or len(text) % 4 == 1:
        return None
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return data if _base64(data) == text else None


def _damaged(source: str, what: str) -> KeyFileTruncatedError:
    return KeyFileTruncatedError(
        f"{source} is a damaged key file: {what}.", hint="Use another copy, or ask another owner to seal you the key."
    )


def _exists(path: Path) -> KeyFileExistsError:
    return KeyFileExistsError(
        f"{path} exists already, and ppfed never overwrites such a file.",
        hint="Choose another path. Images encrypted with a key are lost without it, so never delete one in haste.",
    )


def _too_long(source: str) -> KeyFileFormatError:
    return KeyFileFormatError(f"{source} is longer than 64 KiB: it is not such a file.", hint="Check the path.")
