"""Which ciphers there are, and how to make one from a key and its public parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ppfed.ciphers.negative_positive import NegativePositiveCipher
from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import UsageError
from ppfed.images.types import EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey


class Cipher(Protocol):
    """What every cipher offers."""

    @property
    def spec(self) -> CipherSpec:
        """Its public parameters."""

    @property
    def fingerprint(self) -> str:
        """The public name of its key."""

    def encrypt(self, images: PlainImages, ids: UInt8Array | None = None) -> EncryptedImages:
        """Encrypt a batch. ``ids`` are drawn fresh unless given; give them only to reproduce a known ciphertext."""

    def decrypt(self, images: EncryptedImages) -> PlainImages:
        """Restore a batch bit for bit.

        Raises
        ------
        WrongKeyError
            If the batch was encrypted with another key or other parameters.
        """


CipherFactory = Callable[[MasterKey, CipherSpec], Cipher]

_FACTORIES: dict[str, CipherFactory] = {"np-v1": NegativePositiveCipher}


def cipher_names() -> tuple[str, ...]:
    """Names of all registered ciphers."""
    return tuple(_FACTORIES)


def make_cipher(spec: CipherSpec, key: MasterKey) -> Cipher:
    """Make the cipher that ``spec`` names.

    Raises
    ------
    UsageError
        If no cipher of that name is registered.
    """
    try:
        factory = _FACTORIES[spec.name]
    except KeyError:
        raise UsageError(
            f"there is no cipher {spec.name!r}", hint=f"Choose one of: {', '.join(cipher_names())}."
        ) from None
    return factory(key, spec)
