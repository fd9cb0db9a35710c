"""``.npz`` files in the layout of MedMNIST, and those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ppfed.errors import DataError
from ppfed.images.npz import open_npz
from ppfed.images.source import LoadReport, Split

IMAGES = np.random.default_rng(3).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([[2], [0], [0], [1], [1], [4]], dtype=np.uint8)


def save(tmp_path: Path, **arrays: Any) -> Path:
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


@pytest.mark.parametrize("images", [IMAGES, IMAGES[..., 0], IMAGES[..., :1]], ids=["colour", "grey", "one channel"])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, 0].astype(np.int64)], ids=["column", "row"])
def test_medmnist(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path = save(
        tmp_path,
        train_images=images,
        train_labels=labels,
        val_images=images[:2],
        val_labels=labels[:2],
        test_images=images[:3],
        test_labels=labels[:3],
    )
    source = open_npz(path)
    assert source.classes == ("0", "1", "2", "3", "4")
    assert source.counts == {Split.TRAIN: 6, Split.HELD_OUT: 5}
    report = LoadReport()
    batches = list(source.read(Split.TRAIN, size=None, channels=None, report=report, batch_size=4))
    assert [len(batch.images) for batch in batches] == [4, 2]
    pixels = np.concatenate([batch.images.pixels for batch in batches])
    assert np.array_equal(pixels, images.reshape(6, 4, 5, -1))
    assert np.concatenate([batch.labels for batch in batches]).tolist() == [2, 0, 0, 1, 1, 4]
    assert batches[1].names == ("000004", "000005")
    assert report.used == 6


def test_train_alone(tmp_path: Path) -> None:
    assert open_npz(save(tmp_path, train_images=IMAGES, train_labels=LABELS)).counts == {Split.TRAIN: 6}


def test_sizes_and_channels_are_those_of_files(tmp_path: Path) -> None:
    source = open_npz(save(tmp_path, train_images=IMAGES, train_labels=LABELS))
    report = LoadReport()
    (grey,) = source.read(Split.TRAIN, size=(3, 7), channels=1, report=report)
    image = Image.fromarray(IMAGES[5]).convert("L").resize((7, 3), Image.Resampling.BILINEAR)
    assert np.array_equal(grey.images.pixels[5, ..., 0], np.array(image))
    assert report.notes == {"colour reduced to grey": 6}
    source = open_npz(save(tmp_path, train_images=IMAGES[..., 0], train_labels=LABELS))
    (colour,) = source.read(Split.TRAIN, size=None, channels=3, report=LoadReport())
    assert np.array_equal(colour.images.pixels, np.repeat(IMAGES[..., :1], 3, axis=3))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"train_images": IMAGES}, "no train_labels"),
        ({"x": IMAGES, "y": LABELS}, "no train_images"),
        ({"train_images": IMAGES.astype(float), "train_labels": LABELS}, "float64, not uint8"),
        ({"train_images": IMAGES[..., :2], "train_labels": LABELS}, "shape"),
        ({"train_images": IMAGES[:, :, 0, 0], "train_labels": LABELS}, "shape"),
        ({"train_images": IMAGES, "train_labels": LABELS[:5]}, "6 images and 5 labels"),
        ({"train_images": IMAGES, "train_labels": LABELS.astype(float)}, "integer"),
        ({"train_images": IMAGES, "train_labels": np.repeat(LABELS, 3, axis=1)}, "3 labels for each image"),
        ({"train_images": IMAGES, "train_labels": LABELS.astype(int) - 1}, "negative"),
        ({"train_images": IMAGES, "train_labels": LABELS.astype(int) * 10**8}, "number of a class"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "no images"),
        ({"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES}, "no test_labels"),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:, :3], "test_labels": LABELS},
            "different shapes",
        ),
        ({"train_images": np.array([object()]), "train_labels": LABELS}, "Python objects"),
    ],
)
def test_odd_contents(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_npz(save(tmp_path, **arrays))


def test_damaged_files(tmp_path: Path) -> None:
    data = save(tmp_path, train_images=IMAGES, train_labels=LABELS).read_bytes()
    flipped = bytearray(data)
    flipped[200] ^= 255
    for content in (b"", b"text", data[: len(data) // 2], bytes(flipped)):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"b\.npz"):
            open_npz(tmp_path / "b.npz")
    with (tmp_path / "c.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match=r"c\.npz"):
        open_npz(tmp_path / "c.npz")
