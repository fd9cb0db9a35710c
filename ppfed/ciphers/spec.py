"""What a cipher is, without its key: the part that everyone in a federation may know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from ppfed.errors import UsageError

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")

BLOCK_PX = 4
"""Side of the blocks of every block-based cipher here, as in the papers that train on CIFAR images."""


DEFAULT_CIPHER = "np-v1"


class Scope(StrEnum):
    """How often the key stream changes (docs/cipher.md)."""

    IMAGE = "image"
    """A fresh key stream for each image, derived from the image's public id. The default."""
    FIXED = "fixed"
    """One key stream for all images of a shape: the papers' setting. NP is then broken from ciphertexts alone."""


@dataclass(frozen=True)
class CipherSpec:
    """The public parameters of a cipher.

    Attributes
    ----------
    name : str
        Name in the catalogue, with its version: ``np-v1``.
    scope : Scope
        How often the key stream changes.
    colour_shuffle : bool
        Whether the colours of each pixel are permuted too (paper, section 3.2, step 3). Only for ciphers that have this
        option; ``CipherInfo.spec`` knows which.
    """

    name: str = DEFAULT_CIPHER
    scope: Scope = Scope.IMAGE
    colour_shuffle: bool = True

    def __str__(self) -> str:
        text = f"{self.name}, {self.scope} scope"
        info = _CATALOGUE.get(self.name)
        if info is not None and not info.colour_shuffle and not self.colour_shuffle:
            return text
        return f"{text}, colour shuffle {'on' if self.colour_shuffle else 'off'}"


@dataclass(frozen=True)
class CipherInfo:
    """What there is to know about a cipher before one chooses it.

    Attributes
    ----------
    name : str
    title : str
        Its name in words.
    source : str
        Where it was published.
    leaves : str
        What anyone can still tell from its ciphertexts, without the key.
    fixed_scope : str
        What one key stream for all images gives away, as the end of a sentence: how many encrypted images are enough is
        measured (docs/leakage.md).
    colour_shuffle : bool
        Whether ``CipherSpec.colour_shuffle`` can be chosen.
    sides_px : int
        Height and width must be multiples of this.
    """

    name: str
    title: str
    source: str
    leaves: str
    fixed_scope: str
    colour_shuffle: bool = False
    sides_px: int = 1

    def spec(self, scope: Scope = Scope.IMAGE, *, colour_shuffle: bool | None = None) -> CipherSpec:
        """Make the public parameters of this cipher.

        Parameters
        ----------
        scope : Scope
        colour_shuffle : bool or None
            None takes the default: on where the cipher has it.

        Raises
        ------
        UsageError
            If colour shuffle is asked of a cipher that does not have it.
        """
        spec = CipherSpec(self.name, scope, self.colour_shuffle if colour_shuffle is None else colour_shuffle)
        self.check(spec)
        return spec

    def check(self, spec: CipherSpec, shape: tuple[int, int, int] | None = None) -> None:
        """Check public parameters, and the shape of images if given.

        Parameters
        ----------
        spec : CipherSpec
            Of this cipher.
        shape : (height, width, channels) or None

        Raises
        ------
        UsageError
            If the cipher has no such option, or cannot encrypt images of that shape.
        """
        if spec.colour_shuffle and not self.colour_shuffle:
            raise UsageError(
                f"cipher {self.name} has no colour shuffle to switch on",
                hint="Leave colour shuffle out (--no-shuffle, or colour_shuffle = false).",
            )
        if shape is not None and (shape[0] % self.sides_px or shape[1] % self.sides_px):
            raise UsageError(
                f"cipher {self.name} works on blocks of {self.sides_px}x{self.sides_px} pixels, "
                f"and an image is {shape[0]}x{shape[1]} (height x width)",
                hint=f"Choose an image size whose sides are multiples of {self.sides_px}, such as --size 32.",
            )


_FROM_TEN = "anyone can recover from ten encrypted images, without the key"
_WITH_PICTURES = "anyone with pictures of the same kind, but no key, can recover from"

_CATALOGUE = {
    info.name: info
    for info in (
        CipherInfo(
            "np-v1",
            "pixel-based negative-positive transform",
            "Sirichotedumrong et al., ICIP 2019 (arXiv 1905.01827)",
            "each value up to its negative, at its place",
            f"one mask for all images, which {_FROM_TEN}",
            colour_shuffle=True,
        ),
        CipherInfo(
            "le-v1",
            "learnable encryption (LE)",
            "Tanaka, ICCE-TW 2018 (arXiv 1804.00490)",
            "each block's 4-bit values up to order and reversal, at its place, and which blocks of an image are equal",
            f"one order of 4-bit values for all images, which {_FROM_TEN}",
            sides_px=BLOCK_PX,
        ),
        CipherInfo(
            "etc-v1",
            "block scrambling for encryption-then-compression (EtC)",
            "Kurihara et al., 2015",
            "every block, turned, perhaps negative and with its colours exchanged: a jigsaw puzzle",
            f"one jigsaw puzzle for all images, which {_FROM_TEN}",
            sides_px=BLOCK_PX,
        ),
        CipherInfo(
            "logistic-rc4-v1",
            "logistic map and RC4",
            "Gaata and Hantoosh, 2013",
            "in fixed scope the differences (XOR) between images, with their pixels moved",
            f"one key stream for all images, which {_WITH_PICTURES} a thousand encrypted images",
        ),
        CipherInfo(
            "ele-v1",
            "extended learnable encryption (ELE)",
            "Madono et al., AAAI workshop 2020 (arXiv 2001.07761)",
            "each block's 4-bit values up to order and reversal, somewhere in the image",
            f"one order of 4-bit values for all images, which {_WITH_PICTURES} a hundred encrypted images",
            sides_px=BLOCK_PX,
        ),
        CipherInfo(
            "block-pixel-v1",
            "block scrambling and in-block pixel permutation",
            "arXiv 2204.07707 and 2308.07612; with a key per image, arXiv 2408.05737",
            "every pixel's colour, with its block's other pixels, all blocks permuted alike: a jigsaw puzzle",
            f"one jigsaw puzzle for all images, which {_FROM_TEN}",
            sides_px=BLOCK_PX,
        ),
        CipherInfo(
            "np2-v1",
            "negative-positive transform twice",
            "ppfed's own, after np-v1, for a fresh key stream per image",
            "each value's lower seven bits up to their negative, at its place",
            f"one mask for all images, which {_FROM_TEN}",
            colour_shuffle=True,
        ),
    )
}


def cipher_names() -> tuple[str, ...]:
    """Names of all ciphers."""
    return tuple(_CATALOGUE)


def cipher_info(name: str) -> CipherInfo:
    """Look a cipher up.

    Raises
    ------
    UsageError
        If there is no cipher of that name.
    """
    try:
        return _CATALOGUE[name]
    except KeyError:
        raise UsageError(f"there is no cipher {name!r}", hint=f"Choose one of: {', '.join(_CATALOGUE)}.") from None


def is_fingerprint(text: str) -> bool:
    """Whether ``text`` has the form of a key's public name: 16 lower-case hex digits."""
    return _FINGERPRINT.fullmatch(text) is not None
