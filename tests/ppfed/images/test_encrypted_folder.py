"""Whole folders there and back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import BadImagesError, DataError, PPFedError, UsageError, WrongKeyError
from ppfed.images import encrypted_folder
from ppfed.images.encrypted_folder import (
    DecryptReport,
    EncryptReport,
    count_files,
    decrypt_file,
    decrypt_folder,
    encrypt_folder,
)
from ppfed.images.open import open_source
from ppfed.images.png import read_encrypted_png
from ppfed.images.source import LoadReport, Split
from ppfed.keys.master import MasterKey

KEY = MasterKey(bytes(range(32)))
OTHER_KEY = MasterKey(bytes(32))
GENERATOR = np.random.default_rng(5)


def put(path: Path, shape: tuple[int, ...] = (4, 5, 3)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def encrypt(
    source: Path,
    out: Path,
    spec: CipherSpec | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
) -> EncryptReport:
    cipher = make_cipher(spec or CipherSpec(), KEY)
    steps: list[int] = []
    images = open_source(source)
    report = encrypt_folder(images, cipher, out, size=size, channels=channels, skip_bad=skip_bad, progress=steps.append)
    assert sum(steps) == sum(images.counts.values())
    return report


def decrypt(source: Path, out: Path, key: MasterKey = KEY, skip_bad: bool = False) -> DecryptReport:
    steps: list[int] = []
    report = decrypt_folder(source, key, out, skip_bad=skip_bad, progress=steps.append)
    assert sum(steps) == count_files(source)
    return report


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) + "/" * path.is_dir() for path in root.rglob("*"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in ("cat/a.png", "cat/b.png", "dog/x/y.png"):
        put(root / name)
    (root / "ant").mkdir()
    return root


@pytest.mark.parametrize("spec", [CipherSpec(scope=s, colour_shuffle=c) for s in Scope for c in (True, False)], ids=str)
def test_there_and_back_bit_for_bit(source: Path, tmp_path: Path, spec: CipherSpec) -> None:
    put(source / "cat" / "grey.png", (4, 5))
    put(source / "cat" / "large.png", (40, 50, 3))
    report = encrypt(source, tmp_path / "out", spec)
    assert {section: dict(counts) for section, counts in report.written.items()} == {"": {"ant": 0, "cat": 4, "dog": 1}}
    assert decrypt(tmp_path / "out", tmp_path / "back").written == 5
    assert tree(tmp_path / "out") == tree(tmp_path / "back") == tree(source)
    for path in source.rglob("*.png"):
        name = path.relative_to(source)
        original, restored = np.array(Image.open(path)), np.array(Image.open(tmp_path / "back" / name))
        assert np.array_equal(original, restored)
        assert read_encrypted_png(tmp_path / "out" / name).cipher == spec
        assert not np.array_equal(np.array(Image.open(tmp_path / "out" / name)), original)


def test_resizing_comes_first(source: Path, tmp_path: Path) -> None:
    encrypt(source, tmp_path / "out", size=(2, 3))
    decrypt(tmp_path / "out", tmp_path / "back")
    for name in ("cat/a.png", "dog/x/y.png"):
        resized = Image.open(source / name).resize((3, 2), Image.Resampling.BILINEAR)
        assert np.array_equal(np.array(Image.open(tmp_path / "back" / name)), np.array(resized))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mixed_folder_becomes_one_of_equal_channels(source: Path, tmp_path: Path, channels: int) -> None:
    """As an owner's client reads the same folder."""
    put(source / "cat" / "grey.png", (4, 5))
    report = encrypt(source, tmp_path / "out", channels=channels)
    assert report.load.notes == ({"colour reduced to grey": 3} if channels == 1 else {})
    decrypt(tmp_path / "out", tmp_path / "back")
    images = open_source(source).read(Split.TRAIN, size=None, channels=channels, report=LoadReport(), batch_size=1)
    for image, name in zip(images, ("cat/a.png", "cat/b.png", "cat/grey.png", "dog/x/y.png"), strict=True):
        assert read_encrypted_png(tmp_path / "out" / name).shape == (4, 5, channels)
        restored = np.array(Image.open(tmp_path / "back" / name)).reshape(4, 5, channels)
        assert np.array_equal(restored, image.images.pixels[0])


