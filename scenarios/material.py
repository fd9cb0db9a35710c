"""The images of a scenario: read once, held by a run in a cache of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ppfed.errors import BadImagesError, DataError
from ppfed.images.labels import rank_in_class
from ppfed.images.open import open_source
from ppfed.images.source import ImageSource, LoadReport, Split, no_progress
from ppfed.images.types import Int64Array, PlainImages, UInt8Array

DIGITS = "scikit-learn's handwritten digits"

_HOLD_OUT_EVERY = 10
"""Where a source has no held-out split, every tenth image of each class is held out: an equal number of each."""


@dataclass(frozen=True, eq=False)
class Material:
    """Images of one size with their labels.

    Attributes
    ----------
    classes : tuple of str
    train, held_out : PlainImages
    train_labels, held_out_labels : int64 array
    attacker : PlainImages or None
        What an attacker has of its own, of the training split: as few that arms train on as there can be. None where
        nothing is attacked.
    attacker_labels : int64 array or None
    """

    classes: tuple[str, ...]
    train: PlainImages
    train_labels: Int64Array
    held_out: PlainImages
    held_out_labels: Int64Array
    attacker: PlainImages | None = None
    attacker_labels: Int64Array | None = None

    def digest(self) -> str:
        """SHA-256 of classes, pixels and labels, as 64 hex digits."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for array in self._arrays().values():
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write it to a file that this user alone may read: these are plain images."""
        temporary = path.with_suffix(".partial")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            np.savez(file, classes=np.array(self.classes), **self._arrays())  # type: ignore[arg-type]
        temporary.replace(path)

    def _arrays(self) -> dict[str, UInt8Array | Int64Array]:
        arrays: dict[str, UInt8Array | Int64Array] = {
            "train": self.train.pixels,
            "train_labels": self.train_labels,
            "held_out": self.held_out.pixels,
            "held_out_labels": self.held_out_labels,
        }
        if self.attacker is not None and self.attacker_labels is not None:
            arrays |= {"attacker": self.attacker.pixels, "attacker_labels": self.attacker_labels}
        return arrays

    @classmethod
    def load(cls, path: Path) -> Material:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            attacked = "attacker" in arrays
            return cls(
                tuple(arrays["classes"].tolist()),
                PlainImages(arrays["train"]),
                arrays["train_labels"],
                PlainImages(arrays["held_out"]),
                arrays["held_out_labels"],
                PlainImages(arrays["attacker"]) if attacked else None,
                arrays["attacker_labels"] if attacked else None,
            )


def read_images(
    data: Path,
    size: int,
    images: int | None,
    held_out: int | None,
    progress: Callable[[int], None] = no_progress,
    *,
    attacker_images: int = 0,
    channels: int = 3,
) -> Material:
    """Read a source: the first images of each class, resized to a square; and the last for the attacker.

    Parameters
    ----------
    data : Path
        What ``open_source`` opens.
    size : int
        Side in pixels.
    images, held_out : int or None
        How many, the same number of each class; None takes all.
    progress : callable
        Called with the number of images read.
    attacker_images : int
        How many of the training split an attacker has, the same number of each class.
    channels : 1 or 3
        Grey, or red, green and blue.

    Raises
    ------
    DataError
        If there are too few images, or some cannot be used.
    """
    source = open_source(data)
    train, train_labels = _read(source, Split.TRAIN, (size, size, channels), progress)
    if Split.HELD_OUT in source.counts:
        test, test_labels = _read(source, Split.HELD_OUT, (size, size, channels), progress)
    else:
        apart = rank_in_class(train_labels) % _HOLD_OUT_EVERY == _HOLD_OUT_EVERY - 1
        test, test_labels = train[apart], train_labels[apart]
        train, train_labels = train[~apart], train_labels[~apart]
    return _material(
        source.classes, (train, train_labels), (test, test_labels), images, held_out, attacker_images, data
    )


def digits(
    size: int, images: int | None, held_out: int | None, *, attacker_images: int = 0, channels: int = 3
) -> Material:
    """Take 1,797 handwritten digits that come with scikit-learn (UCI ML repository, 8x8 pixels, 17 grey levels).

    Parameters as in ``read_images``; with three channels grey becomes red, green and blue.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 -- it takes as long to load as torch

    loaded = load_digits()
    grey = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR)) for one in grey]
    pixels = np.repeat(np.stack(resized)[..., None], channels, axis=3)
    labels = loaded.target.astype(np.int64)
    apart = rank_in_class(labels) % 5 == 4
    classes = tuple(str(digit) for digit in range(10))
    train, test = (pixels[~apart], labels[~apart]), (pixels[apart], labels[apart])
    return _material(classes, train, test, images, held_out, attacker_images, DIGITS)


def _material(
    classes: tuple[str, ...],
    train: tuple[UInt8Array, Int64Array],
    test: tuple[UInt8Array, Int64Array],
    images: int | None,
    held_out: int | None,
    attacker_images: int,
    what: object,
) -> Material:
    (pixels, labels), (test_pixels, test_labels) = train, test
    rows = _first_of_each(labels, images, len(classes), f"{what} for training")
    test_rows = _first_of_each(test_labels, held_out, len(classes), f"{what} held out")
    material = Material(
        classes, PlainImages(pixels[rows]), labels[rows], PlainImages(test_pixels[test_rows]), test_labels[test_rows]
    )
    if not attacker_images:
        return material
    last = (
        len(labels) - 1 - _first_of_each(labels[::-1], attacker_images, len(classes), f"{what} for the attacker")[::-1]
    )
    return replace(material, attacker=PlainImages(pixels[last]), attacker_labels=labels[last])


def _read(
    source: ImageSource, split: Split, shape: tuple[int, int, int], progress: Callable[[int], None]
) -> tuple[UInt8Array, Int64Array]:
    report = LoadReport()
    height, width, channels = shape
    batches = list(source.read(split, size=(height, width), channels=channels, report=report, progress=progress))
    if report.bad:
        raise BadImagesError(report.bad)
    if not batches:
        raise DataError(f"the split {split} has no images", hint="Name a folder with one sub-folder per class.")
    return (
        np.concatenate([batch.images.pixels for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
    )


def _first_of_each(labels: Int64Array, count: int | None, classes: int, what: str) -> Int64Array:
    """Rows of the first ``count / classes`` images of each class, in their order."""
    if count is None:
        return np.arange(len(labels), dtype=np.int64)
    each = count // classes
    rarest = int(np.bincount(labels, minlength=classes).min())
    if not 0 < each <= rarest:
        raise DataError(
            f"the scenario wants {count} images of {what}, {each} of each of {classes} classes, "
            f"and the rarest class has {rarest}",
            hint="Name larger data with --data, or a smaller scale with --scale.",
        )
    rows: Int64Array = np.flatnonzero(rank_in_class(labels) < each)
    return rows
