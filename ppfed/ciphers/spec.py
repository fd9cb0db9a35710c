"""What a cipher is, without its key: the part that everyone in a federation may know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


class Scope(StrEnum):
    """How often the mask changes (docs/cipher.md)."""

    IMAGE = "image"
    """A fresh mask for each image, derived from the image's public id. The default."""
    FIXED = "fixed"
    """One mask for all images of a shape: the paper's setting, broken from ciphertexts alone."""


@dataclass(frozen=True)
class CipherSpec:
    """The public parameters of a cipher.

    Attributes
    ----------
    name : str
        Name in the registry, with its version: ``np-v1``.
    scope : Scope
        How often the mask changes.
    colour_shuffle : bool
        Whether the colours of each pixel are permuted too (paper, section 3.2, step 3).
    """

    name: str = "np-v1"
    scope: Scope = Scope.IMAGE
    colour_shuffle: bool = True

    def __str__(self) -> str:
        return f"{self.name}, {self.scope} scope, colour shuffle {'on' if self.colour_shuffle else 'off'}"


def is_fingerprint(text: str) -> bool:
    """Whether ``text`` has the form of a key's public name: 16 lower-case hex digits."""
    return _FINGERPRINT.fullmatch(text) is not None