def test_ids_never_repeat(tmp_path: Path) -> None:
    for number in range(70):
        put(tmp_path / "in" / "cat" / f"{number}.png")
    encrypt(tmp_path / "in", tmp_path / "out")
    ids = {read_encrypted_png(path).ids.tobytes() for path in (tmp_path / "out").rglob("*.png")}
    assert len(ids) == 70


def test_split_folders_keep_their_names(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        put(tmp_path / "in" / folder / "cat" / "a.png")
    report = encrypt(tmp_path / "in", tmp_path / "out")
    assert list(report.written) == ["train", "valid", "test"]
    assert tree(tmp_path / "out") == tree(tmp_path / "in")
    assert open_source(tmp_path / "out").counts == open_source(tmp_path / "in").counts


def test_arrays_become_a_folder(tmp_path: Path) -> None:
    images, labels = GENERATOR.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8), np.array([1, 0, 1])
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    encrypt(tmp_path / "a.npz", tmp_path / "out")
    decrypt(tmp_path / "out", tmp_path / "back")
    assert np.array_equal(np.array(Image.open(tmp_path / "back" / "train" / "1" / "000002.png")), images[2])
    assert np.array_equal(np.array(Image.open(tmp_path / "back" / "test" / "0" / "000001.png")), images[1])


def test_names_that_collide_keep_their_extensions(tmp_path: Path) -> None:
    names = ["a.jpg", "a.bmp", "b.jpg", "c.jpg.png", "c.jpg", "c.bmp", "x/a.bmp"]
    for name in names:
        put(tmp_path / "in" / "cat" / name)
    put(tmp_path / "in" / "dog" / "a.jpg")
    encrypt(tmp_path / "in", tmp_path / "out")
    files = [name for name in tree(tmp_path / "out") if not name.endswith("/")]
    assert files == [
        "cat/a.bmp.png",
        "cat/a.jpg.png",
        "cat/b.png",
        "cat/c.bmp.png",
        "cat/c.jpg.png",
        "cat/c.jpg.png.png",
        "cat/x/a.png",
        "dog/a.png",
    ]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", ".png", ".jpg", "/"]), min_size=1, max_size=5)
        .map("".join)
        .filter(lambda name: name.strip("./") and "//" not in name and name[0] not in "/." and "/." not in name)
        .filter(lambda name: not name.endswith("/")),
        unique=True,
    )
)
def test_no_two_images_share_a_file(names: list[str]) -> None:
    targets = encrypted_folder._targets([(0, name) for name in names])
    assert len(targets) == len(set(targets.values())) == len(names)
    assert all(target.endswith(".png") for target in targets.values())


@pytest.mark.usefixtures("torchvision")
def test_imagefolder_reads_it(source: Path, tmp_path: Path) -> None:
    """Whoever gets the encrypted folder trains on it with the tools at hand."""
    from torchvision.datasets import ImageFolder

    encrypt(source, tmp_path / "out")
    dataset = ImageFolder(str(tmp_path / "out"), allow_empty=True)
    assert dataset.classes == ["ant", "cat", "dog"]
    assert [label for _, label in dataset] == [1, 1, 2]
    for (path, _), (image, _) in zip(dataset.samples, dataset, strict=True):
        assert np.array_equal(np.array(image), read_encrypted_png(Path(path)).pixels[0])


def test_a_bad_image_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    (source / "cat" / "a.jpg").touch()
    (source / "dog" / "z.png").write_text("text")
    with pytest.raises(BadImagesError) as caught:
        encrypt(source, tmp_path / "new" / "out")
    assert [path for path, _ in caught.value.bad] == ["cat/a.jpg", "dog/z.png"]
    assert tree(tmp_path / "new") == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImagesError):
        encrypt(source, tmp_path / "empty")
    assert tree(tmp_path / "empty") == []


def test_bad_images_may_be_skipped(source: Path, tmp_path: Path) -> None:
    (source / "dog" / "z.png").write_text("text")
    report = encrypt(source, tmp_path / "out", skip_bad=True)
    assert [path for path, _ in report.load.bad] == ["dog/z.png"]
    assert report.load.used == 3
    (source / "dog" / "z.png").unlink()
    assert tree(tmp_path / "out") == tree(source)


