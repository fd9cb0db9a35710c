"""What every source of an owner's images offers, and what it tells about them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ppfed.images.types import Int64Array, PlainImages


class Split(StrEnum):
    """What an image is used for."""

    TRAIN = "train"
    HELD_OUT = "held-out"
    """Never trained on: the images that accuracy is measured with."""


@dataclass(frozen=True)
class LabelledImages:
    """A batch of plain images of one shape.

    Attributes
    ----------
    images : PlainImages, N images
    labels : int64 array, (N,)
        Positions in the source's ``classes``.
    names : tuple of str, N names
        Path of each image below its class, without a leading slash; made up as ``000123`` where the source has none.
    """

    images: PlainImages
    labels: Int64Array
    names: tuple[str, ...]


@dataclass
class LoadReport:
    """What happened to the images while they were read; filled by ``ImageSource.read``.

    Attributes
    ----------
    used : int
        Images handed out.
    bad : list of (path, reason)
        Images that could not be used.
    notes : Counter of str
        Conversions that lost something, with the number of images: ``16-bit reduced to 8 bits``.
    """

    used: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def no_progress(_steps: int) -> None:
    """Ignore progress."""


def files_digest(path: Path) -> str:
    """SHA-256 of the names, sizes and times of all files at or below a path, as 64 hex digits."""
    files = sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class ImageSource(Protocol):
    """An owner's images: a class folder, a CIFAR-10 root or an ``.npz``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; labels are positions in it."""

    @property
    def counts(self) -> Mapping[Split, int]:
        """How many images each split lists. No held-out split: the key is missing."""

    def read(
        self,
        split: Split,
        *,
        size: tuple[int, int] | None,
        channels: int | None,
        report: LoadReport,
        batch_size: int = 512,
        progress: Callable[[int], None] = no_progress,
    ) -> Iterator[LabelledImages]:
        """Read the images of one split in a fixed order, in batches of one shape.

        Parameters
        ----------
        split : Split
        size : (height, width) or None
            Resize to it; None keeps each image's own size, and a batch ends where the shape changes.
        channels : 1, 3 or None
            Convert to it; None keeps grey images at one channel and gives all others three.
        report : LoadReport
            Bad images are entered here and left out; the caller decides whether to raise.
        batch_size : int
        progress : callable
            Called with the number of images done, bad ones included.
        """
