"""``ppfed encrypt``, ``ppfed decrypt`` and ``ppfed preview``: whole commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info, cipher_names
from ppfed.cli import images
from ppfed.errors import BadImagesError, PPFedError, UsageError, WrongKeyError
from ppfed.federation import Exchange
from ppfed.images.png import read_encrypted_png
from ppfed.keys.files import write_key_file
from ppfed.keys.master import MasterKey
from ppfed.leakage.reference import quoted
from ppfed.preview import REDUCED

KEY = MasterKey(bytes(range(32)))
app = typer.Typer(pretty_exceptions_enable=False)
for command in (images.encrypt, images.decrypt, images.preview):
    app.command(command.__name__)(command)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ten images of each of two classes, and the key."""
    monkeypatch.delenv("PPFED_KEY_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    write_key_file(tmp_path / "owner.key", KEY, passphrase=None)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run(*arguments: str) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(error: type[PPFedError], *arguments: str) -> PPFedError:
    result = call(*arguments)
    assert isinstance(result.exception, error), result.output
    return result.exception


def test_there_and_back(folder: Path) -> None:
    result = run("encrypt", "photos", "--key", "owner.key", "--out", "encrypted")
    assert "10  cat" in result.stdout
    assert "encrypted 20 images" in result.stdout
    assert KEY.fingerprint in result.stdout
    assert "warning" not in result.stderr
    assert "decrypted 20 images" in run("decrypt", "encrypted", "--key", "owner.key", "--out", "restored").stdout
    for path in (folder / "photos").rglob("*.png"):
        restored = folder / "restored" / path.relative_to(folder / "photos")
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(restored)))


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("shuffle", [True, False])
def test_options_reach_the_files(folder: Path, scope: Scope, shuffle: bool) -> None:
    flag = "--shuffle" if shuffle else "--no-shuffle"
    result = run("encrypt", "photos", "--key", "owner.key", "--out", "out", "--scope", scope, flag, "--size", "3x5")
    image = read_encrypted_png(folder / "out" / "cat" / "0.png")
    assert image.cipher == CipherSpec("np-v1", scope, shuffle)
    assert image.shape == (3, 5, 3)
    assert ("warning" in result.stderr) == (scope is Scope.FIXED)
    assert ("recover" in result.stderr) == (scope is Scope.FIXED)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_channels_reach_the_files(folder: Path, channels: int | None) -> None:
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / "photos" / "cat" / "grey.png")
    wanted = [] if channels is None else ["--channels", str(channels)]
    run("encrypt", "photos", "--key", "owner.key", "--out", "out", *wanted)
    assert read_encrypted_png(folder / "out" / "cat" / "grey.png").shape == (6, 8, channels or 1)
    assert read_encrypted_png(folder / "out" / "cat" / "0.png").shape == (6, 8, channels or 3)


def test_two_channels_are_refused(folder: Path) -> None:
    error = fail(UsageError, "encrypt", "photos", "--key", "owner.key", "--out", "out", "--channels", "2")
    assert "1 or 3" in error.message
    assert not (folder / "out").exists()


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("name", [name for name in cipher_names() if name != "np-v1"])
def test_every_cipher_there_and_back(folder: Path, name: str, scope: Scope) -> None:
    result = run(
        *("encrypt", "photos", "--key", "owner.key", "--out", "out"),
        *("--cipher", name, "--scope", scope, "--size", "8x12"),
    )
    spec = cipher_info(name).spec(scope)
    assert f"{spec}, key" in result.stdout
    assert (cipher_info(name).fixed_scope in result.stderr) == (scope is Scope.FIXED)
    image = read_encrypted_png(folder / "out" / "cat" / "0.png")
    assert image.cipher == spec
    run("decrypt", "out", "--key", "owner.key", "--out", "restored")
    # What was encrypted is the resized image, which NP restores too.
    run("encrypt", "photos", "--key", "owner.key", "--out", "other", "--size", "8x12")
    run("decrypt", "other", "--key", "owner.key", "--out", "expected")
    for path in (folder / "expected").rglob("*.png"):
        restored = folder / "restored" / path.relative_to(folder / "expected")
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(restored)))


def test_what_a_cipher_cannot_do_is_said(folder: Path) -> None:
    start = ("encrypt", "photos", "--key", "owner.key", "--out", "out", "--cipher")
    assert "le-v1" in fail(UsageError, *start, "le-v9").hint
    assert "no colour shuffle" in fail(UsageError, *start, "le-v1", "--shuffle").message
    # The photos are 6x8, and blocks 4x4.
    assert "6x8" in fail(UsageError, *start, "etc-v1").message
    assert not (folder / "out").exists()
    run(*start, "etc-v1", "--no-shuffle", "--size", "8")