def test_nothing_but_bad_images(tmp_path: Path) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "a.png").touch()
    with pytest.raises(DataError, match="None of the 1"):
        encrypt(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_nothing_is_encrypted_twice(source: Path, tmp_path: Path) -> None:
    encrypt(source, tmp_path / "out")
    with pytest.raises(BadImagesError, match="already encrypted by ppfed"):
        encrypt(tmp_path / "out", tmp_path / "twice")


def test_out_must_be_new_or_empty(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for work in (encrypt, decrypt):
        with pytest.raises(UsageError, match="not empty"):
            work(source, tmp_path / "full")
        with pytest.raises(UsageError, match="is a file"):
            work(source, tmp_path / "full" / "mine.txt")
        for inside in (source, source / "out", source / ".." / "in" / "out"):
            with pytest.raises(UsageError, match="lies in"):
                work(source, inside)
    assert tree(tmp_path / "full") == ["mine.txt"]
    assert tree(source) == ["ant/", "cat/", "cat/a.png", "cat/b.png", "dog/", "dog/x/", "dog/x/y.png"]


def test_an_empty_folder_is_filled_in_place(source: Path, tmp_path: Path) -> None:
    """It may be a mount point, which cannot be replaced."""
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    encrypt(source, tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == inode
    assert tree(tmp_path / "out") == tree(source)


def test_a_new_folder_has_the_usual_permissions(source: Path, tmp_path: Path) -> None:
    encrypt(source, tmp_path / "out")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PPFedError, match="No space left on device"):
        encrypt_folder(open_source(source), make_cipher(CipherSpec(), KEY), tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]


def test_a_wrong_key_names_both(source: Path, tmp_path: Path) -> None:
    encrypt(source, tmp_path / "out")
    with pytest.raises(WrongKeyError, match=f"(?s){KEY.fingerprint}.*{OTHER_KEY.fingerprint}"):
        decrypt_folder(tmp_path / "out", OTHER_KEY, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_files_that_are_not_encrypted_are_named(source: Path, tmp_path: Path) -> None:
    encrypt(source, tmp_path / "out")
    put(tmp_path / "out" / "cat" / "plain.png")
    (tmp_path / "out" / "notes.txt").write_text("text")
    (tmp_path / "out" / ".DS_Store").write_text("x")
    with pytest.raises(BadImagesError) as caught:
        decrypt(tmp_path / "out", tmp_path / "back")
    assert dict(caught.value.bad)["cat/plain.png"] == "not encrypted by ppfed"
    assert [path for path, _ in caught.value.bad] == ["notes.txt", "cat/plain.png"]
    assert not (tmp_path / "back").exists()
    report = decrypt(tmp_path / "out", tmp_path / "back", skip_bad=True)
    assert (report.written, len(report.bad)) == (3, 2)
    assert tree(tmp_path / "back") == tree(source)


def test_settings_may_be_mixed(source: Path, tmp_path: Path) -> None:
    """Each file says how it was encrypted."""
    for number, spec in enumerate([CipherSpec(), CipherSpec(scope=Scope.FIXED), CipherSpec(colour_shuffle=False)]):
        encrypt(source, tmp_path / "out" / f"{number}", spec)
    assert decrypt(tmp_path / "out", tmp_path / "back").written == 9
    for number in range(3):
        restored = np.array(Image.open(tmp_path / "back" / f"{number}" / "cat" / "a.png"))
        assert np.array_equal(restored, np.array(Image.open(source / "cat" / "a.png")))


def test_no_encrypted_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="no encrypted images"):
        decrypt(tmp_path / "in", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_one_file(source: Path, tmp_path: Path) -> None:
    encrypt(source, tmp_path / "out")
    file = tmp_path / "out" / "cat" / "a.png"
    decrypt_file(file, KEY, tmp_path / "new" / "a.png")
    restored = np.array(Image.open(tmp_path / "new" / "a.png"))
    assert np.array_equal(restored, np.array(Image.open(source / "cat" / "a.png")))
    with pytest.raises(UsageError, match="exists already"):
        decrypt_file(file, KEY, tmp_path / "new" / "a.png")
    with pytest.raises(WrongKeyError):
        decrypt_file(file, OTHER_KEY, tmp_path / "b.png")
    with pytest.raises(DataError, match="not encrypted"):
        decrypt_file(source / "cat" / "a.png", KEY, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
