"""``ppfed evaluate``: whole commands on a model folder and labelled images."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from clients.preparation import prepare
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import Scope
from ppfed.cli import evaluate as command
from ppfed.cli import images, main
from ppfed.errors import BadImagesError, DataError, PPFedError, UsageError, WrongKeyError
from ppfed.federation import CipherSettings, FederationSettings
from ppfed.images.open import open_source
from ppfed.images.png import encode_encrypted_png
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.files import write_key_file
from ppfed.keys.master import KEY_BYTES, MasterKey
from ppfed.model_folder import load_model, write_model
from ppfed.networks.classifier import build_network
from ppfed.prediction import predict_images
from ppfed.training.loop import predict_logits

from ..model_cards import small_card

CPU = torch.device("cpu")
KEY = MasterKey(bytes(range(KEY_BYTES)))
CLASSES = ("rose", "tul[i]p", "da\N{RIGHT-TO-LEFT OVERRIDE}isy")
COUNTS = {"rose": 5, "tul[i]p": 4, "da\N{RIGHT-TO-LEFT OVERRIDE}isy": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: drawing its curve takes longer than a test."""
    folder = tmp_path_factory.mktemp("model") / "model"
    write(folder, CLASSES)
    return folder


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.delenv("PPFED_KEY_FILE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    write_key_file(Path("our.key"), KEY, None)
    write_key_file(Path("other.key"), MasterKey(bytes(KEY_BYTES)), None)
    draw(Path("photos"), COUNTS)


def write(folder: Path, classes: tuple[str, ...], bias: tuple[float, ...] | None = None, **changes: Any) -> None:
    # Fixed scope: an image gets the same answer each time.
    fields = {"cipher": CipherSettings(scope=Scope.FIXED), "fingerprint": KEY.fingerprint, "classes": classes}
    card = small_card(**{**fields, **changes})
    network = build_network(card.network_config(), 0)
    with torch.no_grad():
        # An untrained network says the same of all images, unless what it says of each is compared with the mean.
        drawn = np.stack([patches(np.random.default_rng(seed)) for seed in range(100)])
        encrypted = make_cipher(card.cipher_spec(), KEY).encrypt(PlainImages(drawn[:, :8, :8])).pixels
        mean = predict_logits(network, torch.from_numpy(encrypted)).mean(0)
        network.resnet.fc.bias.sub_(mean if bias is None else mean - torch.tensor(bias))
    write_model(folder, network, card, [])


def draw(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(patches(random)).save(folder / name / f"{number}.png")


def patches(random: np.random.Generator) -> UInt8Array:
    """Draw an image of 9x9 that an untrained network tells from another, as it does not tell noise from noise."""
    return random.integers(0, 256, (3, 3, 3), dtype=np.uint8).repeat(3, 0).repeat(3, 1)


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command.evaluate)
    return CliRunner().invoke(app, list(arguments))


def figures(*arguments: str) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def fail(error: type[PPFedError], *arguments: str) -> PPFedError:
    result = call(*arguments)
    assert isinstance(result.exception, error), result.output
    assert result.stdout == ""
    return result.exception


def expected(folder: Path) -> list[list[int]]:
    """Count what ``predict`` says about each file."""
    model = load_model(Path("model"), CPU)
    matrix = []
    for name in CLASSES:
        found = predict_images(model, KEY, sorted((folder / name).iterdir()), CPU)
        said = Counter(one.top_class for one in found)
        matrix.append([said[other] for other in CLASSES])
    return matrix


def test_it_counts_what_predict_says() -> None:
    found = figures("model", "photos", "--key", "our.key")
    matrix = expected(Path("photos"))
    assert found["confusion"] == matrix
    assert sum(any(column) for column in zip(*matrix, strict=True)) > 1  # else the check says little
    assert (found["images"], found["left_out"], found["part"], found["encrypted"]) == (12, 0, None, False)
    assert found["correct"] == sum(matrix[place][place] for place in range(3))
    assert found["accuracy"] == found["correct"] / 12
    assert found["accuracy_interval"][0] < found["accuracy"] < found["accuracy_interval"][1]
    assert [(one["name"], one["images"]) for one in found["classes"]] == list(COUNTS.items())


def test_it_is_printed() -> None:
    result = call("model", "photos", "--key", "our.key")
    found = figures("model", "photos", "--key", "our.key")
    assert result.exit_code == 0
    assert "12 images measured: all of photos" in result.stdout
    low, high = found["accuracy_interval"]
    assert f"accuracy: {found['accuracy']:.1%}, {found['correct']} right" in result.stdout
    assert f"95% interval: {low:.1%} to {high:.1%}" in result.stdout
    assert f"{found['balanced_accuracy']:.1%}" in result.stdout
    rows = [line for line in result.stdout.splitlines() if "tul[i]p" in line]
    # Its metrics, the head of the matrix, and its row there.
    assert len(rows) == 3
    assert rows[2].replace("│", "").split()[1:] == [str(count) for count in found["confusion"][1]]
    assert "specificity" not in result.stdout
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in result.output
    assert "has no test part" in result.stderr


def test_two_classes_have_a_specificity() -> None:
    write(Path("pair"), ("rose", "tul[i]p"))
    draw(Path("two"), {"rose": 3, "tul[i]p": 3})
    assert "specificity" in call("pair", "two", "--key", "our.key").stdout


@pytest.mark.parametrize(("parts", "measured"), [(("train", "val", "test"), "test"), (("train", "valid"), "valid")])
def test_the_test_part_is_measured(parts: tuple[str, ...], measured: str) -> None:
    for seed, part in enumerate(parts):
        draw(Path("divided") / part, dict.fromkeys(CLASSES, seed + 1), seed)
    found = figures("model", "divided", "--key", "our.key")
    assert (found["part"], found["images"]) == (measured, 3 * len(parts))
    assert found["confusion"] == expected(Path("divided") / measured)
    result = call("model", "divided", "--key", "our.key")
    assert f"part {measured} of divided" in result.stdout
    assert result.stderr == ""


def test_those_alone_are_measured_that_an_owner_holds_out(
    make_settings: Callable[..., FederationSettings],
) -> None:
    """Images of 9x9 that the federation and the model resize alike."""
    draw(Path("many"), dict.fromkeys(CLASSES, 30))
    settings = make_settings(classes=CLASSES)
    prepared = prepare(open_source(Path("many")), Path("many"), KEY, settings, Path("state"))
    found = figures("model", "many", "--key", "our.key", "--held-out")
    assert [one["images"] for one in found["classes"]] == [held_out for _, held_out in prepared.by_class]
    assert 0 < found["images"] < 90 / 4
    assert (found["part"], found["held_out_only"]) == (None, True)
    shown = call("model", "many", "--key", "our.key", "--held-out", "--out", "answers.csv")
    assert "those of many that a federation with this key holds out" in shown.stdout
    assert "too good" not in shown.stderr
    assert "--held-out measures those" in call("model", "many", "--key", "our.key").stderr
    # Each image by itself: neither its name nor its class decides.
    with Path("answers.csv").open() as file:
        names = [row["image"] for row in csv.DictReader(file)]
    for number, name in enumerate(names):
        Path("again/rose").mkdir(parents=True, exist_ok=True)
        (Path("many") / name).rename(Path("again/rose") / f"{number}.png")
    assert figures("model", "again", "--key", "our.key", "--held-out")["images"] == len(names)
    assert "none of the " in fail(DataError, "model", "many", "--key", "our.key", "--held-out").message


def test_numbered_classes_are_matched_by_position() -> None:
    pixels = [np.array(Image.open(path)) for name in CLASSES for path in sorted((Path("photos") / name).iterdir())]
    labels = [place for place, count in enumerate(COUNTS.values()) for _ in range(count)]
    # The other way round, so that an order of files cannot stand in for the labels.
    np.savez("photos.npz", train_images=pixels[::-1], train_labels=labels[::-1])
    found = figures("model", "photos.npz", "--key", "our.key")
    assert found["confusion"] == expected(Path("photos"))
    assert (found["part"], found["matched_by"]) == ("train", "position")
    assert "1 is tul[i]p" in call("model", "photos.npz", "--key", "our.key").stderr


def test_ten_numbers_are_no_order_of_names() -> None:
    """The folder of an encrypted ``.npz`` lists 10 before 2."""
    names = tuple(f"class {number}" for number in range(12))
    write(Path("dozen"), names)
    draw(Path("numbers"), {str(number): number + 1 for number in range(12)})
    found = figures("dozen", "numbers", "--key", "our.key")
    assert [one["images"] for one in found["classes"]] == list(range(1, 13))


def test_names_that_the_model_knows_are_names() -> None:
    write(Path("digits"), ("1", "0"))
    draw(Path("numbers"), {"0": 2, "1": 3})
    found = figures("digits", "numbers", "--key", "our.key")
    assert [(one["name"], one["images"]) for one in found["classes"]] == [("1", 3), ("0", 2)]
    assert found["matched_by"] == "name"


def test_an_encrypted_folder_needs_no_key() -> None:
    app = typer.Typer()
    app.command()(images.encrypt)
    made = CliRunner().invoke(
        app, ["photos", "--key", "our.key", "--scope", "fixed", "--size", "8", "--out", "encrypted"]
    )
    assert made.exit_code == 0, made.output
    found = figures("model", "encrypted")
    assert found["encrypted"] is True
    assert found["confusion"] == expected(Path("photos"))


def test_encrypted_images_of_another_key_are_named() -> None:
    app = typer.Typer()
    app.command()(images.encrypt)
    for key, out in (("other.key", "wrong"), ("our.key", "right")):
        options = ["--key", key, "--scope", "fixed", "--size", "8", "--out", out]
        assert CliRunner().invoke(app, ["photos", *options]).exit_code == 0
    Path("right/rose/0.png").write_bytes(Path("wrong/rose/0.png").read_bytes())
    error = fail(BadImagesError, "model", "right")
    assert "rose/0.png: encrypted with key" in error.message
    assert figures("model", "right", "--skip-bad")["images"] == 11
    error = fail(DataError, "model", "wrong", "--skip-bad")
    assert "wrong holds images encrypted with key" in error.message
    assert "plain images" in error.hint


def test_a_bad_image_stops_or_is_left_out() -> None:
    Path("photos/rose/bad.png").write_text("no image")
    error = fail(BadImagesError, "model", "photos", "--key", "our.key", "--out", "answers.csv")
    assert "rose/bad.png" in error.message
    assert not Path("answers.csv").exists()
    result = call("model", "photos", "--key", "our.key", "--skip-bad", "--json")
    assert result.exit_code == 0
    assert "left out: rose/bad.png" in result.stderr
    found = json.loads(result.stdout)
    assert (found["images"], found["left_out"]) == (12, 1)


def test_a_class_that_the_model_does_not_know_is_an_error() -> None:
    draw(Path("photos"), {"orchid": 1, "lily": 0})
    error = fail(DataError, "model", "photos", "--key", "our.key")
    assert "orchid" in error.message
    assert "lily" not in error.message
    assert "rose, tul[i]p" in error.message
    assert "Rename" in error.hint


def test_more_numbers_than_classes_are_an_error() -> None:
    draw(Path("numbers"), {str(number): 1 for number in range(4)})
    error = fail(DataError, "model", "numbers", "--key", "our.key")
    assert "does not know: 3." in error.message
    assert "from 0 to 2" in error.hint


def test_classes_without_images_are_told_and_have_no_figures() -> None:
    draw(Path("roses"), {"rose": 2})
    result = call("model", "roses", "--key", "our.key", "--json")
    assert "no images of tul[i]p, da" in result.stderr
    tulip = json.loads(result.stdout)["classes"][1]
    assert (tulip["images"], tulip["recall"], tulip["auc"]) == (0, None, None)
    assert call("model", "roses", "--key", "our.key").exit_code == 0


def test_a_model_with_one_answer_is_warned_of() -> None:
    write(Path("stuck"), CLASSES, bias=(0.0, 1e4, 0.0))
    result = call("stuck", "photos", "--key", "our.key")
    assert result.exit_code == 0
    assert "warning: the model hardly tells images apart: it takes 12 of 12 for tul[i]p" in result.stderr
    assert "8 of the 8 of other classes" in result.stderr
    assert figures("stuck", "photos", "--key", "our.key")["one_answer"]["name"] == "tul[i]p"
    assert "warning" not in call("model", "photos", "--key", "our.key").stderr


def test_the_answers_are_written() -> None:
    found = figures("model", "photos", "--key", "our.key", "--out", "answers.csv")
    with Path("answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Path("answers.csv").stat().st_mode & 0o777 == 0o600
    assert [row["image"] for row in rows if row["class"] == "rose"] == [f"rose/{number}.png" for number in range(5)]
    counted = Counter((row["class"], row["predicted"]) for row in rows)
    assert [[counted[true, said] for said in CLASSES] for true in CLASSES] == found["confusion"]
    for row in rows:
        # Six digits of each.
        assert sum(float(row[f"probability of {name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
    assert (
        "answers.csv exists" in fail(UsageError, "model", "photos", "--key", "our.key", "--out", "answers.csv").message
    )


def test_nothing_else_is_written() -> None:
    before = sorted(Path().rglob("*"))
    figures("model", "photos", "--key", "our.key")
    assert sorted(Path().rglob("*")) == before


def test_many_classes_leave_the_matrix_out() -> None:
    names = tuple(f"class {number}" for number in range(21))
    write(Path("many"), names)
    draw(Path("some"), {"class 20": 1})
    assert (
        "confusion matrix of 21 classes is in the output of --json" in call("many", "some", "--key", "our.key").stdout
    )


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        (("model", "photos"), UsageError, "needs the key"),
        (("model", "photos", "--key", "other.key"), WrongKeyError, KEY.fingerprint),
        (("model", "divided", "--key", "our.key", "--held-out"), UsageError, "divided: test is held out"),
        (("model", "encrypted", "--held-out"), UsageError, "only a plain image says"),
        (("model", "nothing", "--key", "our.key"), DataError, "nothing does not exist"),
        (("model", "photos", "--key", "our.key", "--out", "answers.txt"), UsageError, "CSV"),
        (("model", "photos", "--key", "our.key", "--out", "nowhere/answers.csv"), UsageError, "nowhere"),
        (("model", "photos", "--key", "our.key", "--device", "abacus"), UsageError, "abacus"),
    ],
)
def test_what_cannot_work_is_an_error(arguments: tuple[str, ...], error: type[PPFedError], part: str) -> None:
    for section in ("train", "test"):
        draw(Path("divided") / section, {"rose": 1})
    cipher = make_cipher(load_model(Path("model"), CPU).card.cipher_spec(), KEY)
    Path("encrypted/rose").mkdir(parents=True)
    image = encode_encrypted_png(cipher.encrypt(PlainImages(np.zeros((1, 8, 8, 3), np.uint8))))
    Path("encrypted/rose/1.png").write_bytes(image)
    assert part in fail(error, *arguments).message


def test_no_images_are_an_error() -> None:
    draw(Path("empty"), {"rose": 0})
    assert "holds no images" in fail(DataError, "model", "empty", "--key", "our.key").message


def test_it_is_a_command() -> None:
    assert "--skip-bad" in CliRunner().invoke(main.build_app(), ["evaluate", "--help"]).stdout
