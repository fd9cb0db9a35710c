"""What a federation agrees on, and the invite that carries it."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ppfed.errors import InviteError
from ppfed.federation import (
    MAX_INVITE_BYTES,
    MOST_WEIGHTS,
    Exchange,
    FederationSettings,
    Invite,
    describe_invalid,
    new_token,
    parse_classes,
)
from ppfed.networks.config import Backbone, count_weights
from ppfed.training.augment import Augmentation
from ppfed.training.loop import TrainingConfig

MakeSettings = Callable[..., FederationSettings]

TOKEN = new_token(bytes(range(32)))

in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


@pytest.fixture
def invite(make_settings: MakeSettings) -> Invite:
    return Invite(
        owner="anna",
        address="gpu.example.org:9443",
        ca_certificate="-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
        token=TOKEN,
        federation=make_settings(),
    )


# Settings.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ("cat", "cat")}, "named twice"),
        ({"classes": ("cat",)}, "classes"),
        ({"classes": ("cat", "")}, "classes"),
        # An owner is shown the names before it agrees: none may look like a line of ppfed's own.
        ({"classes": ("cat", "dog\nexchange     updates")}, "classes"),
        ({"classes": ("cat", "dog\u2028")}, "classes"),
        ({"classes": ("cat", "\x1b[2Jdog")}, "classes"),
        ({"owners": 0}, "owners"),
        ({"exchange": "images", "training": {"local_epochs": 2}}, "local epochs belong to exchange 'updates'"),
        ({"exchange": "pixels"}, "exchange"),
        ({"exchange": "gradients", "training": {"local_epochs": 2}}, "local epochs belong to exchange 'updates'"),
        ({"exchange": "gradients", "training": {"strategy": "fedadam"}}, "strategy belongs to exchange 'updates'"),
        ({"training": {"micro_batch": 8}}, "micro_batch belongs to exchange 'gradients'"),
        ({"exchange": "images", "training": {"batch_norm": "shared"}}, "batch_norm belongs to exchange 'gradients'"),
        ({"exchange": "images", "training": {"update_format": "bfloat16"}}, "update_format belongs to exchanges"),
        ({"exchange": "updates", "training": {"average_passes": 1.0}}, "average_passes belongs to exchange 'images'"),
        ({"exchange": "gradients", "training": {"first_crop": 0.5}}, "first_crop belongs to exchanges 'images' and"),
        ({"exchange": "gradients", "training": {"alternate_flip": True}}, "alternate_flip belongs to exchanges"),
        ({"exchange": "images", "training": {"alternate_flip": True, "horizontal_flip": False}}, "needs horizontal"),
        ({"exchange": "images", "training": {"first_crop": 0.5}}, "less than 8 pixels of a side"),
        ({"exchange": "images", "training": {"first_crop": 0.5}, "width": 32}, "less than 8 pixels of a side"),
        ({"exchange": "images", "training": {"first_crop": 0.5}, "height": 32}, "less than 8 pixels of a side"),
        ({"training": {"first_crop": 0.5, "adaptation_kind": "block"}, "height": 32, "width": 32}, "of any size"),
        ({"training": {"first_crop": 0.5, "backbone": "convmixer"}, "height": 32, "width": 32}, "of any size"),
        ({"training": {"update_format": "float16"}}, "training.update_format"),
        ({"training": {"server_learning_rate": 1.0}}, "fedavg has no server learning rate"),
        ({"training": {"base_maps": 1024}}, "lower base_maps"),
        ({"training": {"backbone": "convmixer", "base_maps": 1024, "adaptation": (4096,) * 14}}, "lower base_maps"),
        ({"training": {"backbone": "vit"}}, "training.backbone"),
        ({"training": {"backbone": "convmixer"}, "height": 30}, "multiples of 4"),
        ({"training": {"adaptation": (4096,) * 16, "base_maps": 128}}, "lower base_maps"),
        ({"name": "../zoo"}, "name"),
        ({"name": ""}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"height": 0}, "height"),
        ({"channels": 2}, "channels"),
        ({"fingerprint": "ABCDEF0123456789"}, "fingerprint"),
        ({"cipher": {"scope": "batch"}}, "cipher.scope"),
        ({"training": {"rounds": 0}}, "training.rounds"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate"),
        ({"training": {"adaptation": (0,)}}, "training.adaptation"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make_settings: MakeSettings, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        make_settings(**changes)
    assert reason in describe_invalid(caught.value)


CHANGES: dict[str, Any] = {
    "name": "other",
    "exchange": "images",
    "owners": 3,
    "classes": ("dog", "cat"),
    "height": 9,
    "width": 9,
    "channels": 1,
    "fingerprint": "0" * 16,
    "initial_model": {
        "federation": "former",
        "created": "2026-01-01T00:00:00Z",
        "weights_sha256": "0" * 64,
        "fingerprint": "0" * 16,
    },
}
CIPHER_CHANGES: dict[str, Any] = {"name": "np-v2", "scope": "fixed", "colour_shuffle": False}
TRAINING_CHANGES: dict[str, Any] = {
    "rounds": 3,
    "local_epochs": 2,
    "batch_size": 9,
    "learning_rate": 0.051,
    "schedule": "paper",
    "label_smoothing": 0.1,
    "nesterov": False,
    "adaptation": (3,),
    "adaptation_kind": "block",
    "features": "fold",
    "padding": "fill",
    "mirrored_views": False,
    "backbone": "convmixer",
    "base_maps": 3,
    "shift": 1,
    "horizontal_flip": False,
    "vertical_flip": True,
    "seed": 1,
    "strategy": "fedyogi",
    "update_format": "bfloat16",
    "precision": "bfloat16",
}
STRATEGY_CHANGES: dict[str, Any] = {"server_learning_rate": 0.5, "server_momentum": 0.5}
GRADIENT_CHANGES: dict[str, Any] = {
    "micro_batch": 64,
    "min_local_batch": 3,
    "batch_norm": "shared",
    "gradient_clip": 1.0,
}
IMAGES_CHANGES: dict[str, Any] = {"average_passes": 0.5, "first_crop": 0.5, "alternate_flip": True}


def test_the_digest_changes_with_every_field(make_settings: MakeSettings) -> None:
    base = make_settings()
    changed = [
        *(make_settings(**{name: value}) for name, value in CHANGES.items()),
        *(make_settings(cipher={name: value}) for name, value in CIPHER_CHANGES.items()),
        *(make_settings(training={name: value}) for name, value in TRAINING_CHANGES.items()),
        *(make_settings(training={"strategy": "fedavgm", name: value}) for name, value in STRATEGY_CHANGES.items()),
        make_settings(exchange="gradients"),
        *(make_settings(exchange="gradients", training={name: value}) for name, value in GRADIENT_CHANGES.items()),
        large := make_settings(exchange="images", height=16, width=16),
        *(
            make_settings(exchange=large.exchange, height=16, width=16, training={name: value})
            for name, value in IMAGES_CHANGES.items()
        ),
    ]
    # Every field there is, so that a new one cannot be forgotten here.
    assert {*CHANGES, "cipher", "training"} == set(type(base).model_fields)
    assert set(CIPHER_CHANGES) == set(type(base.cipher).model_fields)
    by_exchange = {*STRATEGY_CHANGES, *GRADIENT_CHANGES, *IMAGES_CHANGES}
    assert {*TRAINING_CHANGES, *by_exchange} == set(type(base.training).model_fields)
    digests = {base.digest(), *(one.digest() for one in changed)}
    assert len(digests) == len(changed) + 1
    assert all(len(digest) == 64 for digest in digests)


def test_the_digest_survives_json(make_settings: MakeSettings) -> None:
    agreed = make_settings(training={"learning_rate": 0.1 + 0.2}, classes=("Katze", "ねこ"))
    assert FederationSettings.model_validate_json(agreed.model_dump_json()).digest() == agreed.digest()


def test_settings_from_before_formats_mean_float32(make_settings: MakeSettings) -> None:
    older = json.loads(make_settings().model_dump_json())
    del older["training"]["update_format"]
    assert FederationSettings.model_validate(older) == make_settings(training={"update_format": "float32"})


def test_settings_reach_network_and_training(make_settings: MakeSettings) -> None:
    agreed = make_settings(
        training={
            "rounds": 3,
            "local_epochs": 2,
            "seed": 5,
            "shift": 1,
            "vertical_flip": True,
            "backbone": "convmixer",
        }
    )
    network, training = agreed.network_config(), TrainingConfig.of(agreed.training, seed_offset=7)
    assert (network.classes, network.height, network.width, network.channels) == (2, 8, 8, 3)
    assert (network.adaptation, network.base_maps, network.backbone) == ((2, 2), 2, Backbone.CONVMIXER)
    assert (training.epochs, training.batch_size, training.learning_rate) == (6, 8, 0.05)
    assert training.seed == 12
    assert training.augmentation == Augmentation.of(agreed.training)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_mirror_images_are_looked_at_only_where_training_showed_them(
    make_settings: MakeSettings, mirrored: bool, flip: bool
) -> None:
    agreed = make_settings(training={"mirrored_views": mirrored, "horizontal_flip": flip})
    assert agreed.network_config().mirrored_views is (mirrored and flip)


# Classes.


@given(count=st.integers(2, 300))
def test_a_number_stands_for_numbered_classes(count: int) -> None:
    assert parse_classes(str(count)) == tuple(str(number) for number in range(count))


names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(
    classes=st.lists(names, min_size=2, max_size=5),
    space=st.sampled_from(["", " ", "  "]),
    trailing=st.sampled_from(["", ","]),
)
def test_classes_are_read_as_they_are_written(classes: list[str], space: str, trailing: str) -> None:
    assert parse_classes(f"{space},{space}".join(classes) + trailing) == tuple(classes)


# The invite.


def test_an_invite_is_read_as_it_was_written(tmp_path: Path, invite: Invite) -> None:
    invite.write(tmp_path / "anna.invite")
    read = Invite.read(tmp_path / "anna.invite")
    assert read == invite
    assert read.federation.digest() == invite.federation.digest()


def test_only_its_owner_may_read_an_invite(tmp_path: Path, invite: Invite) -> None:
    old = os.umask(0)
    try:
        invite.write(tmp_path / "anna.invite")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "anna.invite").stat().st_mode) == 0o600


def test_an_existing_file_is_not_overwritten(tmp_path: Path, invite: Invite) -> None:
    path = tmp_path / "anna.invite"
    path.write_text("precious")
    with pytest.raises(InviteError, match="exists already"):
        invite.write(path)
    assert path.read_text() == "precious"


def test_the_token_is_not_shown(invite: Invite) -> None:
    assert TOKEN in invite.model_dump_json()
    assert TOKEN not in repr(invite)
    assert TOKEN not in str(invite)


def refusal(path: Path) -> str:
    with pytest.raises(InviteError) as caught:
        Invite.read(path)
    assert caught.value.hint
    # Neither in the text nor in what a traceback would show.
    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__
    assert TOKEN not in shown
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("owner", "../anna"),
        ("address", "gpu.example.org"),
        ("address", "https://gpu.example.org:9443/"),
        ("ca_certificate", "x" * 20_001),
        ("token", "short"),
        ("token", TOKEN + "x"),
        ("token", [TOKEN]),
        ("federation", {}),
        ("federation", TOKEN),
        ("extra", TOKEN),
        ("owner", TOKEN + "/"),
    ],
)
def test_a_damaged_invite_is_refused_without_telling_the_token(
    tmp_path: Path, invite: Invite, field: str, value: Any
) -> None:
    content = json.loads(invite.model_dump_json()) | {field: value}
    path = tmp_path / "anna.invite"
    path.write_text(json.dumps(content))
    assert field in refusal(path)
    del content[field]
    path.write_text(json.dumps(content))
    if field not in ("version", "extra"):
        assert field in refusal(path)


@in_tmp_path
@given(data=st.data())
def test_no_damage_shows_the_token(tmp_path: Path, invite: Invite, data: st.DataObject) -> None:
    path = tmp_path / "anna.invite"
    content = bytearray(invite.model_dump_json(indent=2).encode())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(1, 40))] = data.draw(st.binary(max_size=10))
    path.write_bytes(content)
    shown = ""
    try:
        Invite.read(path)
    except InviteError as error:
        shown = str(error)
    # A hit in the middle of the token may leave parts of it; no part is repeated either.
    assert TOKEN[:12] not in shown
    assert TOKEN[-12:] not in shown


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 5000, b"null", b"NaN"])
def test_what_is_no_invite_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "anna.invite"
    path.write_bytes(content)
    assert "is not an invite" in refusal(path)


def test_a_missing_invite_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "cannot read the invite" in refusal(tmp_path / "none")
    assert "cannot read the invite" in refusal(tmp_path)


def test_an_oversized_file_is_refused_without_reading_it_all(tmp_path: Path, invite: Invite) -> None:
    path = tmp_path / "anna.invite"
    with path.open("wb") as file:
        file.write(invite.model_dump_json().encode())
        file.write(b" " * MAX_INVITE_BYTES)
    assert "too large" in refusal(path)


@given(st.binary(min_size=32, max_size=32))
def test_every_token_fits_the_invite(random_bytes: bytes) -> None:
    token = new_token(random_bytes)
    assert len(token) == 43
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_tokens_differ() -> None:
    assert new_token(secrets.token_bytes(32)) != new_token(secrets.token_bytes(32))
    assert Exchange("updates") is Exchange.UPDATES


# Size of the network.


def test_wide_networks_are_allowed(make_settings: MakeSettings) -> None:
    wide = make_settings(training={"base_maps": 256, "adaptation": (8, 32)}, classes=tuple(map(str, range(1000))))
    assert MOST_WEIGHTS / 2 < count_weights(wide.network_config()) <= MOST_WEIGHTS
