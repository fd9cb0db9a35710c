"""The model folder: what is written is read again, damage is named, and nothing foreign is ever replaced."""

from __future__ import annotations

import contextlib
import csv
import json
import pickle
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from ppfed import model_folder
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import ModelError, UsageError
from ppfed.federation import CipherSettings
from ppfed.model_folder import (
    CARD_FILE,
    CURVE_FILE,
    NOTICE,
    PLOT_FILE,
    WEIGHTS_FILE,
    CardOwner,
    ModelCard,
    installed_versions,
    load_model,
    write_model,
)
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import Backbone, NetworkConfig
from ppfed.networks.state import network_state
from ppfed.training.curve import CurvePoint

CPU = torch.device("cpu")
FILES = {WEIGHTS_FILE, CARD_FILE, CURVE_FILE, PLOT_FILE}
CURVE = [CurvePoint(1, 2.25, 2.0, 0.25, 1.5, 40, 3), CurvePoint(2, 1.5), CurvePoint(3, 0.1 + 0.2, 1.0, 2 / 3, 0.125)]

in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)


def card(**changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "federation": "flowers",
        "exchange": "images",
        "cipher": CipherSettings(),
        "fingerprint": "0123456789abcdef",
        "height": 8,
        "width": 6,
        "channels": 3,
        "classes": ("rose", "tulip", "daisy"),
        "adaptation": (4, 5),
        "base_maps": 2,
        "owners": (CardOwner(name="ann", train_images=20, held_out_images=5),),
        "rounds": 3,
        "local_epochs": 1,
        "accuracy": 0.8,
        "held_out_images": 5,
        "seed": 0,
        "training": {"batch_size": 16, "schedule": "linear", "shift": None, "adaptation": [4, 5]},
        "versions": installed_versions(),
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return ModelCard(**{**fields, **changes})


def network_for(described: ModelCard, seed: int = 0) -> ImageClassifier:
    return build_network(described.network_config(), seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    write_model(path, network_for(card()), card(), CURVE)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
owners = st.builds(CardOwner, name=names, train_images=st.integers(0), held_out_images=st.integers(0))
cards = st.builds(
    card,
    federation=names,
    exchange=st.sampled_from(["images", "updates", "gradients"]),
    cipher=st.builds(CipherSettings, scope=st.sampled_from(Scope), colour_shuffle=st.booleans()),
    channels=st.sampled_from([1, 3]),
    classes=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20),
        min_size=2,
        max_size=4,
        unique=True,
    ).map(tuple),
    adaptation=st.lists(st.integers(1, 5), max_size=2).map(tuple),
    base_maps=st.integers(1, 3),
    width=st.just(8),
    backbone=st.sampled_from(Backbone),
    owners=st.lists(owners, max_size=3).map(tuple),
    accuracy=st.floats(0, 1),
    held_out_images=st.integers(1, 1000),
    training=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()),
    created=st.datetimes(timezones=st.just(UTC)),
)


@in_tmp_path
@given(cards, st.integers(0, 1000))
def test_what_is_written_is_read_again(tmp_path: Path, described: ModelCard, seed: int) -> None:
    network = network_for(described, seed)
    write_model(tmp_path / "model", network, described, CURVE)
    loaded = load_model(tmp_path / "model", CPU)
    assert loaded.card == described
    assert not loaded.network.training
    expected = network_state(network)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network_state(loaded.network).items())
    assert set(contents(tmp_path / "model")) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_names_of_folder_and_device_will_do(tmp_path: Path) -> None:
    write_model(tmp_path / "model", network_for(card(), 0), card(), CURVE)
    for loaded in (load_model(str(tmp_path / "model")), load_model(str(tmp_path / "model"), "cpu")):
        assert next(loaded.network.parameters()).device == CPU
    with pytest.raises(UsageError, match="abacus"):
        load_model(tmp_path / "model", "abacus")


@pytest.mark.parametrize("file", [CARD_FILE, WEIGHTS_FILE])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_any_damage_is_a_model_error_or_harmless(folder: Path, file: str, data: st.DataObject) -> None:
    original = (folder / file).read_bytes()
    try:
        # The header of the weights, which is what gets parsed, and some of their values.
        start = data.draw(st.integers(0, min(len(original), 12_000) - 1))
        stop = data.draw(st.integers(start, min(len(original), start + 20)))
        (folder / file).write_bytes(original[:start] + data.draw(st.binary(max_size=20)) + original[stop:])
        with contextlib.suppress(ModelError):
            state = network_state(load_model(folder, CPU).network)
            assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    finally:
        (folder / file).write_bytes(original)


