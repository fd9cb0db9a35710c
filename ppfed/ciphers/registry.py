"""How to make a cipher from a key and its public parameters. Which ciphers there are: ``ppfed.ciphers.spec``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ppfed.ciphers.block_pixel import BlockPixelCipher
from ppfed.ciphers.etc import EtCCipher
from ppfed.ciphers.learnable import ExtendedLearnableCipher, LearnableCipher
from ppfed.ciphers.logistic_rc4 import LogisticRC4Cipher
from ppfed.ciphers.negative_positive import NegativePositiveCipher, NegativePositiveTwiceCipher
from ppfed.ciphers.spec import CipherSpec, cipher_info, cipher_names
from ppfed.images.types import EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

__all__ = ["Cipher", "CipherFactory", "cipher_info", "cipher_names", "make_cipher"]


class Cipher(Protocol):
    """What every cipher offers."""

    @property
    def spec(self) -> CipherSpec:
        """Its public parameters."""

    @property
    def fingerprint(self) -> str:
        """The public name of its key."""

    def encrypt(self, images: PlainImages, ids: UInt8Array | None = None) -> EncryptedImages:
        """Encrypt a batch. ``ids`` are drawn fresh unless given; give them only to reproduce a known ciphertext.

        Raises
        ------
        UsageError
            If the cipher cannot encrypt images of this shape.
        """

    def decrypt(self, images: EncryptedImages) -> PlainImages:
        """Restore a batch bit for bit.

        Raises
        ------
        WrongKeyError
            If the batch was encrypted with another key or other parameters.
        """


CipherFactory = Callable[[MasterKey, CipherSpec], Cipher]

_FACTORIES: dict[str, CipherFactory] = {
    cipher.name: cipher
    for cipher in (
        NegativePositiveCipher,
        LearnableCipher,
        EtCCipher,
        LogisticRC4Cipher,
        ExtendedLearnableCipher,
        BlockPixelCipher,
        NegativePositiveTwiceCipher,
    )
}


def make_cipher(spec: CipherSpec, key: MasterKey) -> Cipher:
    """Make the cipher that ``spec`` names.

    Raises
    ------
    UsageError
        If there is no cipher of that name, or it does not have the options that ``spec`` asks for.
    """
    return _FACTORIES[cipher_info(spec.name).name](key, spec)
