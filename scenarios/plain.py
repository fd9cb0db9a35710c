"""The control: images that are not encrypted at all.

It has the form of a cipher so that a control arm runs through the same code as every other, and it is in no registry:
no federation can be declared with it, and no owner would take part. Images of pixel block mixing pass through it too.
"""

from __future__ import annotations

import numpy as np

from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages, UInt8Array
from scenarios.declaration import PLAIN


class PlainControl:
    """Marks plain images as if they were encrypted.

    Parameters
    ----------
    fingerprint : str
        Of a key that is not used.
    """

    spec = CipherSpec(PLAIN, Scope.FIXED, colour_shuffle=False)

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def encrypt(self, images: PlainImages, ids: UInt8Array | None = None) -> EncryptedImages:
        """Return the same pixels."""
        if ids is None:
            ids = np.zeros((len(images), ID_BYTES), dtype=np.uint8)
        return EncryptedImages(images.pixels, ids, self.spec, self.fingerprint)

    def decrypt(self, images: EncryptedImages) -> PlainImages:
        """Return the same pixels."""
        return PlainImages(images.pixels)
