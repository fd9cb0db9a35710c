"""Images and labels in one ``.npz``, as MedMNIST publishes its data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppfed.errors import DataError
from ppfed.images.arrays import ArraySection, ArraySource
from ppfed.images.source import Split
from ppfed.images.types import Int64Array, UInt8Array

SECTIONS: Mapping[str, Split] = {"train": Split.TRAIN, "val": Split.HELD_OUT, "test": Split.HELD_OUT}

_MAX_CLASSES = 100_000
_HINT = (
    "It must hold train_images (uint8, N x height x width, or with 1 or 3 channels last) and train_labels "
    "(integers, N or N x 1), and may hold val_ and test_ alike."
)


def open_npz(path: Path) -> ArraySource:
    """Read an ``.npz`` with ``train_images``, ``train_labels`` and, optionally, ``val_`` and ``test_`` alike.

    Classes are called ``0``, ``1`` and so on, up to the highest label.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it is damaged or holds anything else.
    """
    loaded = _load(path)
    sections = {name: split for name, split in SECTIONS.items() if name == "train" or f"{name}_images" in loaded}
    arrays = {name: _section(path, name, loaded) for name in sections}
    shapes = {section.pixels.shape[1:] for section in arrays.values()}
    if len(shapes) > 1:
        raise DataError(f"{path}: its sections hold images of different shapes: {sorted(shapes)}.", hint=_HINT)
    highest = max((int(section.labels.max()) for section in arrays.values() if len(section.labels)), default=-1)
    if highest < 0:
        raise DataError(f"{path} holds no images.", hint=_HINT)
    if highest >= _MAX_CLASSES:
        raise DataError(f"{path}: label {highest} cannot be the number of a class.", hint="Number them from 0.")
    return ArraySource(path, [str(label) for label in range(highest + 1)], sections, arrays)


def _load(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    wanted = [f"{name}_{part}" for name in SECTIONS for part in ("images", "labels")]
    try:
        # Without pickles, which could run code.
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in wanted if name in archive.files}
    except OSError as error:
        if error.strerror:
            raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from error
        raise DataError(f"{path} is damaged.", hint="Download it again.") from error
    except ValueError as error:
        what = "holds Python objects" if "allow_pickle" in str(error) else "is damaged, or no .npz"
        raise DataError(f"{path} {what}.", hint=_HINT) from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory.", hint="Split it, or use a larger machine.") from error
    # A damaged archive raises nearly anything; an .npy is an array, which no `with` takes.
    except Exception as error:
        raise DataError(f"{path} is damaged, or no .npz.", hint=_HINT) from error


def _section(path: Path, name: str, loaded: Mapping[str, npt.NDArray[np.generic]]) -> ArraySection:
    for part in ("images", "labels"):
        if f"{name}_{part}" not in loaded:
            raise DataError(f"{path} holds no {name}_{part}.", hint=_HINT)
    pixels = _pixels(f"{path}: {name}_images", loaded[f"{name}_images"])
    labels = _labels(f"{path}: {name}_labels", loaded[f"{name}_labels"])
    if len(pixels) != len(labels):
        raise DataError(f"{path}: {name} has {len(pixels)} images and {len(labels)} labels.", hint=_HINT)
    return ArraySection(pixels, labels)


def _pixels(where: str, images: npt.NDArray[np.generic]) -> UInt8Array:
    if images.dtype != np.uint8:
        raise DataError(f"{where} is {images.dtype}, not uint8.", hint="Scale the values to 0..255 and store as uint8.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(f"{where} has shape {images.shape}.", hint=_HINT)
    return images.view(np.uint8)


def _labels(where: str, labels: npt.NDArray[np.generic]) -> Int64Array:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where} is {labels.dtype}, not an integer type.", hint=_HINT)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{where} gives {labels.shape[1]} labels for each image.",
            hint="ppfed trains classifiers with one class for each image; keep one column.",
        )
    if labels.ndim not in (1, 2) or 0 in labels.shape[1:]:
        raise DataError(f"{where} has shape {labels.shape}.", hint=_HINT)
    numbers: Int64Array = labels.reshape(-1).astype(np.int64)
    if (numbers < 0).any():
        raise DataError(f"{where} holds negative numbers.", hint="Number the classes from 0.")
    return numbers
