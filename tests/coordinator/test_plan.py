"""From the options of 'coordinator start' to the federation's settings, and again at a restart."""

from __future__ import annotations

import hashlib
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from coordinator import plan as module
from coordinator.cli import app
from coordinator.initial import initial_network
from coordinator.plan import _options_of, make_plan, split_address
from coordinator.state import StateFolder
from ppfed.ciphers.spec import Scope
from ppfed.errors import ModelError, UsageError
from ppfed.federation import CipherSettings, Exchange, FederationSettings, ModelOrigin
from ppfed.model_folder import load_model, write_model
from ppfed.networks.classifier import build_network
from ppfed.networks.config import InputFeatures
from ppfed.networks.state import network_state

from ..ppfed.model_cards import small_card

NEEDED: dict[str, Any] = {"exchange": "updates", "owners": 3, "classes": "cat,dog", "size": "24x32"}
# Every option, with a value that is not the default.
OPTIONS: dict[str, Any] = {
    **NEEDED,
    "name": "zoo",
    "channels": 1,
    "cipher": "logistic-rc4-v1",
    "scope": "fixed",
    "colour_shuffle": False,
    "fingerprint": "0123456789abcdef",
    "rounds": 7,
    "local_epochs": 2,
    "batch_size": 64,
    "learning_rate": 0.3,
    "strategy": "fedavgm",
    "server_learning_rate": 0.5,
    "server_momentum": 0.8,
    "update_format": "bfloat16",
    "schedule": "paper",
    "adaptation": False,
    "adaptation_kind": "block",
    "features": "fold",
    "backbone": "convmixer",
    "base_maps": 16,
    "label_smoothing": 0.1,
    "padding": "fill",
    "mirrored_views": False,
    "vertical_flip": True,
    "horizontal_flip": False,
    "seed": 4,
    "quorum": 3,
    "deadline_s": 30.0,
    "begin_with": 3,
    "address": "gpu.example.org:9443",
    "listen": "0.0.0.0:9000",
}
FIXED = CipherSettings(scope=Scope.FIXED)
SERVER = ("server_learning_rate", "server_momentum")
GRADIENTS: dict[str, Any] = {
    **NEEDED,
    "exchange": "gradients",
    "batch_norm": "shared",
    "micro_batch": 64,
    "min_local_batch": 8,
    "gradient_clip": 2.5,
}
IMAGES: dict[str, Any] = {
    **NEEDED,
    "exchange": "images",
    "first_crop": 0.5,
    "alternate_flip": True,
    "average_passes": 0.25,
    "precision": "bfloat16",
}


def agree(folder: StateFolder, options: dict[str, Any]) -> None:
    module.agree(folder, options, lambda _settings: None)


@pytest.mark.parametrize("option", NEEDED)
def test_a_new_federation_names_what_it_needs(option: str) -> None:
    with pytest.raises(UsageError, match=f"needs --{option}\n") as caught:
        make_plan({name: value for name, value in NEEDED.items() if name != option})
    assert caught.value.hint


def test_all_that_is_needed_is_named_at_once() -> None:
    with pytest.raises(UsageError, match="needs --exchange, --owners, --classes, --size"):
        make_plan({})


def test_options_become_settings() -> None:
    plan = make_plan(OPTIONS)
    settings, training = plan.settings, plan.settings.training
    assert (settings.name, settings.exchange, settings.owners, plan.quorum) == ("zoo", Exchange.UPDATES, 3, 3)
    assert (settings.classes, settings.shape) == (("cat", "dog"), (24, 32, 1))
    cipher = settings.cipher
    assert (cipher.name, cipher.scope, cipher.colour_shuffle) == ("logistic-rc4-v1", Scope.FIXED, False)
    assert (training.strategy, training.server_learning_rate, training.server_momentum) == ("fedavgm", 0.5, 0.8)
    assert training.update_format == "bfloat16"
    assert (settings.fingerprint, plan.deadline_s) == ("0123456789abcdef", 30.0)
    assert (training.rounds, training.local_epochs, training.batch_size, training.seed) == (7, 2, 64, 4)
    assert (training.learning_rate, training.schedule, training.base_maps) == (0.3, "paper", 16)
    assert (training.adaptation, training.vertical_flip, training.horizontal_flip) == ((), True, False)
    assert (training.adaptation_kind, training.features, training.label_smoothing) == ("block", "fold", 0.1)
    assert (training.padding, training.mirrored_views, training.backbone) == ("fill", False, "convmixer")
    assert (plan.address, plan.listen) == ("gpu.example.org:9443", "0.0.0.0:9000")


