"""Classify images with a finished model, at the owner: encrypt as the training images were, then ask the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ppfed.ciphers.registry import Cipher, make_cipher
from ppfed.errors import BadImagesError, DataError, WrongKeyError
from ppfed.images.decode import SUFFIXES, decode_image, shown
from ppfed.images.folder import is_ignored
from ppfed.images.png import read_encrypted_png
from ppfed.images.source import LoadReport
from ppfed.images.types import EncryptedImages, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.model_folder import LoadedModel, ModelCard
from ppfed.training.loop import predict_logits

_BATCH = 256


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says about one image.

    Attributes
    ----------
    path : Path
    probabilities : float32 array, (classes,)
        In the order of the card's classes; they add up to 1.
    top_class : str
        The most probable class.
    """

    path: Path
    probabilities: npt.NDArray[np.float32]
    top_class: str


def predict_images(
    model: LoadedModel,
    key: MasterKey | Callable[[], MasterKey],
    paths: Sequence[Path],
    device: torch.device,
    report: LoadReport | None = None,
) -> list[Prediction]:
    """Classify image files.

    A plain image is resized to the card's size, given its channels and encrypted under its cipher, in image scope with
    a fresh id. An image that ``ppfed encrypt`` made with the same key, cipher, size and channels is classified as it
    is.

    Parameters
    ----------
    model : LoadedModel
        On ``device``.
    key : MasterKey, or a callable that returns one
        The callable is called at the first plain image, and never if there is none.
    paths : sequence of Path
    device : torch.device
    report : LoadReport or None
        Bad images are entered here and left out.

    Returns
    -------
    list of Prediction
        In the order of ``paths``, without the bad images.

    Raises
    ------
    WrongKeyError
        If the key is not the one that the network's training images were encrypted with.
    BadImagesError
        If ``report`` is None and some images cannot be used.
    """

    @cache
    def cipher() -> Cipher:
        return query_cipher(model.card, key if isinstance(key, MasterKey) else key())

    if isinstance(key, MasterKey):
        cipher()
    found = LoadReport() if report is None else report
    predictions: list[Prediction] = []
    for start in range(0, len(paths), _BATCH):
        usable, pixels = _read_batch(paths[start : start + _BATCH], model.card, cipher, found)
        if usable:
            logits = predict_logits(model.network, torch.from_numpy(pixels).to(device))
            probabilities = logits.softmax(1).cpu().numpy()
            predictions += [
                Prediction(path, row, model.card.classes[int(row.argmax())])
                for path, row in zip(usable, probabilities, strict=True)
            ]
    if report is None and found.bad:
        raise BadImagesError(found.bad)
    return predictions


def image_files(folder: Path, report: LoadReport) -> list[Path]:
    """Find the files in a folder and in those below it that are called as images are (``SUFFIXES``), sorted.

    Links are followed, but for those to a folder above. What is hidden or left by a system is passed over.

    Parameters
    ----------
    folder : Path
    report : LoadReport
        Folders that cannot be read are entered here as bad, and so is ``folder`` if nothing is found.
    """
    bad = len(report.bad)
    found = sorted(_image_files(folder, report, frozenset()))
    if not found and len(report.bad) == bad:
        report.bad.append((shown(str(folder)), f"a folder without image files ({', '.join(sorted(SUFFIXES))})"))
    return found


def _image_files(folder: Path, report: LoadReport, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not is_ignored(entry.name)]
    except OSError as error:
        report.bad.append((shown(str(folder)), f"folder cannot be read: {error.strerror}"))
        return
    for entry in kept:
        if entry.is_dir():
            yield from _image_files(folder / entry.name, report, above | {identity})
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            yield folder / entry.name


def query_cipher(card: ModelCard, key: MasterKey) -> Cipher:
    """Make the cipher that a model's training images were encrypted with.

    Raises
    ------
    WrongKeyError
        If the key is another one.
    """
    if key.fingerprint != card.fingerprint:
        raise WrongKeyError(
            f"the network knows images encrypted with key {card.fingerprint}, and this key is {key.fingerprint}",
            hint="Use the key file with the model's fingerprint ('ppfed key show FILE' prints a file's).",
        )
    return make_cipher(card.cipher_spec(), key)


def _read_batch(
    paths: Sequence[Path], card: ModelCard, cipher: Callable[[], Cipher], report: LoadReport
) -> tuple[list[Path], UInt8Array]:
    """Return the usable paths, and their ciphertext: uint8, (N, H, W, C)."""
    usable: list[Path] = []
    ciphertext: list[UInt8Array] = []
    plain_rows: list[int] = []
    for path in paths:
        try:
            image = _read(path, card, report)
        except DataError as error:
            report.bad.append((shown(str(path)), error.message))
            continue
        if isinstance(image, PlainImages):
            plain_rows.append(len(usable))
        usable.append(path)
        ciphertext.append(image.pixels[0])
    report.used += len(usable)
    pixels = np.stack(ciphertext) if ciphertext else np.empty((0, card.height, card.width, card.channels), np.uint8)
    if plain_rows:
        pixels[plain_rows] = cipher().encrypt(PlainImages(pixels[plain_rows])).pixels
    return usable, pixels


def _read(path: Path, card: ModelCard, report: LoadReport) -> PlainImages | EncryptedImages:
    """Read one image, N = 1. The message of a DataError is the reason alone."""
    try:
        decoded = decode_image(path, size=(card.height, card.width), channels=card.channels)
    except DataError as error:
        # The decoder refuses encrypted images too.
        return _read_encrypted(path, card, error.message)
    report.notes.update(decoded.notes)
    return PlainImages(decoded.pixels[None])


def _read_encrypted(path: Path, card: ModelCard, why_not_plain: str) -> EncryptedImages:
    try:
        images = read_encrypted_png(path)
    except DataError as error:
        why_not_encrypted = error.message.removeprefix(f"{path}: ")
        reasons = dict.fromkeys((why_not_plain, why_not_encrypted))
        raise DataError("; ".join(reasons)) from None
    require_known(images, card)
    return images


def require_known(images: EncryptedImages, card: ModelCard) -> None:
    """Refuse encrypted images that are not of the key, cipher and size that a model was trained on.

    Raises
    ------
    DataError
        With the reason alone.
    """
    expected = (card.height, card.width, card.channels)
    if images.fingerprint != card.fingerprint:
        raise DataError(f"encrypted with key {images.fingerprint}, and the network knows key {card.fingerprint}")
    if images.cipher != card.cipher_spec():
        raise DataError(f"encrypted with {images.cipher}, and the network knows {card.cipher_spec()}")
    if images.shape != expected:
        raise DataError(f"encrypted at {_dimensions(images.shape)}, and the network takes {_dimensions(expected)}")


def _dimensions(shape: tuple[int, int, int]) -> str:
    height, width, channels = shape
    return f"{height}x{width} (height x width) with {channels} {'channel' if channels == 1 else 'channels'}"
