"""The images of a scenario: which are taken, and that a cache keeps them as they are."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppfed.errors import BadImagesError, DataError
from scenarios.material import Material, digits, read_images


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Two classes of twenty images; the pixel value is the image's number."""
    for label, name in enumerate(("cat", "dog")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = np.full((8, 8, 3), 100 * label + number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "data"


def test_every_tenth_image_is_held_out_where_no_split_is_given(class_folder: Path) -> None:
    material = read_images(class_folder, 8, None, None)
    assert material.classes == ("cat", "dog")
    assert material.held_out.pixels[:, 0, 0, 0].tolist() == [9, 19, 109, 119]
    assert len(material.train) == 36
    assert set(material.train.pixels[:, 0, 0, 0].tolist()).isdisjoint({9, 19, 109, 119})


def test_the_first_images_of_each_class_are_taken(class_folder: Path) -> None:
    material = read_images(class_folder, 8, 6, 2)
    assert material.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert material.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert material.held_out.pixels[:, 0, 0, 0].tolist() == [9, 109]


def test_grey_images_are_those_of_a_grey_federation(class_folder: Path, tmp_path: Path) -> None:
    red = class_folder / "cat" / "00.png"
    Image.new("RGB", (8, 8), (200, 10, 10)).save(red)
    material = read_images(class_folder, 8, 6, 2, attacker_images=4, channels=1)
    assert material.train.shape == material.held_out.shape == (8, 8, 1)
    assert material.attacker is not None
    assert material.attacker.shape == (8, 8, 1)
    # ITU-R 601, as Pillow's mode L.
    assert int(material.train.pixels[0, 0, 0, 0]) == round(0.299 * 200 + 0.587 * 10 + 0.114 * 10)
    assert digits(8, 20, 10, channels=1).train.shape == (8, 8, 1)


def test_too_few_images_are_refused(class_folder: Path) -> None:
    with pytest.raises(DataError, match="rarest class has 18"):
        read_images(class_folder, 8, 100, None)


def test_bad_images_are_named(class_folder: Path) -> None:
    (class_folder / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadImagesError, match=r"broken\.png"):
        read_images(class_folder, 8, None, None)


def test_digits_have_disjoint_splits_of_all_classes() -> None:
    material = digits(16, 200, 100)
    assert material.train.pixels.shape == (200, 16, 16, 3)
    assert np.bincount(material.train_labels).tolist() == [20] * 10
    assert np.bincount(material.held_out_labels).tolist() == [10] * 10
    train = {image.tobytes() for image in material.train.pixels}
    assert not train.intersection(image.tobytes() for image in material.held_out.pixels)


def test_the_attacker_has_the_last_images_of_each_class(class_folder: Path) -> None:
    material = read_images(class_folder, 8, 6, 2, attacker_images=4)
    assert material.attacker is not None
    assert material.attacker_labels is not None
    assert material.attacker.pixels[:, 0, 0, 0].tolist() == [17, 18, 117, 118]
    assert material.attacker_labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="for the attacker"):
        read_images(class_folder, 8, 6, 2, attacker_images=100)


def test_the_attacker_shares_training_images_only_where_there_are_too_few() -> None:
    def shared(images: int) -> int:
        material = digits(16, images, 50, attacker_images=400)
        assert material.attacker is not None
        own = {image.tobytes() for image in material.attacker.pixels}
        held_out = {image.tobytes() for image in material.held_out.pixels}
        assert not own & held_out
        return sum(image.tobytes() in own for image in material.train.pixels)

    assert shared(1000) == 0  # the rarest class has 140 images: 100 and 40
    assert shared(1300) > 0


def test_a_cache_is_private_and_keeps_everything(tmp_path: Path) -> None:
    for attacker_images in (0, 40):
        material = digits(8, 20, 10, attacker_images=attacker_images)
        path = tmp_path / "8.npz"
        material.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Material.load(path).digest() == material.digest()
        assert (Material.load(path).attacker is None) is (attacker_images == 0)


def test_the_digest_changes_with_one_pixel_and_with_one_label() -> None:
    material = digits(8, 20, 10)
    pixels, labels = material.train.pixels.copy(), material.train_labels.copy()
    pixels[3, 4, 5, 1] ^= 1
    labels[7] = (labels[7] + 1) % 10
    first = material.digest()
    assert digits(8, 20, 10).digest() == first
    changed = [
        Material(material.classes, type(material.train)(pixels), material.train_labels, *held_out(material)),
        Material(material.classes, material.train, labels, *held_out(material)),
    ]
    assert first not in {one.digest() for one in changed}
    attacked = {digits(8, 20, 10, attacker_images=count).digest() for count in (0, 40, 50)}
    assert len(attacked) == 3


def held_out(material: Material) -> tuple:  # type: ignore[type-arg]
    return material.held_out, material.held_out_labels