def test_bad_images(folder: Path) -> None:
    (folder / "photos" / "cat" / "[bold]empty.png").touch()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "photos" / "dog" / "wide.png")
    error = fail(BadImagesError, "encrypt", "photos", "--key", "owner.key", "--out", "out")
    assert "--skip-bad" in error.hint
    assert not (folder / "out").exists()
    result = run("encrypt", "photos", "--key", "owner.key", "--out", "out", "--skip-bad")
    assert "cat/[bold]empty.png: empty file" in result.stdout
    assert "1  note: 16-bit reduced to 8 bits" in result.stdout
    assert "encrypted 21 images" in result.stdout


def test_images_that_turn_out_nearly_black_are_warned_of(folder: Path) -> None:
    Image.fromarray(np.full((6, 8), 4095, np.uint16)).save(folder / "photos" / "dog" / "12-bit.png")
    result = run("encrypt", "photos", "--key", "owner.key", "--out", "out")
    assert "1  warning: 16-bit, but only the lowest 12 bits are used: nearly black" in result.stdout
    assert "reduced" not in result.stdout
    shown = run("preview", "photos", "--key", "owner.key", "--out", "sheet.png", "--count", "21", "--size", "8")
    assert "1  warning: 16-bit, but only the lowest 12 bits" in shown.stdout


def test_names_do_not_steer_the_terminal(folder: Path) -> None:
    (folder / "photos" / "cow\x1b]0;title\x07").mkdir()
    (folder / "photos" / "cow\x1b]0;title\x07" / "a\x1b[2J\n100 images.png").touch()
    result = run("encrypt", "photos", "--key", "owner.key", "--out", "out", "--skip-bad")
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}100 images.png: empty file" in result.stdout


def test_an_npz(folder: Path) -> None:
    np.savez("a.npz", train_images=np.zeros((2, 4, 4), np.uint8), train_labels=np.array([0, 1]))
    run("encrypt", "a.npz", "--key", "owner.key", "--out", "out")
    assert (folder / "out" / "train" / "1" / "000001.png").is_file()


def test_one_file(folder: Path) -> None:
    run("encrypt", "photos", "--key", "owner.key", "--out", "out")
    run("decrypt", "out/cat/3.png", "--key", "owner.key", "--out", "mine.png")
    run("decrypt", "out/cat/3.png", "--key", "owner.key", "--out", "some")
    for path in ("mine.png", "some/3.png"):
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open("photos/cat/3.png")))


def test_wrong_key_and_missing_source(folder: Path) -> None:
    write_key_file(folder / "other.key", MasterKey(bytes(32)), passphrase=None)
    run("encrypt", "photos", "--key", "owner.key", "--out", "out")
    assert KEY.fingerprint in fail(WrongKeyError, "decrypt", "out", "--key", "other.key", "--out", "back").message
    fail(UsageError, "decrypt", "nowhere", "--key", "owner.key", "--out", "back")
    fail(UsageError, "encrypt", "photos", "--out", "out2")
    fail(UsageError, "encrypt", "photos", "--key", "owner.key", "--out", "out2", "--size", "big")
    fail(UsageError, "encrypt", "photos", "--key", "owner.key", "--out", "out")


def test_preview(folder: Path) -> None:
    result = run("preview", "photos", "--key", "owner.key", "--out", "sheet.png", "--count", "3", "--size", "16")
    assert "3 images" in result.stdout
    with Image.open("sheet.png") as sheet:
        assert sheet.height > 3 * 96
    assert "warning" in run("preview", "photos", "--key", "owner.key", "--out", "a.png", "--scope", "fixed").stderr
    fail(UsageError, "preview", "photos", "--key", "owner.key", "--out", "sheet.pdf")
    run("preview", "photos", "--key", "owner.key", "--out", "le.png", "--cipher", "le-v1", "--size", "8")


def test_a_preview_of_large_images_says_what_the_solver_was_given(folder: Path) -> None:
    (folder / "large" / "cat").mkdir(parents=True)
    Image.new("RGB", (72, 96), (200, 150, 100)).save(folder / "large" / "cat" / "one.png")
    result = run("preview", "large", "--key", "owner.key", "--out", "sheet.png")
    assert REDUCED in result.stdout
    assert REDUCED not in run("preview", "large", "--key", "owner.key", "--out", "a.png", "--size", "16").stdout


@pytest.mark.parametrize(("out", "said"), [("nowhere/a.png", "no folder nowhere"), ("photos.png", "is a folder")])
def test_a_preview_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    (folder / "photos.png").mkdir()

    def work(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("ppfed.images.open.open_source", work)
    assert said in fail(UsageError, "preview", "photos", "--key", "owner.key", "--out", out).message


@pytest.mark.parametrize("channels", [1, 3])
def test_a_preview_quotes_what_was_measured_of_such_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    (folder / "own" / "cat").mkdir(parents=True)
    Image.new("L" if channels == 1 else "RGB", (16, 16)).save(folder / "own" / "cat" / "one.png")
    said: list[str] = []
    monkeypatch.setattr("ppfed.preview.write_contact_sheet", lambda *_, finding, **__: said.append(finding))
    run("preview", "own", "--key", "owner.key", "--out", "sheet.png")
    assert said == [quoted(CipherSpec(), Exchange.IMAGES, channels)]
