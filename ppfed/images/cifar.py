"""CIFAR-10 as its authors distribute it for Python, and as torchvision lays it out."""

from __future__ import annotations

import math
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

_BYTE_TYPES = ("u1", "uint8", "B")


class _Dtype:
    """Stands in for ``numpy.dtype``: of the types of values, bytes alone."""

    def __init__(self, name: object, *_aligned_copied: object) -> None:
        if (name.decode("latin1") if isinstance(name, bytes) else name) not in _BYTE_TYPES:
            raise DataError("it holds an array of something else than bytes")

    def __setstate__(self, _state: object) -> None:
        """Take the byte order, which means nothing for bytes."""


class _Array:
    """Stands in for ``numpy.ndarray``, whose own constructor takes bytes for pointers where a pickle wants it to."""

    values: UInt8Array = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Take what ``ndarray.__reduce__`` gives: version, shape, type, whether columns come first, and the values."""
        _version, shape, dtype, by_columns, content = state
        self._fill(content, dtype, shape, "F" if by_columns else "C")

    def _fill(self, content: object, dtype: object, shape: object, order: object) -> None:
        if isinstance(content, str):
            content = content.encode("latin1")
        if not (
            isinstance(content, bytes | bytearray)
            and isinstance(dtype, _Dtype)
            and isinstance(shape, tuple)
            and all(isinstance(length, int) and length >= 0 for length in shape)
            and math.prod(shape) == len(content)
            and order in ("C", "F")
        ):
            raise DataError("it holds an array whose type, shape and content do not agree")
        self.values = np.frombuffer(bytes(content), dtype=np.uint8).reshape(shape, order=order)


def _reconstruct(*_kind_shape_type: object) -> _Array:
    """Stand in for what protocols up to 4 call: an array without content, which comes next."""
    return _Array()


def _from_buffer(content: object, dtype: object, shape: object, order: object, *_axes: object) -> _Array:
    """Stand in for what protocol 5 calls."""
    array = _Array()
    array._fill(content, dtype, shape, order)
    return array


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 writes bytes into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise DataError(f"it holds text in {encoding}, which CIFAR-10 does not")
    return text.encode("latin1")


# All that a pickled dictionary of lists and arrays refers to; a pickle that may name anything can run anything. numpy 2
# keeps under another name what old files name numpy.core.
_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1_bytes,
}


class _DataUnpickler(pickle.Unpickler):
    """Reads arrays of bytes and builtin containers; nothing that a pickle can call is anyone else's code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise DataError(f"it refers to {module}.{name}, which CIFAR-10 does not")
        return _STAND_INS[module, name]


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
    stored, labels = content.get("data"), content.get("labels")
    data = stored.values if isinstance(stored, _Array) else None
    if data is None or data.ndim != 2 or data.shape[1] != _VALUES:
        raise DataError(f"{path}: 'data' is not an array of N x {_VALUES} bytes.", hint=_HINT)
    if not isinstance(labels, list) or len(labels) != len(data):
        raise DataError(f"{path}: there is not one label for each image.", hint=_HINT)
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise DataError(f"{path}: a label is not the number of a class.", hint=_HINT)
    pixels: UInt8Array = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    numbers: Int64Array = np.array(labels, dtype=np.int64)
    return ArraySection(pixels, numbers)