def edit_card(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / CARD_FILE).read_text())
        change(content)
        (folder / CARD_FILE).write_text(json.dumps(content))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = load_file(folder / WEIGHTS_FILE)
        change(state)
        save_file(state, folder / WEIGHTS_FILE)

    return edit


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def make_folder(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return edit


PROBLEMS: dict[str, Callable[[Path], object]] = {
    r"card\.json is missing": lambda folder: (folder / CARD_FILE).unlink(),
    r"cannot read .*card\.json": make_folder(CARD_FILE),
    r"card\.json is damaged: it is not JSON": lambda folder: (folder / CARD_FILE).write_text('{"format": "ppfed-mo'),
    r"card\.json is too large": write(CARD_FILE, b" " * (5 << 20)),
    r"card\.json is not a model card of ppfed": write(CARD_FILE, b'{"name": "something else"}'),
    r"card\.json is not a model card": write(CARD_FILE, b"[" * 100 + b"]" * 100),
    r"card\.json is damaged: it is not JSON$": write(CARD_FILE, b"[" * 1_000_000),
    r"format version 2, and this ppfed reads 1": edit_card(lambda card: card.update(version=2)),
    r"card\.json is damaged: base_maps": edit_card(lambda card: card.update(base_maps=1_000_000)),
    r"card\.json is damaged: secret": edit_card(lambda card: card.update(secret="x")),
    r"card\.json is damaged: accuracy": edit_card(lambda card: card.pop("accuracy")),
    r"damaged: .*the notice": edit_card(lambda card: card.update(notice="Your images are perfectly safe.")),
    r"weights\.safetensors is missing": lambda folder: (folder / WEIGHTS_FILE).unlink(),
    r"weights\.safetensors is damaged": lambda folder: (folder / WEIGHTS_FILE).write_bytes(
        (folder / WEIGHTS_FILE).read_bytes()[:-1]
    ),
    r"weights\.safetensors is damaged or no": write(WEIGHTS_FILE, pickle.dumps({"resnet.fc.bias": [0.0]})),
    r"adaptation\.0\.weight has shape": edit_card(lambda card: card.update(adaptation=[3, 5])),
    r"resnet\.fc\.weight has shape": edit_card(lambda card: card.update(classes=["a", "b"])),
    r"resnet\.fc\.bias is missing": edit_weights(lambda state: state.pop("resnet.fc.bias")),
    r"fc\.bias holds values that are not finite": edit_weights(lambda state: state["resnet.fc.bias"].fill_(1e400)),
    r"card\.json is damaged: backbone": edit_card(lambda card: card.update(backbone="vit")),
    r"card\.json describes a network that cannot be: .*of 4": edit_card(lambda card: card.update(backbone="convmixer")),
    r"convmixer\.embedding\.weight is missing": edit_card(lambda card: card.update(backbone="convmixer", width=8)),
    r"do not fit the network: adaptation\.0": edit_card(lambda card: card.update(base_maps=1024, adaptation=[4096])),
}


@pytest.mark.parametrize("message", PROBLEMS)
def test_each_problem_has_its_own_message(folder: Path, message: str) -> None:
    PROBLEMS[message](folder)
    with pytest.raises(ModelError) as caught:
        load_model(folder, CPU)
    assert caught.match(f"(?m){message}")
    assert caught.value.hint


def test_a_card_from_before_there_was_a_choice_of_backbone_is_read(folder: Path) -> None:
    edit_card(lambda content: content.pop("backbone"))(folder)
    assert load_model(folder, CPU).card == card(backbone=Backbone.RESNET18)


def test_a_card_whose_notice_another_version_wrote_is_read(folder: Path) -> None:
    edit_card(lambda card: card.update(notice="Obfuscation, not confidentiality, as we put it then."))(folder)
    assert load_model(folder, torch.device("cpu")).card.notice.startswith("Obfuscation")


def test_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        load_model(tmp_path / "nothing", CPU)


def test_a_model_is_replaced_whole(folder: Path) -> None:
    write_model(folder, network_for(card(rounds=9), 1), card(rounds=9), [])
    loaded = load_model(folder, CPU)
    assert loaded.card.rounds == 9
    assert torch.equal(loaded.network.resnet.fc.weight, network_for(card(), 1).resnet.fc.weight)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def foreign_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("three years of work")


def foreign_card(folder: Path) -> None:
    folder.mkdir()
    (folder / CARD_FILE).write_text('{"player": "bob"}')


def model_and_notes(folder: Path) -> None:
    write_model(folder, network_for(card()), card(), CURVE)
    (folder / "notes.txt").write_text("mine")


def weights_only(folder: Path) -> None:
    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes(b"somebody's")


@pytest.mark.parametrize("fill", [foreign_file, foreign_card, model_and_notes, weights_only])
def test_nothing_else_is_replaced(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    folder = tmp_path / "folder"
    fill(folder)
    before = contents(folder)
    with pytest.raises(ModelError) as caught:
        write_model(folder, network_for(card()), card(), CURVE)
    assert caught.value.hint
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(ModelError, match="is not a folder"):
        write_model(tmp_path / "model", network_for(card()), card(), CURVE)
    assert (tmp_path / "model").read_text() == "a file"


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        write_model(folder, network_for(card()), card(), CURVE)
        assert set(contents(folder)) == FILES


@pytest.mark.parametrize("when", ["curve_to_csv", "_move_into_place"])
def test_a_failure_leaves_the_old_model_and_no_litter(folder: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    before = contents(folder)
    monkeypatch.setattr(model_folder, when, fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_model(folder, network_for(card(), 1), card(), [])
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failed_exchange_puts_the_old_model_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail_for_the_new(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("the disk is gone")
        return rename(path, target)

    before = contents(folder)
    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="the disk is gone"):
        write_model(folder, network_for(card(), 1), card(), [])
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_disk_that_refuses_everything_never_costs_the_old_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_into_place(path: Path, target: Path) -> Path:
        if target == folder:
            raise OSError("the disk is gone")
        return rename(path, target)

    before = contents(folder)
    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(OSError, match="the disk is gone"):
        write_model(folder, network_for(card(), 1), card(), [])
    (kept,) = folder.parent.glob(".model.*/old")
    assert contents(kept) == before


def test_a_diverged_network_is_not_written(tmp_path: Path) -> None:
    network = network_for(card())
    with torch.no_grad():
        network.resnet.fc.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"training diverged: resnet\.fc\.bias"):
        write_model(tmp_path / "model", network, card(), CURVE)
    assert list(tmp_path.iterdir()) == []


def test_a_card_of_another_network_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another network"):
        write_model(tmp_path / "model", network_for(card(base_maps=3)), card(), CURVE)


def test_the_folder_is_private(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_curve_is_a_table(folder: Path) -> None:
    rows = list(csv.DictReader((folder / CURVE_FILE).read_text().splitlines()))
    measured = ["train_loss", "held_out_loss", "accuracy", "seconds"]
    assert list(rows[0]) == ["round", *measured, "held_out_images", "owners"]
    read = [
        CurvePoint(
            **{
                name: (float(value) if name in measured else int(value)) if value else None
                for name, value in row.items()
            }
        )
        for row in rows
    ]
    assert read == CURVE


@pytest.mark.parametrize("curve", [[], [CurvePoint(1)], CURVE, [CurvePoint(1, float("nan"), float("inf"), 0.5)]])
def test_any_curve_is_drawn(tmp_path: Path, curve: list[CurvePoint]) -> None:
    write_model(tmp_path / "model", network_for(card()), card(accuracy=None, held_out_images=0), curve)
    with Image.open(tmp_path / "model" / PLOT_FILE) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 500


def test_the_card_says_what_the_cipher_is_not() -> None:
    assert card().notice == NOTICE
    assert "not confidentiality" in NOTICE
    with pytest.raises(ValidationError):
        card(notice="")


def test_the_card_gives_back_network_and_cipher() -> None:
    described = card(cipher=CipherSettings(scope=Scope.FIXED, colour_shuffle=False))
    assert described.cipher_spec() == CipherSpec("np-v1", Scope.FIXED, False)
    assert described.network_config() == NetworkConfig(
        classes=3, height=8, width=6, channels=3, adaptation=(4, 5), base_maps=2
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": None},
        {"held_out_images": 0},
        {"accuracy": float("nan")},
        {"accuracy": 1.5},
        {"created": datetime(2026, 1, 1)},
        {"fingerprint": "0123"},
        {"federation": "../../etc"},
        {"channels": 2},
        {"classes": ("rose", "rose")},
    ],
)
def test_a_card_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        card(**changes)
