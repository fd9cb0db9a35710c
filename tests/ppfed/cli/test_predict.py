"""``ppfed predict``: whole commands on a model folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from ppfed import prediction
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.cli import predict as command
from ppfed.cli.options import load_key
from ppfed.cli.predict import predict
from ppfed.errors import ModelError, UsageError, WrongKeyError
from ppfed.federation import CipherSettings
from ppfed.images.png import encode_encrypted_png
from ppfed.images.types import PlainImages
from ppfed.keys.files import write_key_file
from ppfed.keys.master import KEY_BYTES, MasterKey
from ppfed.model_folder import load_model, write_model
from ppfed.networks.classifier import build_network
from ppfed.prediction import predict_images

from ..model_cards import small_card

CPU = torch.device("cpu")
KEY = MasterKey(bytes(range(KEY_BYTES)))
SPEC = CipherSpec(scope=Scope.FIXED)
CLASSES = ("rose", "tul[i]p", "da\N{RIGHT-TO-LEFT OVERRIDE}isy", "lily")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPFED_KEY_FILE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    card = small_card(cipher=CipherSettings(scope=Scope.FIXED), fingerprint=KEY.fingerprint, classes=CLASSES)
    write_model(Path("model"), build_network(card.network_config(), 0), card, [])
    write_key_file(Path("our.key"), KEY, None)
    write_key_file(Path("other.key"), MasterKey(bytes(KEY_BYTES)), None)
    random = np.random.default_rng(0)
    for name in ("a.png", "[b].png"):
        Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(name)
    plain = PlainImages(random.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8))
    Path("encrypted.png").write_bytes(encode_encrypted_png(make_cipher(SPEC, KEY).encrypt(plain)))
    Path("bad.png").write_text("no image")


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(predict)
    return CliRunner().invoke(app, list(arguments))


def expected(name: str) -> dict[str, float]:
    (prediction,) = predict_images(load_model(Path("model"), CPU), KEY, [Path(name)], CPU)
    return dict(zip(CLASSES, prediction.probabilities.tolist(), strict=True))


def test_json_has_every_probability() -> None:
    result = call("model", "--key", "our.key", "--json", "a.png", "[b].png", "encrypted.png")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [entry["file"] for entry in found] == ["a.png", "[b].png", "encrypted.png"]
    for entry in found:
        # A batch of three may add 32-bit numbers in another order than a batch of one.
        assert entry["probabilities"] == pytest.approx(expected(entry["file"]), abs=1e-5)
        assert entry["class"] == max(entry["probabilities"], key=entry["probabilities"].get)
    assert result.stderr == ""


@pytest.mark.parametrize("top", [1, 2, 3, 9])
def test_the_table_shows_the_best_classes(top: int) -> None:
    result = call("model", "--key", "our.key", "--top", str(top), "a.png", "[b].png")
    assert result.exit_code == 0, result.output
    for name in ("a.png", "[b].png"):
        (line,) = (line for line in result.stdout.splitlines() if name in line)
        ranked = sorted(expected(name).items(), key=lambda item: -item[1])
        for rank, (label, probability) in enumerate(ranked):
            shown = f"{label} {probability:.1%}".replace("\N{RIGHT-TO-LEFT OVERRIDE}", "\N{REPLACEMENT CHARACTER}")
            assert (shown in line) == (0 < rank < top)
        assert f"{ranked[0][1]:.1%}" in line
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in result.stdout


def test_an_encrypted_image_needs_no_key() -> None:
    result = call("model", "encrypted.png")
    assert result.exit_code == 0, result.output
    assert "encrypted.png" in result.stdout


def test_a_plain_image_needs_the_key() -> None:
    result = call("model", "encrypted.png", "a.png")
    assert isinstance(result.exception, UsageError)
    assert "--key" in result.exception.hint


def test_a_bad_image_is_named_and_the_others_are_classified() -> None:
    result = call("model", "--key", "our.key", "--json", "a.png", "bad.png", "missing.png", "encrypted.png")
    assert result.exit_code == 1
    assert [entry["file"] for entry in json.loads(result.stdout)] == ["a.png", "encrypted.png"]
    lines = result.stderr.splitlines()
    assert [line.partition(".png: ")[0] for line in lines] == ["left out: bad", "left out: missing"]
    assert lines[1].endswith("no such file")


def test_a_folder_is_all_images_in_it() -> None:
    for name in ("deep/z/1.PNG", "deep/a/2.png", "deep/3.png", "deep/.hidden/4.png", "deep/.5.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("a.png", name)
    shutil.copy("encrypted.png", "deep/encrypted.png")
    shutil.copy("bad.png", "deep/z/bad.png")
    Path("deep/notes.txt").write_text("no image, and not called one")
    Path("deep/a/round").symlink_to(Path("deep").absolute())
    result = call("model", "--key", "our.key", "--json", "[b].png", "deep")
    assert result.exit_code == 1
    files = ["[b].png", "deep/3.png", "deep/a/2.png", "deep/encrypted.png", "deep/z/1.PNG"]
    assert [entry["file"] for entry in json.loads(result.stdout)] == files
    told, left_out = result.stderr.splitlines()
    assert told == "deep: 5 image files"
    assert left_out.startswith("left out: deep/z/bad.png: ")


def test_a_folder_without_images_is_named() -> None:
    Path("empty").mkdir()
    result = call("model", "--key", "our.key", "--json", "empty", "a.png")
    assert result.exit_code == 1
    assert [entry["file"] for entry in json.loads(result.stdout)] == ["a.png"]
    assert "left out: empty: a folder without image files" in result.stderr


def test_a_folder_below_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("deep/closed").mkdir(parents=True)
    shutil.copy("a.png", "deep/a.png")
    scan = os.scandir

    # The mode of a folder does not keep root out.
    def refuse(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(prediction.os, "scandir", refuse)
    result = call("model", "--key", "our.key", "--json", "deep")
    assert result.exit_code == 1
    assert [entry["file"] for entry in json.loads(result.stdout)] == ["deep/a.png"]
    assert "left out: deep/closed: folder cannot be read: Permission denied" in result.stderr


def test_many_images_are_classified_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.png", "encrypted.png", "bad.png", "[b].png", "a.png"]
    steps: list[int] = []
    keys: list[object] = []

    @contextlib.contextmanager
    def bar(_description: str, total: int) -> Iterator[Callable[[int], None]]:
        assert total == len(names)
        yield steps.append

    def load(name: str | None) -> MasterKey:
        keys.append(name)
        return load_key(name)

    monkeypatch.setattr(command, "progress_bar", bar)
    monkeypatch.setattr(command, "load_key", load)
    monkeypatch.setattr(command, "_STEP", 2)
    result = call("model", "--key", "our.key", "--json", *names)
    assert [entry["file"] for entry in json.loads(result.stdout)] == [one for one in names if one != "bad.png"]
    assert "left out: bad.png" in result.stderr
    assert steps == [2, 2, 1]
    assert keys == ["our.key"]


def test_json_commands_no_terminal() -> None:
    Image.new("RGB", (8, 8)).save("\N{RIGHT-TO-LEFT OVERRIDE}\x9b2J.png")
    result = call("model", "--key", "our.key", "--json", "\N{RIGHT-TO-LEFT OVERRIDE}\x9b2J.png")
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    (entry,) = json.loads(result.stdout)
    assert set(entry["probabilities"]) == set(CLASSES)


def test_only_bad_images_leave_json_whole() -> None:
    result = call("model", "--json", "bad.png")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == []
    assert call("model", "bad.png").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("model", "--key", "other.key", "a.png"), WrongKeyError),
        (("nothing", "--key", "our.key", "a.png"), ModelError),
        (("model", "--key", "our.key", "--device", "abacus", "a.png"), UsageError),
    ],
)
def test_what_cannot_work_is_an_error(arguments: tuple[str, ...], error: type[Exception]) -> None:
    result = call(*arguments)
    assert isinstance(result.exception, error)
    assert result.stdout == ""


def test_no_image_is_a_mistake() -> None:
    assert call("model").exit_code == 2
