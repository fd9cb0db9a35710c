"""Held-out images, as audits of what owners send take them."""

from __future__ import annotations

from ppfed.images.types import Int64Array, PlainImages
from ppfed.leakage.images import AuditImages
from scenarios.material import Material


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
