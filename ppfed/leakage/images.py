"""Which images an audit attacks, and which the attacker has of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ppfed.errors import DataError
from ppfed.images.labels import rank_in_class
from ppfed.images.sections import SectionedSource
from ppfed.images.source import LoadReport, no_progress
from ppfed.images.types import Int64Array, PlainImages, UInt8Array

FEWEST_TARGETS = 10
FEWEST_OWN = 40


@dataclass(frozen=True, eq=False)
class AuditImages:
    """Images for an audit. The two sets share no image: whoever makes one sees to that.

    Attributes
    ----------
    targets : PlainImages
        What the attacker wants to see, and gets encrypted.
    target_labels : int64 array
    own : PlainImages, of the same height, width and channels
        The attacker's own.
    own_labels : int64 array
    classes : int
    data : str
        The images in words, without a path.
    same_classes : bool
        Whether labels mean the same on both sides; otherwise nothing is classified.
    """

    targets: PlainImages
    target_labels: Int64Array
    own: PlainImages
    own_labels: Int64Array
    classes: int
    data: str
    same_classes: bool = True

    def __post_init__(self) -> None:
        if self.targets.shape != self.own.shape:
            raise ValueError("targets and the attacker's own images differ in size or channels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.targets.shape


def split_source(
    source: SectionedSource,
    *,
    size: tuple[int, int],
    channels: int | None,
    targets: int,
    own: int,
    data: str,
    seed: int,
    report: LoadReport,
    progress: Callable[[int], None] = no_progress,
) -> AuditImages:
    """Deal an owner's images out: some are attacked, the others are taken for the attacker's.

    That is the worst case: an attacker whose own pictures are of the same kind. Classes take turns on both sides; where
    there are few images, a fifth is attacked.

    Parameters
    ----------
    source : SectionedSource
    size : (height, width)
        Resize to it.
    channels : 1, 3 or None
        None takes three if an image has colours.
    targets, own : int
        Most images on each side.
    data : str
        The images in words, without a path.
    seed : int
        Of the choice.
    report : LoadReport
        Bad images are entered here and left out.
    progress : callable

    Raises
    ------
    DataError
        If there are too few usable images.
    """
    pixels, labels = read_some(
        source, size=size, channels=channels, count=targets + own, seed=seed, report=report, progress=progress
    )
    wanted = min(targets, len(labels) // 5)
    if wanted < FEWEST_TARGETS or len(labels) - wanted < FEWEST_OWN:
        raise DataError(
            f"{len(labels)} usable images are too few to measure what an attacker gets",
            hint=f"Name a folder with {5 * FEWEST_TARGETS} images at least.",
        )
    return AuditImages(
        PlainImages(pixels[:wanted]),
        labels[:wanted],
        PlainImages(pixels[wanted:]),
        labels[wanted:],
        len(source.classes),
        data,
    )


def with_attacker_images(
    images: AuditImages,
    classes: tuple[str, ...],
    source: SectionedSource,
    *,
    own: int,
    seed: int,
    report: LoadReport,
    progress: Callable[[int], None] = no_progress,
) -> AuditImages:
    """Give the attacker other images than a part of the owner's.

    Parameters
    ----------
    images : AuditImages
    classes : tuple of str
        The owner's.
    source : SectionedSource
        The attacker's.
    own, seed, report, progress
        As in ``split_source``.

    Raises
    ------
    DataError
        If there are too few usable images.
    """
    height, width, channels = images.shape
    pixels, labels = read_some(
        source, size=(height, width), channels=channels, count=own, seed=seed, report=report, progress=progress
    )
    if len(labels) < FEWEST_OWN:
        raise DataError(
            f"{len(labels)} usable images are too few for an attacker",
            hint=f"Name a folder with {FEWEST_OWN} images at least.",
        )
    return replace(
        images,
        own=PlainImages(pixels),
        own_labels=labels,
        classes=len(source.classes),
        same_classes=source.classes == classes,
    )


def read_some(
    source: SectionedSource,
    *,
    size: tuple[int, int],
    channels: int | None,
    count: int,
    seed: int,
    report: LoadReport,
    progress: Callable[[int], None] = no_progress,
) -> tuple[UInt8Array, Int64Array]:
    """Read images chosen at random from all sections, classes in turn; parameters as in ``split_source``.

    Returns
    -------
    pixels : uint8 array, (N, H, W, C)
    labels : int64 array, (N,)
        N is ``count``, or less where there are not as many.

    Raises
    ------
    DataError
        If there is no usable image.
    """
    listed = [
        (section, place, label)
        for section in source.sections
        for place, (label, _) in enumerate(source.listing(section))
    ]
    shuffled = np.random.default_rng(seed).permutation(len(listed))
    labels_listed = np.array([label for _, _, label in listed], dtype=np.int64)
    # A stable sort of a random order by rank in class lets classes take turns.
    order = shuffled[np.argsort(rank_in_class(labels_listed[shuffled]), kind="stable")][:count]
    pixels: list[UInt8Array] = []
    labels: list[Int64Array] = []
    for section in source.sections:
        places = [listed[index][1] for index in order if listed[index][0] == section]
        for batch in source.read_section(
            section, size=size, channels=channels, report=report, progress=progress, positions=places
        ):
            pixels.append(batch.images.pixels)
            labels.append(batch.labels)
    if not pixels:
        reason = f": {report.bad[0][1]}" if report.bad else ""
        raise DataError(f"{source.root} holds no usable image{reason}", hint="Check the folder.")
    most = max(batch.shape[3] for batch in pixels)
    # Sections were read one after another: mix them, so that both sides of a split have images of each.
    joined = np.concatenate([np.broadcast_to(batch, (*batch.shape[:3], most)) for batch in pixels])
    all_labels = np.concatenate(labels)
    mixed = np.random.default_rng(seed + 1).permutation(len(all_labels))
    mixed = mixed[np.argsort(rank_in_class(all_labels[mixed]), kind="stable")]
    return joined[mixed], all_labels[mixed]