def test_options_of_gradients_become_settings() -> None:
    training = make_plan(GRADIENTS).settings.training
    assert (training.batch_norm, training.micro_batch, training.min_local_batch) == ("shared", 64, 8)
    assert training.gradient_clip == 2.5


def test_options_of_images_become_settings() -> None:
    training = make_plan(IMAGES).settings.training
    assert (training.first_crop, training.alternate_flip, training.average_passes) == (0.5, True, 0.25)
    assert training.precision == "bfloat16"


def test_colour_shuffle_is_on_where_the_cipher_has_it() -> None:
    assert make_plan(NEEDED).settings.cipher.colour_shuffle
    assert not make_plan({**NEEDED, "cipher": "le-v1"}).settings.cipher.colour_shuffle


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({}, "sorted-fold"),
        ({"colour_shuffle": False}, "fold"),
        ({"scope": "fixed"}, "values"),
        ({"cipher": "etc-v1"}, "values"),
        ({"cipher": "np2-v1"}, "sorted-fold-twice"),
        ({"cipher": "np2-v1", "colour_shuffle": False}, "fold-twice"),
        ({"cipher": "np2-v1", "scope": "fixed"}, "values"),
        ({"features": "values"}, "values"),
    ],
)
def test_the_network_is_shown_all_that_the_cipher_leaves(options: dict[str, Any], features: str) -> None:
    assert make_plan({**NEEDED, **options}).settings.training.features == features


@pytest.mark.parametrize(("owners", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (10, 6)])
def test_the_quorum_is_more_than_half_unless_it_is_given(owners: int, quorum: int) -> None:
    assert make_plan({**NEEDED, "owners": owners}).quorum == quorum
    assert make_plan({**NEEDED, "owners": owners, "quorum": 1}).quorum == 1


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        (None, "127.0.0.1:9443"),
        ("localhost:8000", "127.0.0.1:8000"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        ("[::1]:8000", "[::1]:8000"),
        ("[2001:db8::1]:8000", "[::]:8000"),
        ("gpu.example.org:8000", "0.0.0.0:8000"),
        ("192.0.2.1:8000", "0.0.0.0:8000"),
    ],
)
def test_only_a_federation_that_is_not_local_listens_on_all_interfaces(address: str | None, listen: str) -> None:
    assert make_plan(NEEDED if address is None else {**NEEDED, "address": address}).listen == listen


