"""Have a finished model classify a labelled source of images: in memory, nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ppfed.errors import DataError, UsageError
from ppfed.federation import some_names
from ppfed.images.batching import join_equal
from ppfed.images.decode import shown
from ppfed.images.encrypted_files import read_encrypted_files
from ppfed.images.folder import FolderSource
from ppfed.images.held_out import held_out_by_content
from ppfed.images.open import raise_if_bad
from ppfed.images.png import read_encrypted_png
from ppfed.images.sections import UNDIVIDED, SectionedSource
from ppfed.images.source import LoadReport, Split, no_progress
from ppfed.images.types import EncryptedImages, Int64Array, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.model_folder import LoadedModel, ModelCard
from ppfed.prediction import query_cipher, require_known
from ppfed.training.loop import predict_logits

_BATCH = 256
_LOOKED_AT = 10
"""Files that are looked at to tell whether a folder is encrypted: the first ones may be broken."""
_CHOICE = ("test", "val", "valid", "train", UNDIVIDED)
"""The section that is measured is the first of these that a source has."""


@dataclass(frozen=True, eq=False)
class MeasuredPart:
    """The part of a labelled source that a model is measured on: ``choose_part``.

    Attributes
    ----------
    source : SectionedSource
    section : str
        ``""`` where the source is not divided.
    positions : int64 array, (source's classes,)
        The model's label for each of the source's; -1 for a class without images that the model does not know.
    by_number : bool
        Whether the source numbers its classes and the model names them.
    encrypted : bool
        Whether its files were made by ``ppfed encrypt``.
    held_out_only : bool
        Whether those alone are measured that a federation would hold out (``ppfed.images.held_out``).
    """

    source: SectionedSource
    section: str
    positions: Int64Array
    by_number: bool
    encrypted: bool
    held_out_only: bool

    def __len__(self) -> int:
        return len(self.source.listing(self.section))

    @property
    def held_out(self) -> bool:
        """Whether it is a part that a federation never trains on."""
        return self.source.sections[self.section] is Split.HELD_OUT


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said about labelled images.

    Attributes
    ----------
    names : tuple of str, N names
        Path of each image below the source; of an array, section, class and number.
    labels : int64 array, (N,)
        The true classes, as positions in the model's.
    probabilities : float64 array, (N, classes)
    """

    names: tuple[str, ...]
    labels: Int64Array
    probabilities: npt.NDArray[np.float64]


def choose_part(source: SectionedSource, card: ModelCard, *, held_out_only: bool = False) -> MeasuredPart:
    """Choose what of a source is measured: its ``test`` section, else ``val`` or ``valid``, else all that it has.

    Parameters
    ----------
    source : SectionedSource
    card : ModelCard
    held_out_only : bool
        Of all that it has, choose those that a federation would hold out.

    Raises
    ------
    UsageError
        If ``held_out_only`` and the source has a section that is held out, or is encrypted.
    DataError
        If there are no images in it, some are of a class that the model does not know, or they were encrypted otherwise
        than the model's.
    """
    section = next(name for name in _CHOICE if name in source.sections)
    used = {label for label, _ in source.listing(section)}
    if not used:
        raise DataError(f"{_place(source, section)} holds no images.", hint="Name a source with images in its classes.")
    positions, by_number = _positions(source, used, card.classes)
    part = MeasuredPart(source, section, positions, by_number, _is_encrypted(source, section, card), held_out_only)
    if held_out_only and part.held_out:
        raise UsageError(
            f"{_place(source, section)} is held out, and is what is measured.", hint="Leave --held-out out."
        )
    if held_out_only and part.encrypted:
        raise UsageError(
            f"{source.root} is encrypted, and only a plain image says whether it is held out.",
            hint="Name the plain images, and the key with --key.",
        )
    return part


def classify_part(
    model: LoadedModel,
    part: MeasuredPart,
    key: MasterKey | None,
    device: torch.device,
    report: LoadReport,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] = no_progress,
) -> Answers:
    """Classify the images of a part.

    Parameters
    ----------
    model : LoadedModel
        On ``device``.
    part : MeasuredPart
    key : MasterKey or None
        Encrypts plain images as the training images were; None for a part that is encrypted already.
    device : torch.device
    report : LoadReport
        Bad images are entered here and left out.
    skip_bad : bool
        Leave bad images out instead of raising.
    progress : callable
        Called with the number of images done.

    Raises
    ------
    BadImagesError
        If some images cannot be used and ``skip_bad`` is false.
    DataError
        If none can be used, or of few images none is one that would be held out.
    WrongKeyError
        If the key is not the model's.
    """
    names: list[str] = []
    labels: list[Int64Array] = []
    probabilities: list[npt.NDArray[np.float64]] = []
    batches = (
        _encrypted_batches(part, model.card, report, progress)
        if key is None
        else _plain_batches(part, model.card, key, report, progress)
    )
    for pixels, batch_labels, batch_names in batches:
        if report.bad and not skip_bad:
            continue  # only to find the other bad ones
        logits = predict_logits(model.network, torch.from_numpy(pixels).to(device))
        # In 64 bits: in 32, the probabilities of sure answers are all 1, and cannot be ranked.
        probabilities.append(logits.cpu().double().softmax(1).numpy())
        labels.append(part.positions[batch_labels])
        names += [
            "/".join(filter(None, (part.section, part.source.classes[label], shown(name))))
            for label, name in zip(batch_labels.tolist(), batch_names, strict=True)
        ]
    raise_if_bad(report, skip_bad=skip_bad)
    if not names:
        raise DataError(
            f"none of the {report.used:,} images of {_place(part.source, part.section)} is one that would be held out",
            hint="Of few images chance may choose none: measure all of some that the model was not trained on.",
        )
    return Answers(tuple(names), np.concatenate(labels), np.concatenate(probabilities))


