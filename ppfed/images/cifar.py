"""CIFAR-10 as its authors distribute it for Python, and as torchvision lays it out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ppfed.errors import DataError
from ppfed.images.arrays import ArraySection, ArraySource
from ppfed.images.source import Split
from ppfed.images.types import Int64Array, UInt8Array

FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
META = "batches.meta"
_FILES = (*TRAIN_BATCHES, TEST_BATCH, META)

_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE
_HINT = "Unpack the CIFAR-10 'python version' archive afresh."

# All that a pickled dictionary of lists and arrays refers to; a pickle that may name anything can run anything.
_ADMITTED = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
    }
)


_HAS_PRIVATE_CORE = int(np.__version__.split(".")[0]) >= 2


class _DataUnpickler(pickle.Unpickler):
    """Reads arrays and builtin containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        if (module, name) not in _ADMITTED:
            raise DataError(f"it refers to {module}.{name}, which CIFAR-10 does not")
        # Old files name numpy.core, which numpy 2 keeps under another name.
        return super().find_class(module.replace("numpy.core.", "numpy._core.") if _HAS_PRIVATE_CORE else module, name)


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 writes bytes into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise DataError(f"it holds text in {encoding}, which CIFAR-10 does not")
    return text.encode("latin1")


def find_cifar(root: Path) -> Path | None:
    """Return the folder with the batches: ``root`` itself or ``cifar-10-batches-py`` in it; None if there is none."""
    for folder in (root, root / FOLDER):
        if folder.is_dir() and (folder.name == FOLDER or any((folder / name).is_file() for name in _FILES)):
            return folder
    return None


def open_cifar(root: Path) -> ArraySource:
    """Read CIFAR-10: sections ``train`` (five batches) and ``test``.

    Parameters
    ----------
    root : Path
        The folder with the batches, or the one above it.

    Raises
    ------
    DataError
        If files are missing, damaged or not what CIFAR-10 holds.
    """
    folder = find_cifar(root)
    if folder is None:
        raise DataError(f"{root} does not hold CIFAR-10: there is no {FOLDER}/.", hint=_HINT)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} is incomplete: {', '.join(missing)} missing.", hint=_HINT)
    classes = _class_names(folder / META)
    batches = [_batch(folder / name, len(classes)) for name in TRAIN_BATCHES]
    train = ArraySection(
        np.concatenate([batch.pixels for batch in batches]), np.concatenate([batch.labels for batch in batches])
    )
    return ArraySource(
        root,
        classes,
        {"train": Split.TRAIN, "test": Split.HELD_OUT},
        {"train": train, "test": _batch(folder / TEST_BATCH, len(classes))},
    )


def _load(path: Path) -> dict[str, Any]:
    """Read one file; its keys are ``bytes`` or ``str``, after the Python that wrote it."""
    try:
        with path.open("rb") as file:
            # latin1 maps the byte strings of Python 2 one to one.
            content = _DataUnpickler(file, encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error.message}.", hint=_HINT) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    # A damaged pickle raises nearly anything.
    except Exception as error:
        raise DataError(f"{path} is damaged.", hint=_HINT) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold what a CIFAR-10 file does.", hint=_HINT)
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _class_names(path: Path) -> list[str]:
    names = _load(path).get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{path} lists no classes.", hint=_HINT)
    return [name.decode("latin1") if isinstance(name, bytes) else name for name in names]


def _batch(path: Path, classes: int) -> ArraySection:
    content = _load(path)
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _VALUES:
        raise DataError(f"{path}: 'data' is not an array of N x {_VALUES} bytes.", hint=_HINT)
    if not isinstance(labels, list) or len(labels) != len(data):
        raise DataError(f"{path}: there is not one label for each image.", hint=_HINT)
    if not all(isinstance(label, int | np.integer) and 0 <= label < classes for label in labels):
        raise DataError(f"{path}: a label is not the number of a class.", hint=_HINT)
    pixels: UInt8Array = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    numbers: Int64Array = np.array(labels, dtype=np.int64)
    return ArraySection(pixels, numbers)