@pytest.mark.parametrize(
    "change",
    [
        {"classes": "cat"},
        {"classes": "cat,cat"},
        {"classes": "1"},
        {"size": "large"},
        {"size": "0"},
        {"owners": 0},
        {"quorum": 4},
        {"quorum": 0},
        {"begin_with": 4},
        {"begin_with": 1},
        {"begin_with": 0, "quorum": 0},
        {"exchange": "pixels"},
        {"exchange": "images", "local_epochs": 2},
        {"exchange": "gradients", "local_epochs": 2},
        {"strategy": "fedprox"},
        {"exchange": "gradients", "strategy": "fedadam"},
        {"server_momentum": 0.5},
        {"strategy": "fedavgm", "server_momentum": 1.0},
        {"strategy": "fedavgm", "server_learning_rate": 0.0},
        {"micro_batch": 8},
        {"update_format": "float16"},
        {"exchange": "images", "update_format": "bfloat16"},
        {"exchange": "gradients", "min_local_batch": 1},
        {"exchange": "gradients", "batch_norm": "frozen"},
        {"cipher": "np-v9"},
        {"cipher": "le-v1", "colour_shuffle": True},
        {"cipher": "le-v1", "size": "30"},
        {"channels": 2},
        {"scope": "none"},
        {"fingerprint": "abc"},
        {"deadline_s": 0.0},
        {"deadline_s": float("nan")},
        {"name": "../zoo"},
        {"rounds": 0},
        {"schedule": "cosine"},
        {"backbone": "resnet50"},
        {"backbone": "convmixer", "size": "30"},
        {"average_passes": 0.25},
        {"first_crop": 0.3},
        {"first_crop": 0.5, "backbone": "convmixer", "size": "32"},
        {"alternate_flip": True, "horizontal_flip": False},
        {"address": "gpu.example.org"},
        {"address": "gpu.example.org:0"},
        {"address": "gpu.example.org:99999"},
        {"address": ":9443"},
        {"listen": "9443"},
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_hint(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan({**NEEDED, **change})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("address", "expected"),
    [("a.b:1", ("a.b", 1)), ("[::1]:9443", ("::1", 9443)), ("192.0.2.1:65535", ("192.0.2.1", 65535))],
)
def test_addresses_are_split(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("options", [NEEDED, OPTIONS, IMAGES])
def test_a_restart_goes_on_with_the_same_settings(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, options)
    plan = folder.plan()
    assert plan == make_plan(options)
    agree(folder, {})
    agree(folder, options)
    for name, value in options.items():
        agree(folder, {name: value})
    assert folder.plan() == plan


OWN = {"listen": "0.0.0.0:9000", "deadline_s": 3600.0, "quorum": 1, "begin_with": 2}
"""What is the coordinator's own business."""
CHANGED = {
    # What goes with a cipher or a strategy is refused for that reason.
    **{name: OPTIONS[name] for name in OPTIONS if name not in {*NEEDED, "cipher", *SERVER, *OWN}},
    "exchange": "images",
    "owners": 4,
    "classes": "dog,cat",
    "size": "32x24",
}


@pytest.mark.parametrize("option", CHANGED)
def test_a_contradiction_at_a_restart_is_refused(tmp_path: Path, option: str) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, NEEDED)
    before = folder.plan()
    with pytest.raises(UsageError, match=f"other settings: (.*, )?{option} is .*, not "):
        agree(folder, {option: CHANGED[option]})
    assert folder.plan() == before


@pytest.mark.parametrize("option", ["address", "listen"])
def test_an_occupied_port_leaves_nothing_behind(tmp_path: Path, option: str) -> None:
    """A federation that was made would be bound to an address that it cannot have."""
    folder = StateFolder(tmp_path / "state")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"cannot listen on {taken}: Address already in use") as caught:
            agree(folder, {**NEEDED, option: taken})
    assert "--address" in caught.value.hint
    assert not folder.folder.exists()
    agree(folder, {**NEEDED, option: taken})


def test_a_quorum_may_be_raised_above_the_number_that_it_began_with(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, {**NEEDED, "owners": 5, "quorum": 2, "begin_with": 3})
    agree(folder, {"quorum": 4})
    assert (folder.plan().quorum, folder.plan().begin_with) == (4, 4)
    with pytest.raises(UsageError, match="cannot begin with fewer owners than the quorum"):
        agree(folder, {"begin_with": 3})


@pytest.mark.parametrize("change", [{"cipher": "le-v1", "colour_shuffle": False}, {"strategy": "fedadam"}])
def test_another_cipher_or_strategy_at_a_restart_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, {**NEEDED, "strategy": "fedyogi", "server_learning_rate": 0.5})
    with pytest.raises(UsageError, match="other settings: "):
        agree(folder, change)


