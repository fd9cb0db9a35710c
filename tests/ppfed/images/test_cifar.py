"""CIFAR-10 files as Python 2, Python 3 and other numpys wrote them, and pickles that are something else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.numeric import _frombuffer

from ppfed.errors import DataError
from ppfed.images.cifar import FOLDER, TEST_BATCH, TRAIN_BATCHES, find_cifar, open_cifar
from ppfed.images.source import LoadReport, Split

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DATA = {
    name: np.random.default_rng(number).integers(0, 256, (4, 3072), dtype=np.uint8)
    for number, name in enumerate((*TRAIN_BATCHES, TEST_BATCH))
}


def write(root: Path, protocol: int = 2, keys: type = str) -> Path:
    folder = root / FOLDER
    folder.mkdir(parents=True)

    def key(text: str) -> Any:
        return text.encode() if keys is bytes else text

    for number, (name, data) in enumerate(DATA.items()):
        content = {key("data"): data, key("labels"): [number, 9, 0, 1], key("batch_label"): key(name)}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    meta = {key("label_names"): [key(name) for name in NAMES], key("num_vis"): 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    return folder


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes of the distributed files: protocol 2 of Python 2, whose strings are bytes, and numpy 1.6."""

    def string(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def array() -> bytes:
        dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
        dtype += b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
        shape = b"K" + bytes([len(data)]) + b"M" + (3072).to_bytes(2, "little") + b"\x86"
        return made + b"(K\x01" + shape + dtype + b"\x89" + string(data.tobytes()) + b"tb"

    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array() + string(b"labels") + numbers + b"u."


def check(root: Path) -> None:
    source = open_cifar(root)
    assert source.classes == tuple(NAMES)
    assert source.counts == {Split.TRAIN: 20, Split.HELD_OUT: 4}
    report = LoadReport()
    batches = list(source.read(Split.TRAIN, size=None, channels=None, report=report, batch_size=7))
    pixels = np.concatenate([batch.images.pixels for batch in batches])
    stored = np.concatenate([DATA[name] for name in TRAIN_BATCHES])
    # The files hold all red values, then all green, then all blue ones.
    assert np.array_equal(pixels.transpose(0, 3, 1, 2).reshape(20, 3072), stored)
    labels = np.concatenate([batch.labels for batch in batches]).tolist()
    assert labels == [label for number in range(5) for label in (number, 9, 0, 1)]
    assert batches[1].names[0] == "000007"
    assert report.used == 20


@pytest.mark.parametrize("keys", [str, bytes])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path: Path, protocol: int, keys: type) -> None:
    folder = write(tmp_path, protocol, keys)
    check(tmp_path)
    check(folder)
    assert find_cifar(folder) == find_cifar(tmp_path) == folder


def test_python_2(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for number, (name, data) in enumerate(DATA.items()):
        (folder / name).write_bytes(python2_pickle(data, [number, 9, 0, 1]))
    check(tmp_path)


def test_the_other_name_of_numpys_core(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for path in folder.iterdir():
        data = path.read_bytes()
        old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
        path.write_bytes(data.replace(new, old) if new in data else data.replace(old, new))
    check(tmp_path)


@pytest.mark.parametrize("missing", [TRAIN_BATCHES[2], TEST_BATCH, "batches.meta"])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    (write(tmp_path) / missing).unlink()
    with pytest.raises(DataError, match=f"{missing} missing"):
        open_cifar(tmp_path)


class Evil:
    """Makes a pickle that would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("file", [TRAIN_BATCHES[0], "batches.meta"])
def test_a_pickle_runs_nothing(tmp_path: Path, file: str) -> None:
    folder = write(tmp_path)
    (folder / file).write_bytes(pickle.dumps({"data": Evil(tmp_path / "made"), "label_names": []}))
    with pytest.raises(DataError, match=r"mkdir, which CIFAR-10 does not"):
        open_cifar(tmp_path)
    assert not (tmp_path / "made").exists()


class Made:
    """Makes a pickle that calls something that is admitted, with arguments of its choice."""

    def __init__(self, what: object, *given: object) -> None:
        self.made = what, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


@pytest.mark.parametrize(
    "stored",
    [
        # Bytes for pointers to objects, followed where an array is made of that array: it ended the process.
        Made(np.ndarray, Made(np.ndarray, (1,), Made(np.dtype, "O"), b"A" * 8)),
        Made(np.ndarray, (1,), Made(np.dtype, "u1"), b"A"),
        Made(np.dtype, "O"),
        np.array([object()], dtype="O"),
    ],
    ids=["pointers", "constructor", "type", "objects"],
)
def test_a_pickle_makes_no_arrays_but_of_bytes(tmp_path: Path, stored: object) -> None:
    (write(tmp_path) / TEST_BATCH).write_bytes(pickle.dumps({"data": stored, "labels": [0]}, protocol=2))
    with pytest.raises(DataError, match=TEST_BATCH):
        open_cifar(tmp_path)


@pytest.mark.parametrize("shape", [(2, 3072), (-1, -3072), (1, 3071), ("a",), 3072])
def test_an_array_is_as_large_as_what_it_holds(tmp_path: Path, shape: object) -> None:
    array = Made(_frombuffer, bytes(3072), Made(np.dtype, "u1"), shape, "C")
    (write(tmp_path) / TEST_BATCH).write_bytes(pickle.dumps({"data": array, "labels": [0]}))
    with pytest.raises(DataError, match="do not agree"):
        open_cifar(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../../elsewhere", "/elsewhere", "a/b", "a\0"])
def test_a_class_is_no_path(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*NAMES[:-1], name]}))
    with pytest.raises(DataError, match="which no folder can be"):
        open_cifar(tmp_path)


def bad_contents() -> dict[str, Any]:
    data = DATA[TEST_BATCH]
    return {
        "no dictionary": [1, 2],
        "no data": {"labels": [0]},
        "wrong type": {"data": data.astype(np.int16), "labels": [0] * 4},
        "wrong shape": {"data": data[:, :-1], "labels": [0] * 4},
        "too few labels": {"data": data, "labels": [0] * 3},
        "label too high": {"data": data, "labels": [0, 1, 2, 10]},
        "negative label": {"data": data, "labels": [0, 1, 2, -1]},
        "text": {"data": data, "labels": ["a"] * 4},
    }


@pytest.mark.parametrize("case", bad_contents())
def test_odd_contents(tmp_path: Path, case: str) -> None:
    (write(tmp_path) / TEST_BATCH).write_bytes(pickle.dumps(bad_contents()[case]))
    with pytest.raises(DataError, match=TEST_BATCH):
        open_cifar(tmp_path)


@pytest.mark.parametrize("length", [0, 10, 1000])
def test_damaged_files(tmp_path: Path, length: int) -> None:
    path = write(tmp_path) / TEST_BATCH
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="damaged"):
        open_cifar(tmp_path)
