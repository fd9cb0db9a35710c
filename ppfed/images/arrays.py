"""Images that come as arrays: CIFAR-10 and ``.npz`` files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ppfed.images.decode import resize_image
from ppfed.images.sections import SectionedSource
from ppfed.images.source import LabelledImages, LoadReport, Split, no_progress
from ppfed.images.types import Int64Array, PlainImages, UInt8Array


@dataclass(frozen=True)
class ArraySection:
    """The images of one section.

    Attributes
    ----------
    pixels : uint8 array, (N, H, W, C), C is 1 or 3; may be a view
    labels : int64 array, (N,)
    """

    pixels: UInt8Array
    labels: Int64Array


class ArraySource(SectionedSource):
    """Images that are in memory already. Their names are their numbers, from ``000000``.

    Parameters
    ----------
    root : Path
        Where they come from.
    classes : sequence of str
    sections : mapping of str to Split
    arrays : mapping of str to ArraySection
        For each section.
    """

    def __init__(
        self, root: Path, classes: Sequence[str], sections: Mapping[str, Split], arrays: Mapping[str, ArraySection]
    ) -> None:
        super().__init__(root, classes, sections)
        self._arrays = dict(arrays)

    def listing(self, section: str) -> Sequence[tuple[int, str]]:
        """Label and name of each image of a section, in the order of reading."""
        return [(int(label), _name(number)) for number, label in enumerate(self._arrays[section].labels)]

    def read_section(
        self,
        section: str,
        *,
        size: tuple[int, int] | None,
        channels: int | None,
        report: LoadReport,
        batch_size: int = 512,
        progress: Callable[[int], None] = no_progress,
        positions: Sequence[int] | None = None,
    ) -> Iterator[LabelledImages]:
        """Read the images of one section; see ``SectionedSource.read_section``."""
        arrays = self._arrays[section]
        order = np.arange(len(arrays.labels)) if positions is None else np.array(positions, dtype=np.int64)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            pixels = arrays.pixels[rows]
            if channels == 1 and pixels.shape[3] == 3:
                pixels = _to_grey(pixels)
                report.notes["colour reduced to grey"] += len(rows)
            elif channels == 3 and pixels.shape[3] == 1:
                pixels = np.repeat(pixels, 3, axis=3)
            if size is not None and size != pixels.shape[1:3]:
                pixels = np.stack([resize_pixels(image, size) for image in pixels])
            report.used += len(rows)
            yield LabelledImages(PlainImages(pixels), arrays.labels[rows], tuple(_name(int(row)) for row in rows))
            progress(len(rows))


def resize_pixels(pixels: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Stretch one image, (H, W, C), to (height, width), as files are stretched."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    return np.array(resize_image(image, size)).reshape(*size, pixels.shape[2])


def _name(number: int) -> str:
    return f"{number:06}"


def _to_grey(pixels: UInt8Array) -> UInt8Array:
    # ITU-R 601-2 luma in Pillow's own fixed-point arithmetic: arrays and files give the same grey.
    weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)[..., None]
