"""The contact sheet."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ppfed.attacks.values.fold import folds, keyless_view
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import BLOCK_PX, CipherSpec, Scope, cipher_info, cipher_names
from ppfed.errors import DataError, PPFedError
from ppfed.images.open import open_source
from ppfed.images.source import LoadReport
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.preview import (
    ENCRYPTED,
    FOLD,
    PLAIN,
    REDUCED,
    RESTORED,
    SOLVED_PX,
    Sample,
    choose_samples,
    contact_sheet,
    solved_shape,
    write_contact_sheet,
)

KEY = MasterKey(bytes(32))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label, name in enumerate(["cat", "dog", "$x^2"]):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((4, 5, 3), 10 * number + label, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{number}.png")
    return tmp_path / "in"


def levels(samples: list[Sample]) -> list[int]:
    return [int(sample.image.pixels[0, 0, 0, 0]) for sample in samples]


def choose(root: Path, count: int, seed: int = 0) -> list[Sample]:
    return choose_samples(open_source(root), size=None, count=count, seed=seed, report=LoadReport())


def test_classes_take_turns_and_a_seed_decides(root: Path) -> None:
    samples = choose(root, 6)
    assert [sample.class_name for sample in samples] == ["$x^2", "cat", "dog"] * 2
    assert len(set(levels(samples))) == 6
    assert levels(samples) == levels(choose(root, 6))
    assert levels(samples) != levels(choose(root, 6, seed=1))
    assert len(choose(root, 100)) == 15


def test_bad_images_are_replaced(root: Path) -> None:
    for number in range(4):
        (root / "cat" / f"{number}.png").write_text("text")
    report = LoadReport()
    samples = choose_samples(open_source(root), size=None, count=8, seed=0, report=report)
    assert len(samples) == 8
    assert 0 < len(report.bad) <= 4


def test_no_usable_image(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").touch()
    with pytest.raises(DataError, match="empty file"):
        choose(tmp_path, 3)


@pytest.mark.parametrize("spec", [CipherSpec(), CipherSpec(scope=Scope.FIXED, colour_shuffle=False)], ids=str)
@pytest.mark.parametrize("shape", [(1, 4, 5, 3), (1, 32, 32, 1), (1, 700, 300, 3)], ids=str)
def test_what_is_drawn(spec: CipherSpec, shape: tuple[int, ...]) -> None:
    image = PlainImages(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    cipher = make_cipher(spec, KEY)
    figure = contact_sheet([Sample("cat", image)], cipher)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(drawn) == 3
    assert all(max(view.shape[:2]) >= 96 for view in drawn)
    for view, axes in zip(drawn, figure.axes, strict=True):
        # One value is one pixel of the sheet, or the drawing would blur what it shows.
        extent = axes.get_window_extent()
        assert (round(extent.height), round(extent.width)) == view.shape[:2]
    step = -(-max(shape[1:3]) // 256)
    factor = drawn[0].shape[0] // len(image.pixels[0, ::step])
    small = [view[::factor, ::factor].reshape(len(view) // factor, view.shape[1] // factor, -1) for view in drawn]
    assert np.array_equal(small[0], image.pixels[0, ::step, ::step])
    assert not np.array_equal(small[1], small[0])
    # The view does not depend on the key or the id, so encrypting again gives the same.
    assert np.array_equal(small[2], keyless_view(cipher.encrypt(image))[0, ::step, ::step])


@pytest.mark.parametrize("scope", Scope)
def test_what_is_written_on_it(scope: Scope) -> None:
    image = PlainImages(np.zeros((1, 4, 5, 3), np.uint8))
    figure = contact_sheet([Sample("cat", image)], make_cipher(CipherSpec(scope=scope), KEY))
    text = " ".join(written.get_text() for written in figure.texts)
    for said in (PLAIN.title, ENCRYPTED.title, FOLD.title, "cat", str(scope), KEY.fingerprint):
        assert said in text
    assert RESTORED.title not in text
    assert "visual obfuscation, not confidentiality" in text.lower()
    assert ("one mask for all images" in text) == (scope is Scope.FIXED)


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("name", [name for name in cipher_names() if not folds(name)])
def test_other_ciphers_show_no_fold_but_say_what_they_leave(name: str, scope: Scope) -> None:
    info = cipher_info(name)
    image = PlainImages(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8))
    figure = contact_sheet([Sample("cat", image)], make_cipher(info.spec(scope), KEY))
    assert len(figure.axes) == 2
    text = " ".join(written.get_text() for written in figure.texts)
    assert "fold" not in text
    assert info.leaves in text
    assert (info.fixed_scope in text) == (scope is Scope.FIXED)


@pytest.mark.parametrize(("name", "columns"), [("np-v1", 4), ("le-v1", 3)])
def test_a_trained_attacker_gets_a_column_and_its_number(name: str, columns: int) -> None:
    """Every sample goes through it encrypted, whatever its size, and the sentence stands below."""
    random = np.random.default_rng(0)
    samples = [
        Sample("cat", PlainImages(random.integers(0, 256, shape, dtype=np.uint8)))
        for shape in ((1, 16, 16, 3), (1, 8, 12, 3))
    ]
    seen: list[UInt8Array] = []

    def restore(ciphertexts: UInt8Array) -> UInt8Array:
        seen.append(ciphertexts)
        return ciphertexts // 2

    cipher = make_cipher(cipher_info(name).spec(), KEY)
    figure = contact_sheet(samples, cipher, restore=restore, finding="It restores these images to SSIM 0.47.")
    assert [batch.shape for batch in seen] == [sample.image.pixels.shape for sample in samples]
    assert len(figure.axes) == 2 * columns
    for row, ciphertexts in enumerate(seen):
        drawn = np.asarray(figure.axes[columns * row + columns - 1].images[0].get_array())
        encrypted = np.asarray(figure.axes[columns * row + 1].images[0].get_array())
        assert np.array_equal(drawn, encrypted // 2)
        assert not np.array_equal(ciphertexts, samples[row].image.pixels)
    text = " ".join(written.get_text() for written in figure.texts)
    assert RESTORED.title in text
    assert "SSIM 0.47" in text


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([1, 3]))
def test_what_the_solver_is_given_is_small(height: int, width: int, channels: int) -> None:
    shape = solved_shape((height, width, channels))
    if max(height, width) <= SOLVED_PX:
        assert shape == (height, width, channels)
        return
    assert max(shape[:2]) == SOLVED_PX
    assert shape[0] % BLOCK_PX == shape[1] % BLOCK_PX == 0
    # Rounding to whole blocks moves a side by half a block, and none vanishes.
    factor = SOLVED_PX / max(height, width)
    assert all(abs(is_px - was_px * factor) <= BLOCK_PX for is_px, was_px in zip(shape, (height, width), strict=False))


@pytest.mark.parametrize("name", ["np-v1", "le-v1", "etc-v1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_solver_is_given_large_images_reduced_and_the_sheet_says_so(name: str, channels: int) -> None:
    """Encrypted at that size, for nobody can reduce a ciphertext; the other columns keep theirs."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 200, 120, channels), dtype=np.uint8)
    cipher = make_cipher(cipher_info(name).spec(), KEY)
    seen: list[UInt8Array] = []
    steps: list[int] = []

    def restore(ciphertexts: UInt8Array) -> UInt8Array:
        seen.append(ciphertexts)
        return ciphertexts

    small = np.full((1, 8, 8, channels), 9, np.uint8)
    samples = [Sample("cat", PlainImages(pixels)), Sample("cat", PlainImages(small))]
    figure = contact_sheet(samples, cipher, restore=restore, progress=steps.append)
    assert [batch.shape for batch in seen] == [(1, 64, 40, channels), (1, 8, 8, channels)]
    assert sum(steps) == 2
    assert [len(np.asarray(axes.images[0].get_array())) for axes in figure.axes[:2]] == [200, 200]
    assert REDUCED in " ".join(written.get_text() for written in figure.texts)
    figure = contact_sheet(samples[1:], cipher, restore=restore)
    assert "reduced" not in " ".join(written.get_text() for written in figure.texts)


def test_the_file_is_private(root: Path, tmp_path: Path) -> None:
    cipher = make_cipher(CipherSpec(), KEY)
    write_contact_sheet(tmp_path / "sheet.png", choose(root, 8), cipher)
    assert stat.S_IMODE((tmp_path / "sheet.png").stat().st_mode) == 0o600
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 300
    with pytest.raises(PPFedError, match="cannot be written"):
        write_contact_sheet(tmp_path / "nowhere" / "sheet.png", choose(root, 1), cipher)
