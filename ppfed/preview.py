"""A contact sheet that shows what encryption hides and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppfed.attacks.alone import Solver
from ppfed.attacks.values.fold import folds, keyless_view
from ppfed.ciphers.registry import Cipher
from ppfed.ciphers.spec import BLOCK_PX, CipherSpec, Scope, cipher_info
from ppfed.errors import DataError
from ppfed.images.arrays import resize_pixels
from ppfed.images.sections import SectionedSource
from ppfed.images.source import LoadReport, Split, no_progress
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.leakage.wording import NOT_CONFIDENTIAL
from ppfed.picture_grid import Column, Paragraph, Row, draw_grid, write_figure

PLAIN = Column("plain")
ENCRYPTED = Column("encrypted")
FOLD = Column("what anyone without the key sees (fold)")
"""For NP alone: other ciphers do not keep a value's fold at its place."""
RESTORED = Column("what a solver without the key restores", strong=True)

SOLVED_PX = 64
"""Longer side of what the solver is given at most: for photographs with sides of 300 pixels it takes minutes each."""
REDUCED = f"of the image reduced to {SOLVED_PX} pixels at its longer side, then encrypted"


@dataclass(frozen=True)
class Sample:
    """One row of the sheet.

    Attributes
    ----------
    class_name : str
    image : PlainImages, N = 1
    """

    class_name: str
    image: PlainImages


def choose_samples(
    source: SectionedSource, *, size: tuple[int, int] | None, count: int, seed: int, report: LoadReport
) -> list[Sample]:
    """Choose training images from all classes in turn; the same seed chooses the same ones.

    Parameters
    ----------
    source : SectionedSource
    size : (height, width) or None
        Resize to it; None keeps each image's own size.
    count : int
        Fewer are returned where there are not as many.
    seed : int
    report : LoadReport
        Bad images met on the way are entered here and replaced by others.

    Raises
    ------
    DataError
        If there is no usable image.
    """
    section = next(name for name, split in source.sections.items() if split is Split.TRAIN)
    order = _class_by_class([label for label, _ in source.listing(section)], seed)
    samples: list[Sample] = []
    while order and len(samples) < count:
        needed = count - len(samples)
        positions, order = order[:needed], order[needed:]
        for batch in source.read_section(section, size=size, channels=None, report=report, positions=positions):
            for row, label in enumerate(batch.labels.tolist()):
                samples.append(Sample(source.classes[label], PlainImages(batch.images.pixels[row : row + 1])))
    if not samples:
        reason = f": {report.bad[0][1]}" if report.bad else ""
        raise DataError(f"{source.root} holds no image to show{reason}.", hint="Check the folder.")
    return samples


def solved_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tell what (height, width, channels) becomes for the solver: no side above ``SOLVED_PX``, and whole blocks."""
    height, width, channels = shape
    longest = max(height, width)
    if longest <= SOLVED_PX:
        return shape
    height, width = (max(1, round(side * SOLVED_PX / longest / BLOCK_PX)) * BLOCK_PX for side in (height, width))
    return height, width, channels


def contact_sheet(
    samples: Sequence[Sample],
    cipher: Cipher,
    *,
    restore: Solver | None = None,
    finding: str = "",
    progress: Callable[[int], None] = no_progress,
) -> Figure:
    """Draw each sample plain, encrypted, for NP as anyone without the key sees it, and as an attacker restores it.

    Parameters
    ----------
    samples : sequence of Sample
    cipher : Cipher
    restore : callable or None
        What an attacker does with a single ciphertext, whose shape is `solved_shape`; None leaves its column out.
    finding : str
        What was measured of such an attacker, in a sentence; stands below.
    progress : callable
        Called with the number of samples done.
    """
    columns = [PLAIN, ENCRYPTED]
    columns += [FOLD] if folds(cipher.spec.name) else []
    if restore is not None:
        reduced = any(solved_shape(sample.image.shape) != sample.image.shape for sample in samples)
        columns.append(replace(RESTORED, notes=(REDUCED,)) if reduced else RESTORED)
    rows = []
    for sample in samples:
        rows.append(Row(_views(sample.image, cipher, restore), sample.class_name))
        progress(1)
    paragraphs = [Paragraph(finding, strong=True)] if finding else []
    return draw_grid(columns, rows, [*paragraphs, *map(Paragraph, _caption(cipher))])


def write_contact_sheet(
    path: Path,
    samples: Sequence[Sample],
    cipher: Cipher,
    *,
    restore: Solver | None = None,
    finding: str = "",
    progress: Callable[[int], None] = no_progress,
) -> None:
    """Write the contact sheet as a PNG that only its owner may read; parameters as in ``contact_sheet``.

    Raises
    ------
    PPFedError
        If it cannot be written.
    """
    write_figure(path, contact_sheet(samples, cipher, restore=restore, finding=finding, progress=progress))


def _class_by_class(labels: Sequence[int], seed: int) -> list[int]:
    """Order positions so that classes take turns, each in a random order of its own."""
    shuffled = np.random.default_rng(seed).permutation(len(labels)).tolist()
    turns: dict[int, int] = {}
    keyed = []
    for position in shuffled:
        turn = turns.get(labels[position], 0)
        turns[labels[position]] = turn + 1
        keyed.append((turn, labels[position], position))
    return [position for _, _, position in sorted(keyed)]


def _views(image: PlainImages, cipher: Cipher, restore: Solver | None) -> list[UInt8Array]:
    encrypted = cipher.encrypt(image)
    views = [image.pixels, encrypted.pixels]
    if folds(cipher.spec.name):
        views.append(keyless_view(encrypted))
    if restore is not None:
        shape = solved_shape(image.shape)
        if shape != image.shape:
            encrypted = cipher.encrypt(PlainImages(resize_pixels(image.pixels[0], shape[:2])[None]))
        views.append(restore(encrypted.pixels))
    return [pixels[0] for pixels in views]


def _caption(cipher: Cipher) -> list[str]:
    spec: CipherSpec = cipher.spec
    lines = [
        f"Cipher: {spec}. Key: {cipher.fingerprint}.",
        NOT_CONFIDENTIAL,
    ]
    if not folds(spec.name):
        lines.append(f"Without the key anyone can tell: {cipher_info(spec.name).leaves}.")
    if spec.scope is Scope.FIXED:
        lines.append(f"Fixed scope: {cipher_info(spec.name).fixed_scope}.")
    return lines
