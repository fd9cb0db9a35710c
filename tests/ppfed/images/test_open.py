"""Which kind of source a path is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppfed.errors import BadImagesError, DataError
from ppfed.images.folder import FolderSource
from ppfed.images.open import open_source, raise_if_bad
from ppfed.images.source import ImageSource, LoadReport, Split


def test_a_class_folder(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "cat" / "a.png")
    source: ImageSource = open_source(tmp_path)
    assert isinstance(source, FolderSource)


def test_an_npz(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels)
    assert open_source(tmp_path / "a.npz").counts == {Split.TRAIN: 2}


def test_incomplete_cifar_is_not_taken_for_class_folders(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"data_batch_1.*missing"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("a.zip", "archive"), ("cifar-10-python.tar.gz", "archive"), ("a.csv", "not a source of images")]
)
def test_other_files(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / name)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders") as caught:
        open_source(tmp_path)
    assert "MedMNIST" in caught.value.hint


def test_a_folder_of_images_without_classes_is_told_what_to_do(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="no class folders") as caught:
        open_source(tmp_path)
    assert "one sub-folder of any name" in caught.value.hint
    (tmp_path / "any name").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "any name" / "a.png")
    assert open_source(tmp_path).counts == {Split.TRAIN: 1}


def test_bad_images_stop_or_are_skipped() -> None:
    raise_if_bad(LoadReport(used=3), skip_bad=False)
    report = LoadReport(used=3, bad=[("cat/a.png", "empty file")])
    with pytest.raises(BadImagesError, match=r"cat/a\.png: empty file"):
        raise_if_bad(report, skip_bad=False)
    raise_if_bad(report, skip_bad=True)
    report.used = 0
    with pytest.raises(DataError, match="None of the 1"):
        raise_if_bad(report, skip_bad=True)
