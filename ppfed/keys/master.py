"""The master key and the keys derived from it (docs/cipher.md)."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_FINGERPRINT_BYTES = 8


def _leave_no_core_dump() -> None:
    """Have the system write no memory of this process to a disk where it crashes: it holds a key now."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


class MasterKey:
    """The secret that all owners of a federation share.

    Its ``repr`` shows the fingerprint only; it cannot be pickled.

    Parameters
    ----------
    secret : bytes
        32 bytes from the operating system's CSPRNG.

    Raises
    ------
    ValueError
        If ``secret`` is not 32 bytes long.
    """

    __slots__ = ("_secret", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a master key is {KEY_BYTES} bytes long")
        _leave_no_core_dump()
        self._secret = bytes(secret)
        self.fingerprint = self.derive("ppfed/v1/fingerprint", _FINGERPRINT_BYTES).hex()

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes] = os.urandom) -> MasterKey:
        """Draw a new key from the operating system's CSPRNG."""
        return cls(random_bytes(KEY_BYTES))

    def derive(self, label: str, length: int = KEY_BYTES) -> bytes:
        """Derive a sub-key: HKDF-SHA256 (RFC 5869) without salt, ``info`` the ASCII label.

        Parameters
        ----------
        label : str
            ASCII, versioned: ``ppfed/v1/np/image/mask``.
        length : int
            Length of the sub-key in bytes.
        """
        return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=label.encode("ascii")).derive(
            self._secret
        )

    def reveal(self) -> bytes:
        """Return the 32 secret bytes. Only the writer of key files has a use for them."""
        return self._secret

    def __repr__(self) -> str:
        return f"MasterKey(fingerprint={self.fingerprint})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a master key is never pickled")
