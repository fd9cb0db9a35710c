"""Held-out images, as audits of what owners send take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ppfed.images.types import Int64Array, PlainImages
from ppfed.leakage.images import AuditImages
from scenarios.attacking import mixed, rows_without
from scenarios.material import Material, read_images

SIZE_PX = 32
"""Side of the images that ciphers are compared on."""
_TARGETS = 1000


def targets_of(material: Material, rows: Int64Array) -> AuditImages:
    """Attack these held-out images; what the attacker has of its own are the training images.

    Parameters
    ----------
    material : Material
    rows : int64 array, (n,)
        Of the held-out images.
    """
    return AuditImages(
        targets=PlainImages(material.held_out.pixels[rows]),
        target_labels=material.held_out_labels[rows],
        own=material.train,
        own_labels=material.train_labels,
        classes=len(material.classes),
        data="",
    )


def reference_images(data: Path, own_images: int, channels: int, title: str = "") -> AuditImages:
    """Attack the held-out images that ciphers are compared on; the attacker has training images, and none of these.

    Parameters
    ----------
    data : Path
    own_images : int
    channels : 1 or 3
    title : str
        The data in words.
    """
    material = read_images(data, SIZE_PX, own_images, None, channels=channels)
    images = targets_of(material, mixed(len(material.held_out), _TARGETS, 0))
    own = rows_without(material.train.pixels, images.targets.pixels)
    return replace(
        images, own=PlainImages(material.train.pixels[own]), own_labels=material.train_labels[own], data=title
    )