def _place(source: SectionedSource, section: str) -> str:
    return f"{source.root}: {section}" if section else str(source.root)


def _positions(source: SectionedSource, used: set[int], known: tuple[str, ...]) -> tuple[Int64Array, bool]:
    """Match classes by name; by number where a source numbers its classes, and none of the numbers is a name."""
    classes = source.classes
    numbered = set(classes) == {str(number) for number in range(len(classes))} and set(classes).isdisjoint(known)
    places = {str(place) if numbered else name: place for place, name in enumerate(known)}
    unknown = [classes[label] for label in sorted(used) if classes[label] not in places]
    if unknown:
        raise DataError(
            f"{source.root} has images of a class that the model does not know: {some_names(unknown)}. "
            f"The model knows {some_names(known)}.",
            hint=(
                f"Number the classes from 0 to {len(known) - 1}, in the model's order."
                if numbered
                else "Rename the class to one of the model's, or take its images out."
            ),
        )
    return np.array([places.get(name, -1) for name in classes], dtype=np.int64), numbered


def _files(source: SectionedSource, section: str) -> list[tuple[Path, tuple[int, str]]]:
    """Path of each image that is a file, and its label and name."""
    if not isinstance(source, FolderSource):
        return []
    folder = source.root / section
    return [(folder / source.classes[label] / name, (label, name)) for label, name in source.listing(section)]


def _is_encrypted(source: SectionedSource, section: str, card: ModelCard) -> bool:
    """Tell by the first files; of several that are encrypted, one at least has to be so as the model knows it."""
    found: list[EncryptedImages] = []
    for path, _ in _files(source, section)[:_LOOKED_AT]:
        with suppress(DataError):
            found.append(read_encrypted_png(path))
    reason = ""
    for images in found:
        try:
            require_known(images, card)
        except DataError as error:
            reason = error.message
        else:
            return True
    if found:
        raise DataError(
            f"{_place(source, section)} holds images {reason}.",
            hint="Name the plain images, or those that 'ppfed encrypt' made with the model's key, cipher and size.",
        )
    return False


def _plain_batches(
    part: MeasuredPart, card: ModelCard, key: MasterKey, report: LoadReport, progress: Callable[[int], None]
) -> Iterator[tuple[UInt8Array, Int64Array, Sequence[str]]]:
    cipher = query_cipher(card, key)
    for batch in part.source.read_section(
        part.section,
        size=(card.height, card.width),
        channels=card.channels,
        report=report,
        batch_size=_BATCH,
        progress=progress,
    ):
        if not part.held_out_only:
            yield cipher.encrypt(batch.images).pixels, batch.labels, batch.names
        elif len(rows := np.flatnonzero(held_out_by_content(batch.images, key))):
            images = PlainImages(batch.images.pixels[rows])
            yield cipher.encrypt(images).pixels, batch.labels[rows], [batch.names[row] for row in rows]


def _encrypted_batches(
    part: MeasuredPart, card: ModelCard, report: LoadReport, progress: Callable[[int], None]
) -> Iterator[tuple[UInt8Array, Int64Array, Sequence[str]]]:
    below = Path(part.section)

    def on_bad(about: tuple[int, str], reason: str) -> None:
        label, name = about
        report.bad.append((shown(str(below / part.source.classes[label] / name)), reason))

    sound = read_encrypted_files(
        _files(part.source, part.section), on_bad, require=lambda images: require_known(images, card), progress=progress
    )
    for run in join_equal(sound, lambda one: one[0].shape, lambda one: one[0].pixels.nbytes, _BATCH):
        report.used += len(run)
        pixels = np.concatenate([images.pixels for images, _ in run])
        yield pixels, np.array([label for _, (label, _) in run], dtype=np.int64), [name for _, (_, name) in run]
