"""What a coordinator can restore of an owner's own images: measured in seconds, before anything leaves.

Only attacks that need nothing but ciphertexts, and no training, are run. A full audit runs all of them and trains
networks (``ppfed audit leakage``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ppfed.attacks.alone import fits
from ppfed.ciphers.spec import CipherSpec
from ppfed.federation import Exchange
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.leakage.attackers import AuditPreset
from ppfed.leakage.audit import AuditRun, applicable, audit
from ppfed.leakage.images import AuditImages
from ppfed.leakage.picture import write_picture
from ppfed.leakage.record import AttackName
from ppfed.leakage.reference import quoted
from ppfed.leakage.wording import sentence

GLANCE_IMAGES = 100
"""Enough for one mask to be recovered from."""

_AT_A_GLANCE = frozenset(
    {AttackName.FOLD, AttackName.UNFOLD, AttackName.SAME_MASK, AttackName.BIT_PLANES, AttackName.JIGSAW}
)
_MOST_VALUES = GLANCE_IMAGES * 64 * 64 * 3
"""Large images are looked at in smaller numbers."""


@dataclass(frozen=True)
class Glance:
    """What was seen.

    Attributes
    ----------
    sentence : str
        In plain words, with its number.
    picture : Path or None
        Where originals, ciphertexts and what was restored stand side by side; None where nothing was attacked.
    """

    sentence: str
    picture: Path | None


def glance(pixels: UInt8Array, spec: CipherSpec, picture: Path) -> Glance:
    """Encrypt images under a throwaway key, attack them, and say and show what came out.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, C)
        Up to ``GLANCE_IMAGES`` of the owner's, three at least: as if they were all there is.
    spec : CipherSpec
    picture : Path
        PNG to write; only its owner may read it, for it shows plain images.

    Raises
    ------
    PPFedError
        If the picture cannot be written, or the cipher cannot encrypt images of this shape.
    """
    count = max(2, min(len(pixels) - 1, _MOST_VALUES // pixels[0].size))
    attacks = [name for name in applicable(spec, pixels.shape[3]) if name in _AT_A_GLANCE]
    if not attacks or len(pixels) <= count or not fits(spec.name, pixels[0].shape):
        return Glance(quoted(spec, Exchange.IMAGES, pixels.shape[3]), None)
    nothing = np.zeros(len(pixels), dtype=np.int64)
    images = AuditImages(
        PlainImages(pixels[:count]), nothing[:count], PlainImages(pixels[count:]), nothing[count:], 1, "your images"
    )
    found = audit(spec, images, attacks, AuditRun(AuditPreset.QUICK, torch.device("cpu"), seed=0))
    write_picture(picture, found.record, found.pictures)
    return Glance(sentence(found.record), picture)
