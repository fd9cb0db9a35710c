"""Plain and encrypted images as two types, so that the wrong one cannot be sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppfed.ciphers.spec import CipherSpec, is_fingerprint

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

ID_BYTES = 12
"""Length of an image's public id, which is also its nonce in image scope (docs/cipher.md)."""


@dataclass(frozen=True, eq=False, repr=False)
class PlainImages:
    """A batch of plain images. It never leaves the owner.

    Attributes
    ----------
    pixels : uint8 array, (N, H, W, C), C is 1 or 3, C-contiguous
        Channels in the order red, green, blue.
    """

    pixels: UInt8Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", _checked(self.pixels))

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"PlainImages(shape={self.pixels.shape})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of each image."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels


@dataclass(frozen=True, eq=False, repr=False)
class EncryptedImages:
    """A batch of encrypted images with what a holder of the key needs to decrypt it.

    Attributes
    ----------
    pixels : uint8 array, (N, H, W, C), C is 1 or 3, C-contiguous
        The ciphertext.
    ids : uint8 array, (N, 12)
        The images' public ids; in image scope also their nonces.
    cipher : CipherSpec
        How they were encrypted.
    fingerprint : str
        The public name of the key, 16 hex digits.
    """

    pixels: UInt8Array
    ids: UInt8Array
    cipher: CipherSpec
    fingerprint: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", _checked(self.pixels))
        if self.ids.dtype != np.uint8 or self.ids.shape != (len(self.pixels), ID_BYTES):
            raise ValueError(
                f"ids must be uint8 of shape ({len(self.pixels)}, {ID_BYTES}), "
                f"not {self.ids.dtype} of shape {self.ids.shape}"
            )
        if not is_fingerprint(self.fingerprint):
            raise ValueError("a fingerprint is 16 lower-case hex digits")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"EncryptedImages(shape={self.pixels.shape}, cipher={self.cipher}, fingerprint={self.fingerprint})"

    def __getitem__(self, rows: slice | Int64Array) -> EncryptedImages:
        return EncryptedImages(self.pixels[rows], self.ids[rows], self.cipher, self.fingerprint)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of each image."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels


def _checked(pixels: UInt8Array) -> UInt8Array:
    if pixels.dtype != np.uint8:
        raise ValueError(f"images are uint8, not {pixels.dtype}")
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:]:
        raise ValueError(f"images have shape (N, height, width, 1 or 3), not {pixels.shape}")
    return np.ascontiguousarray(pixels)
