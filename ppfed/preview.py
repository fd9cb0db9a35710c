"""A contact sheet that shows what encryption hides and what it leaves."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppfed.atomic import write_atomic
from ppfed.attacks.fold import keyless_view
from ppfed.ciphers.registry import Cipher
from ppfed.ciphers.spec import DEFAULT_CIPHER, CipherSpec, Scope, cipher_info
from ppfed.errors import DataError, PPFedError
from ppfed.images.sections import SectionedSource
from ppfed.images.source import LoadReport, Split
from ppfed.images.types import PlainImages, UInt8Array

COLUMNS = ("plain", "encrypted", "what an attacker\nwithout the key sees\n(fold)")
"""The last for NP alone: other ciphers do not keep a value's fold at its place."""

_CELL_PX = 128
"""Small images are enlarged to at least this."""
_LARGEST_PX = 256
_PITCH_PX = 170
_GAP_PX = 14
_MARGIN_PX = 20
_LABEL_PX = 110
_HEADER_PX = 72
_LINE_PX = 17
_FONT_PT = 9
_CAPTION_CHARACTERS = 94
_LABEL_CHARACTERS = 14
_DPI = 100
_MODE = 0o600
"""The sheet shows plain images."""


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


def contact_sheet(samples: Sequence[Sample], cipher: Cipher) -> Figure:
    """Draw each sample plain, encrypted and, for NP, as an attacker without the key sees it."""
    rows = [(sample.class_name, _views(sample.image, cipher)) for sample in samples]
    pitch = max(_PITCH_PX, _GAP_PX + max(view.shape[1] for _, views in rows for view in views))
    heights = [max(view.shape[0] for view in views) + _GAP_PX for _, views in rows]
    caption = [line for text in _caption(cipher) for line in textwrap.wrap(text, _CAPTION_CHARACTERS)]
    columns = COLUMNS if _folds(cipher.spec) else COLUMNS[:-1]
    # The caption needs the width of three columns.
    width = 2 * _MARGIN_PX + _LABEL_PX + len(COLUMNS) * pitch
    height = _HEADER_PX + sum(heights) + _LINE_PX * len(caption) + 2 * _MARGIN_PX
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

    def write(left: float, top: float, text: str, **style: Any) -> None:
        figure.text(left / width, 1 - top / height, text, fontsize=_FONT_PT, **style)

    lefts = [_MARGIN_PX + _LABEL_PX + column * pitch for column in range(len(columns))]
    for left, title in zip(lefts, columns, strict=True):
        write(left, _HEADER_PX - 6, title, va="bottom", weight="bold")
    top = _HEADER_PX
    for (class_name, views), row_height in zip(rows, heights, strict=True):
        label = "\n".join(textwrap.wrap(_plain_text(class_name), _LABEL_CHARACTERS)[:4])
        write(_MARGIN_PX, top + (row_height - _GAP_PX) / 2, label, va="center")
        for left, view in zip(lefts, views, strict=True):
            _draw(figure, view, left / width, 1 - (top + view.shape[0]) / height)
        top += row_height
    for number, line in enumerate(caption):
        write(_MARGIN_PX, top + _MARGIN_PX / 2 + number * _LINE_PX, line, va="top")
    return figure


def write_contact_sheet(path: Path, samples: Sequence[Sample], cipher: Cipher) -> None:
    """Write the contact sheet as a PNG that only its owner may read, for it shows plain images.

    Raises
    ------
    PPFedError
        If it cannot be written.
    """
    buffer = io.BytesIO()
    contact_sheet(samples, cipher).savefig(buffer, format="png", dpi=_DPI)
    try:
        write_atomic(path, buffer.getvalue(), mode=_MODE)
    except OSError as error:
        raise PPFedError(f"{path} cannot be written: {error.strerror}.", hint="Choose another place.") from error


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


def _views(image: PlainImages, cipher: Cipher) -> list[UInt8Array]:
    encrypted = cipher.encrypt(image)
    views = [image.pixels, encrypted.pixels]
    if _folds(cipher.spec):
        views.append(keyless_view(encrypted))
    return [_enlarged(pixels[0]) for pixels in views]


def _folds(spec: CipherSpec) -> bool:
    return spec.name == DEFAULT_CIPHER


def _enlarged(pixels: UInt8Array) -> UInt8Array:
    """Bring an image to a fit size by repeating or dropping pixels: averaging would make ciphertext look smooth."""
    step = -(-max(pixels.shape[:2]) // _LARGEST_PX)
    pixels = pixels[::step, ::step]
    factor = -(-_CELL_PX // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _draw(figure: Figure, view: UInt8Array, left: float, bottom: float) -> None:
    width, height = figure.get_size_inches() * _DPI
    axes = figure.add_axes((left, bottom, view.shape[1] / width, view.shape[0] / height))
    axes.imshow(view if view.shape[2] == 3 else view[:, :, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _caption(cipher: Cipher) -> list[str]:
    spec: CipherSpec = cipher.spec
    lines = [
        f"Cipher: {spec}. Key: {cipher.fingerprint}.",
        "Visual obfuscation, not confidentiality: it hides images from a glance, not from an attacker.",
    ]
    if not _folds(spec):
        lines.append(f"Without the key anyone can tell: {cipher_info(spec.name).leaves}.")
    if spec.scope is Scope.FIXED:
        lines.append(
            "Fixed scope: one mask for all images, which an attacker recovers from ciphertexts alone and then sees "
            "far more than the fold."
            if _folds(spec)
            else "Fixed scope: one key stream for all images of a size; who knows some of them can recover the others."
        )
    return lines


def _plain_text(name: str) -> str:
    """Keep matplotlib from taking dollar signs in a class name for mathematics."""
    return name.replace("$", r"\$")