def test_what_is_the_coordinators_own_business_may_change_at_a_restart(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, NEEDED)
    before = folder.plan()
    for name, value in OWN.items():
        agree(folder, {name: value})
    agree(folder, {})
    plan = folder.plan()
    assert plan == before.model_copy(update=OWN) != before
    with pytest.raises(UsageError, match="the quorum is larger than the number of owners"):
        agree(folder, {"quorum": 4})
    # What was agreed is as it was, and both go together.
    with pytest.raises(UsageError, match=r"other settings: base_maps is 64, not 16, listen is 0\.0\.0\.0:9000, not "):
        agree(folder, {"base_maps": 16, "listen": "127.0.0.1:9000"})
    assert folder.plan() == plan


def test_nothing_changes_while_a_coordinator_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, NEEDED)
    before = folder.plan()
    monkeypatch.setattr(StateFolder, "running_pid", lambda _state: 1)
    agree(folder, {"deadline_s": before.deadline_s})
    with pytest.raises(UsageError, match=r"a coordinator is running in .*: deadline_s is 600\.0, not 3600"):
        agree(folder, {"deadline_s": 3600.0})
    assert folder.plan() == before


def test_a_folder_with_anything_in_it_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds files, and no federation"):
        agree(StateFolder(folder), NEEDED)
    assert [one.name for one in folder.iterdir()] == ["thesis.txt"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    # What is left of a start that was killed is no reason.
    (folder / "thesis.txt").rename(tmp_path / "thesis.txt")
    (folder / "pki").mkdir()
    agree(StateFolder(folder), NEEDED)
    assert StateFolder(folder).exists()


def test_what_is_refused_for_another_reason_leaves_nothing(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")

    def refuse(settings: FederationSettings) -> None:
        raise UsageError(f"exchange '{settings.exchange}' takes one GPU")

    with pytest.raises(UsageError, match="takes one GPU"):
        module.agree(folder, NEEDED, refuse)
    assert not folder.folder.exists()
    agree(folder, NEEDED)
    with pytest.raises(UsageError, match="takes one GPU"):
        module.agree(folder, {"quorum": 1}, refuse)
    assert folder.plan().quorum == 2


MODEL = {"classes": ("cat", "dog"), "adaptation": (8, 32), "features": InputFeatures.SORTED_FOLD}
FURTHER: dict[str, Any] = {"exchange": "images", "owners": 3}


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model folder."""

    def make(name: str = "model", **changes: Any) -> Path:
        card = small_card(**{**MODEL, "fingerprint": "0123456789abcdef", **changes})
        write_model(tmp_path / name, build_network(card.network_config(), 5), card, [])
        return tmp_path / name

    return make


def test_a_model_that_is_trained_further_says_what_it_was_trained_with(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    model = make_model(training={"horizontal_flip": False, "vertical_flip": True, "rounds": 70})
    folder = StateFolder(tmp_path / "state")
    agree(folder, {**FURTHER, "initial_model": model})
    plan = folder.plan()
    settings, card = plan.settings, load_model(model).card
    assert (settings.classes, settings.shape, settings.cipher) == (card.classes, (8, 8, 3), card.cipher)
    assert settings.network_config() == card.network_config()
    training = settings.training
    assert (training.horizontal_flip, training.vertical_flip, training.rounds) == (False, True, 10)
    # Fresh masks are as good under another key.
    assert settings.fingerprint is None
    weights = (model / "weights.safetensors").read_bytes()
    assert settings.initial_model == ModelOrigin(
        federation="flowers",
        created=card.created,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        fingerprint=card.fingerprint,
    )
    assert (
        str(settings.initial_model)
        == f"flowers of 2026-01-01 00:00 (weights {settings.initial_model.weights_sha256[:16]})"
    )
    mine, theirs = network_state(initial_network(folder)), network_state(load_model(model).network)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    # A start that is repeated, with the model or without, goes on.
    agree(folder, {**FURTHER, "initial_model": model})
    agree(folder, {"quorum": 1})
    assert folder.plan() == plan.model_copy(update={"quorum": 1})


def test_another_model_at_a_restart_is_refused(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    folder, random = StateFolder(tmp_path / "state"), StateFolder(tmp_path / "random")
    agree(folder, {**FURTHER, "initial_model": make_model()})
    agree(random, NEEDED)
    other = make_model("other", federation="trees")
    with pytest.raises(UsageError, match=r"other settings: initial_model is flowers of .*, not trees of "):
        agree(folder, {"initial_model": other})
    with pytest.raises(UsageError, match="initial_model is open, not trees of "):
        agree(random, {"initial_model": other})


@pytest.mark.parametrize(
    ("card", "options", "said"),
    [
        ({}, {"base_maps": 16}, "base_maps is 2, not 16"),
        ({}, {"classes": "dog,cat"}, "classes is cat,dog, not dog,cat"),
        ({}, {"size": "32"}, "size is 8x8, not 32x32"),
        ({}, {"cipher": "np2-v1"}, "cipher is np-v1, not np2-v1"),
        ({}, {"features": "values"}, "features is sorted-fold, not values"),
        ({"cipher": FIXED}, {"fingerprint": "f" * 16}, "fingerprint is 0123456789abcdef, not ffffffffffffffff"),
        ({"adaptation": (4,)}, {}, "adaptation network"),
        ({"classes": ("a,b", "c")}, {}, "a class with a comma"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_and_leave_nothing(
    tmp_path: Path, make_model: Callable[..., Path], card: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    folder = StateFolder(tmp_path / "state")
    with pytest.raises(UsageError, match=f"does not fit: .*{said}") as caught:
        agree(folder, {**FURTHER, **options, "initial_model": make_model(**card)})
    assert "train from the beginning" in caught.value.hint
    assert not folder.folder.exists()


def test_a_model_of_one_mask_needs_its_key(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    folder = StateFolder(tmp_path / "state")
    agree(folder, {**FURTHER, "initial_model": make_model(cipher=FIXED)})
    assert folder.plan().settings.fingerprint == "0123456789abcdef"


def test_what_is_no_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    with pytest.raises(ModelError, match="there is no model folder"):
        agree(folder, {**FURTHER, "initial_model": tmp_path / "nothing"})
    assert not folder.folder.exists()


def _parameters() -> dict[str, Any]:
    return {one.name: one for one in get_command(app).commands["start"].params if one.name != "help"}


def _flags(options: dict[str, Any]) -> list[str]:
    """What a user types for these options."""
    written: list[str] = []
    for name, value in options.items():
        parameter = _parameters()[name]
        if isinstance(value, bool):
            written.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            written += [parameter.opts[0], str(value)]
    return written


def test_every_option_is_tested() -> None:
    no_settings = {"initial_model", "state", "device", "gpus", "machines", "data_placement", "compiled", "detach"}
    assert set(_parameters()) == {*OPTIONS, *GRADIENTS, *IMAGES, *no_settings}


@pytest.mark.parametrize("options", [OPTIONS, GRADIENTS, IMAGES, {**FURTHER, "initial_model": "model"}])
def test_what_the_command_line_said_is_what_is_agreed(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    agreed: list[dict[str, Any]] = []
    monkeypatch.setattr("coordinator.plan.agree", lambda _folder, given, _check: agreed.append(given) or sys.exit(0))
    assert CliRunner().invoke(app, ["start", *_flags(options), "--device", "cpu"]).exit_code == 0
    assert agreed == [options]


def test_the_help_states_the_defaults_that_are_agreed() -> None:
    agreed = _options_of(make_plan(NEEDED))
    for name in ("name", "address", "channels", "cipher", "scope", "rounds", "base_maps", "padding", "update_format"):
        assert _parameters()[name].show_default == str(agreed[name])
    assert float(_parameters()["deadline_s"].show_default) == agreed["deadline_s"]
    flags = ("adaptation", "horizontal_flip", "vertical_flip", "alternate_flip", "mirrored_views")
    for name in flags:
        assert _parameters()[name].show_default == ("" if agreed[name] else "no-") + name.replace("_", "-")
