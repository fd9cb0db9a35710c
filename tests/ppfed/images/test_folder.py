"""Class folders: which files are images of which class, and what is said about the others."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppfed.errors import DataError
from ppfed.images import batching
from ppfed.images.folder import FolderSource
from ppfed.images.source import LabelledImages, LoadReport, Split


def put(path: Path, level: int = 0, shape: tuple[int, ...] = (4, 5, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, level, np.uint8)).save(path)


def read(
    root: Path, split: Split = Split.TRAIN, size: tuple[int, int] | None = None, batch_size: int = 512
) -> tuple[list[LabelledImages], LoadReport]:
    report = LoadReport()
    source = FolderSource(root)
    steps: list[int] = []
    batches = list(
        source.read(split, size=size, channels=None, report=report, batch_size=batch_size, progress=steps.append)
    )
    assert sum(steps) == source.counts[split]
    assert report.used == sum(len(batch.images) for batch in batches)
    return batches, report


def test_classes_labels_names_and_order(tmp_path: Path) -> None:
    for level, name in enumerate(["dog/b.png", "dog/a10.png", "dog/a9.png", "cat/x/y.png", "cat/z.png", "Zebra/a.png"]):
        put(tmp_path / name, level)
    (tmp_path / "ant").mkdir()
    source = FolderSource(tmp_path)
    assert source.classes == ("Zebra", "ant", "cat", "dog")
    assert source.counts == {Split.TRAIN: 6}
    (batch,), report = read(tmp_path)
    assert batch.names == ("a.png", "x/y.png", "z.png", "a10.png", "a9.png", "b.png")
    assert batch.labels.tolist() == [0, 2, 2, 3, 3, 3]
    assert batch.images.pixels[:, 0, 0, 0].tolist() == [5, 3, 4, 1, 2, 0]
    assert (report.bad, report.notes) == ([], Counter())


def test_train_and_held_out_folders(tmp_path: Path) -> None:
    for folder in ("train", "val", "test"):
        put(tmp_path / folder / "cat" / "a.png")
        (tmp_path / folder / "dog").mkdir()
    put(tmp_path / "train" / "dog" / "b.png")
    source = FolderSource(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.counts == {Split.TRAIN: 2, Split.HELD_OUT: 2}
    assert list(source.sections) == ["train", "val", "test"]
    batches, _ = read(tmp_path, Split.HELD_OUT)
    assert [batch.names for batch in batches] == [("a.png",), ("a.png",)]


def test_split_folders_with_different_classes_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "a.png")
    put(tmp_path / "test" / "dog" / "a.png")
    with pytest.raises(DataError, match="'cat' is in train/ only"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("folders", [["train/cat", "extra/cat"], ["test/cat", "val/cat"]])
def test_half_a_split_is_not_taken_for_classes(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        put(tmp_path / folder / "a.png")
    with pytest.raises(DataError, match="class folders in it, but"):
        FolderSource(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train/a.png", "bus/a.png"):
        put(tmp_path / name)
    assert FolderSource(tmp_path).classes == ("bus", "train")


def test_no_class_folders(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match="no class folders"):
        FolderSource(tmp_path)


def test_bad_files_are_named_and_left_out(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "good.png")
    put(tmp_path / "stray.jpg")
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "cat" / "notes.txt").write_text("about")
    (tmp_path / "cat" / "empty.png").touch()
    batches, report = read(tmp_path)
    assert [batch.names for batch in batches] == [("good.png",)]
    assert report.bad == [
        ("stray.jpg", "not in a class folder"),
        ("cat/empty.png", "empty file"),
        ("cat/notes.txt", "not a PNG, JPEG, WebP, BMP or TIFF image"),
    ]
    assert report.notes == {"other file beside the class folders ignored": 1}


def test_what_is_evidently_no_image_is_not_counted_as_one(tmp_path: Path) -> None:
    """Nor is it passed over: it is bad, unless it holds an image, as the content decides. Progress keeps in step."""
    for name in ("cat/a.png", "cat/no suffix.png", "cat/b.png"):
        put(tmp_path / name)
    (tmp_path / "cat" / "no suffix.png").rename(tmp_path / "cat" / "no suffix")
    (tmp_path / "cat" / "b.png").rename(tmp_path / "cat" / "b.txt")
    for name in ("labels.CSV", "scan.dcm"):
        (tmp_path / "cat" / name).write_text("text")
    assert FolderSource(tmp_path).counts == {Split.TRAIN: 3}
    _, report = read(tmp_path)
    assert [path for path, _ in report.bad] == ["cat/labels.CSV", "cat/scan.dcm"]
    assert report.used == 3


def test_what_systems_leave_is_ignored_and_counted(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png"):
        (tmp_path / "cat" / name).write_text("x")
    put(tmp_path / "__MACOSX" / "cat" / "a.png")
    put(tmp_path / ".cache" / "a.png")
    assert FolderSource(tmp_path).classes == ("cat",)
    _, report = read(tmp_path)
    assert (report.used, report.bad) == (1, [])
    assert report.notes == {"hidden or system file ignored": 6}


def test_conversions_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "cat" / f"{name}.png")
    _, report = read(tmp_path)
    assert report.notes == {"16-bit reduced to 8 bits": 2}


def test_images_that_turn_out_nearly_black_are_counted_apart(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name, greatest in (("a", 4095), ("b", 3000), ("c", 65535)):
        Image.fromarray(np.full((4, 5), greatest, np.uint16)).save(tmp_path / "cat" / f"{name}.png")
    _, report = read(tmp_path)
    assert sorted(report.notes.values()) == [1, 2]
    assert report.notes["16-bit reduced to 8 bits"] == 1


def test_a_batch_ends_where_the_shape_changes(tmp_path: Path) -> None:
    for name, shape in [("a", (4, 5, 3)), ("b", (4, 5, 3)), ("c", (5, 4, 3)), ("d", (5, 4)), ("e", (4, 5, 3))]:
        put(tmp_path / "cat" / f"{name}.png", shape=shape)
    batches, _ = read(tmp_path)
    assert [batch.images.pixels.shape for batch in batches] == [(2, 4, 5, 3), (1, 5, 4, 3), (1, 5, 4, 1), (1, 4, 5, 3)]
    batches, _ = read(tmp_path, size=(2, 3))
    assert [batch.images.pixels.shape for batch in batches] == [(3, 2, 3, 3), (1, 2, 3, 1), (1, 2, 3, 3)]


@pytest.mark.parametrize("count", [1, 31, 32, 33, 200])
def test_batches_do_not_change_what_is_read(tmp_path: Path, count: int) -> None:
    for number in range(count):
        put(tmp_path / "cat" / f"{number:03}.png", number % 256)
    batches, _ = read(tmp_path, batch_size=7)
    assert [len(batch.images) for batch in batches] == [7] * (count // 7) + [count % 7] * (count % 7 > 0)
    levels = np.concatenate([batch.images.pixels[:, 0, 0, 0] for batch in batches])
    assert levels.tolist() == [number % 256 for number in range(count)]


def test_large_images_end_a_batch_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        put(tmp_path / "cat" / f"{number}.png")
    monkeypatch.setattr(batching, "_BATCH_BYTES", 2 * 60 + 59)  # an image has 60 bytes
    batches, _ = read(tmp_path)
    assert [len(batch.images) for batch in batches] == [2, 2, 1]


def test_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "cat" / "a.png")
    put(tmp_path / "elsewhere" / "b.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone")
    batches, report = read(root)
    assert [batch.names for batch in batches] == [("a.png", "link.png", "b.png")]
    assert report.bad == [("cat/loop", "a link to a folder above it"), ("cat/gone.png", "broken link")]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    path = os.fsencode(tmp_path / "cat") + b"/\xff.png"
    try:
        with open(path, "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system refuses such names")
    _, report = read(tmp_path)
    assert report.bad == [("cat/\N{REPLACEMENT CHARACTER}.png", "not a PNG, JPEG, WebP, BMP or TIFF image")]
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        FolderSource(tmp_path)


def test_class_names_are_the_same_from_every_system(tmp_path: Path) -> None:
    put(tmp_path / "cafe\N{COMBINING ACUTE ACCENT}" / "a.png")
    assert FolderSource(tmp_path).classes == ("caf\N{LATIN SMALL LETTER E WITH ACUTE}",)
    assert read(tmp_path)[1].used == 1


def test_stopping_early_stops_the_threads(tmp_path: Path) -> None:
    for number in range(300):
        put(tmp_path / "cat" / f"{number:03}.png")
    report = LoadReport()
    reading = FolderSource(tmp_path).read(Split.TRAIN, size=None, channels=None, report=report, batch_size=10)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert report.used == 10


def test_chosen_positions(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path / "cat" / f"{number}.png", number)
    (batch,) = FolderSource(tmp_path).read_section("", size=None, channels=None, report=LoadReport(), positions=[3, 0])
    assert batch.names == ("3.png", "0.png")
    assert batch.images.pixels[:, 0, 0, 0].tolist() == [3, 0]
