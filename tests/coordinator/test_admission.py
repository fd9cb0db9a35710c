"""Who may take part: one invite, one node key, and nothing that differs from what was agreed."""

from __future__ import annotations

import base64
import datetime
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import ValidationError

from coordinator.admission import admit, find_owner, make_invite, public_key_pem
from coordinator.pki import ensure_certificates
from coordinator.state import StateFolder
from ppfed.enrolment import MOST_IMAGES, EnrolmentRequest
from ppfed.errors import FederationError, InviteError, MismatchError, UsageError
from ppfed.federation import Invite, new_token
from ppfed.images.source import Split

FINGERPRINT = "0123456789abcdef"


def openssh(key: Any) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


KEYS = [openssh(ec.generate_private_key(ec.SECP384R1())) for _ in range(3)]


def compressed(node_key: str) -> str:
    """Write the point of a P-384 key by one coordinate and a sign, which is well-formed and not implemented."""
    kind, text = node_key.split()
    data = base64.b64decode(text)
    point = data[-97:]
    short = bytes([2 + point[-1] % 2]) + point[1:49]
    return f"{kind} {base64.b64encode(data[:-101] + len(short).to_bytes(4, 'big') + short).decode()}"


@pytest.fixture
def state(make_state: Callable[..., StateFolder]) -> StateFolder:
    folder = make_state()
    ensure_certificates(folder.pki, "localhost", datetime.datetime.now(datetime.UTC))
    return folder


class Registered:
    """Stands for Flower's registry of nodes."""

    def __init__(self) -> None:
        self.nodes: list[tuple[str, str]] = []

    def __call__(self, owner: str, node_key: str) -> int:
        self.nodes.append((owner, node_key))
        return 1000 + len(self.nodes)


@pytest.fixture
def register() -> Registered:
    return Registered()


def request(invite: Invite, node_key: str = KEYS[0], **changes: Any) -> EnrolmentRequest:
    settings = invite.federation
    facts = {
        "token": invite.token,
        "node_key": node_key,
        "settings_digest": settings.digest(),
        "fingerprint": FINGERPRINT,
        "cipher": settings.cipher,
        "height": settings.height,
        "width": settings.width,
        "channels": settings.channels,
        "classes": settings.classes,
        "train_images": 10,
        "held_out_images": 2,
        "ppfed_version": "0.1.0",
        **changes,
    }
    return EnrolmentRequest.model_validate(facts)


def test_an_invite_holds_what_an_owner_needs(state: StateFolder) -> None:
    invite = make_invite(state, "anna")
    assert (invite.owner, invite.address, invite.federation) == ("anna", "localhost:9443", state.plan().settings)
    assert invite.ca_certificate == (state.pki / "ca.pem").read_text()
    assert find_owner(state, invite.token).name == "anna"


def test_the_token_is_on_disk_as_a_hash_only(state: StateFolder, register: Registered) -> None:
    invite = make_invite(state, "anna")
    admit(state, request(invite), register)
    stored = b"".join(path.read_bytes() for path in state.folder.rglob("*") if path.is_file())
    assert hashlib.sha256(invite.token.encode()).hexdigest().encode() in stored
    assert invite.token.encode() not in stored


def test_an_unused_invite_can_be_replaced_and_the_old_one_is_void(state: StateFolder, register: Registered) -> None:
    old, new = make_invite(state, "anna"), make_invite(state, "anna")
    assert old.token != new.token
    with pytest.raises(InviteError, match="does not know this invite"):
        admit(state, request(old), register)
    assert admit(state, request(new), register).name == "anna"


def test_an_owner_that_has_joined_is_not_invited_again(state: StateFolder, register: Registered) -> None:
    admit(state, request(make_invite(state, "anna")), register)
    with pytest.raises(UsageError, match="has joined already"):
        make_invite(state, "anna")


def test_an_owner_that_lost_its_folder_is_replaced(state: StateFolder, register: Registered) -> None:
    lost = make_invite(state, "anna")
    admit(state, request(lost), register)
    with state.running(), pytest.raises(UsageError, match="a coordinator is running"):
        make_invite(state, "anna", replace=True)
    assert "anna" in state.owners().enrolled()
    invite = make_invite(state, "anna", replace=True)
    assert state.owners().enrolled() == {}
    admit(state, request(invite, KEYS[1]), register)
    assert register.nodes == [("anna", KEYS[0]), ("anna", KEYS[1])]
    with pytest.raises(InviteError, match="does not know this invite"):
        admit(state, request(lost), register)
    # Flower knows its first node still, should the folder be found again.
    admit(state, request(make_invite(state, "anna", replace=True)), register)
    assert state.owners().enrolled()["anna"].node_id == 1001
    assert len(register.nodes) == 2


def test_what_the_former_holder_of_a_place_sent_is_deleted(state: StateFolder, register: Registered) -> None:
    """It may have been a thief of the invite: its images must not be trained on under the owner's name."""
    for name, key in (("anna", KEYS[0]), ("bert", KEYS[1])):
        admit(state, request(make_invite(state, name), key), register)
        state.set_delivered(name, {Split.TRAIN: (1,), Split.HELD_OUT: ()})
        (state.store(name) / "train").mkdir(parents=True)
        (state.store(name) / "train" / "00000.arrow").write_bytes(b"images")
    make_invite(state, "anna", replace=True)
    assert set(state.delivered()) == {"bert"}
    assert not state.store("anna").exists()
    assert (state.store("bert") / "train" / "00000.arrow").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_an_invite_that_cannot_be_written_changes_nothing(
    state: StateFolder, register: Registered, tmp_path: Path, replace: bool
) -> None:
    invite = make_invite(state, "anna", tmp_path / "anna.invite")
    assert Invite.read(tmp_path / "anna.invite") == invite
    if replace:
        admit(state, request(invite), register)
    before = state.owners()
    for path, reason in ((tmp_path / "no" / "folder", "cannot write the invite"), (tmp_path, "exists already")):
        with pytest.raises(InviteError, match=reason):
            make_invite(state, "anna", path, replace=replace)
    assert state.owners() == before
    assert find_owner(state, invite.token).name == "anna"


def test_no_invite_is_left_that_nobody_knows(
    state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coordinator.state.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        make_invite(state, "anna", tmp_path / "anna.invite")
    assert not (tmp_path / "anna.invite").exists()


def test_no_more_owners_are_invited_than_take_part(state: StateFolder) -> None:
    for name in ("anna", "bert"):
        make_invite(state, name)
    with pytest.raises(UsageError, match="all 2 owners of this federation are invited: anna, bert"):
        make_invite(state, "carl")
    make_invite(state, "bert")


def test_an_owner_is_admitted(state: StateFolder, register: Registered) -> None:
    admit(state, request(make_invite(state, "anna"), train_images=7, copies=3), register)
    enrolled = StateFolder(state.folder).owners().enrolled()["anna"]
    assert (enrolled.node_id, enrolled.fingerprint) == (1001, FINGERPRINT)
    assert (enrolled.train_images, enrolled.held_out_images, enrolled.copies) == (7, 2, 3)
    assert register.nodes == [("anna", KEYS[0])]
    assert state.joined_at().keys() == {"anna"}


def test_the_same_owner_may_ask_again(state: StateFolder, register: Registered) -> None:
    invite = make_invite(state, "anna")
    admit(state, request(invite), register)
    # The comment is no part of the key.
    admit(state, request(invite, f"{KEYS[0]} anna@laptop", train_images=11), register)
    assert register.nodes == [("anna", KEYS[0])]
    assert state.owners().enrolled()["anna"].train_images == 11


def test_an_invite_is_bound_to_the_first_node_key(state: StateFolder, register: Registered) -> None:
    invite = make_invite(state, "anna")
    admit(state, request(invite), register)
    before = state.owners()
    with pytest.raises(InviteError, match="invite of anna was used by another node key"):
        admit(state, request(invite, KEYS[1]), register)
    assert state.owners() == before
    assert len(register.nodes) == 1


def test_an_unknown_token_is_refused(state: StateFolder, register: Registered) -> None:
    invite = make_invite(state, "anna")
    with pytest.raises(InviteError, match="does not know this invite") as caught:
        admit(state, request(invite, token=new_token(bytes(32))), register)
    assert "ppfed coordinator invite" in caught.value.hint
    assert register.nodes == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fingerprint": "f" * 16}, r"the key differs.*0123456789abcdef.*ffffffffffffffff"),
        ({"cipher": {"scope": "fixed"}}, "the cipher differs.*image scope.*fixed scope"),
        ({"cipher": {"colour_shuffle": False}}, "the cipher differs.*shuffle on.*shuffle off"),
        ({"height": 16}, "the image size differs.*8x8x3.*16x8x3"),
        ({"channels": 1}, "the image size differs.*8x8x3.*8x8x1"),
        ({"classes": ("cat",)}, "the class list differs: you lack dog"),
        ({"classes": ("cat", "dog", "emu")}, "the class list differs: you have emu besides"),
        ({"classes": ("dog", "cat")}, "the class list differs: the order is another"),
        ({"settings_digest": "0" * 64}, "other settings than this federation's"),
    ],
)
def test_each_mismatch_says_what_differs_and_what_to_do(
    state: StateFolder, register: Registered, changes: dict[str, Any], says: str
) -> None:
    admit(state, request(make_invite(state, "anna")), register)
    before = state.owners().enrolled()
    invite = make_invite(state, "bert")
    with pytest.raises(MismatchError, match=says) as caught:
        admit(state, request(invite, KEYS[1], **changes), register)
    assert caught.value.hint
    assert state.owners().enrolled() == before
    assert [owner for owner, _ in register.nodes] == ["anna"]
    # It can be put right with the same invite.
    admit(state, request(invite, KEYS[1]), register)
    assert set(state.owners().enrolled()) == {"anna", "bert"}


def test_a_fingerprint_that_was_agreed_binds_the_first_owner_too(
    make_state: Callable[..., StateFolder], register: Registered
) -> None:
    state = make_state("agreed", fingerprint="f" * 16)
    ensure_certificates(state.pki, "localhost", datetime.datetime.now(datetime.UTC))
    invite = make_invite(state, "anna")
    with pytest.raises(MismatchError, match="the key differs"):
        admit(state, request(invite), register)
    admit(state, request(invite, fingerprint="f" * 16), register)


def test_a_first_owner_alone_may_change_its_key(state: StateFolder, register: Registered) -> None:
    invite = make_invite(state, "anna")
    admit(state, request(invite), register)
    admit(state, request(invite, fingerprint="f" * 16), register)
    with pytest.raises(MismatchError, match="the key differs"):
        admit(state, request(make_invite(state, "bert"), KEYS[1]), register)


def test_of_two_first_owners_at_once_the_later_is_measured_by_the_earlier(
    state: StateFolder, register: Registered
) -> None:
    anna, bert = make_invite(state, "anna"), make_invite(state, "bert")

    def meanwhile(owner: str, node_key: str) -> int:
        admit(state, request(anna, KEYS[0]), register)
        return register(owner, node_key)

    with pytest.raises(MismatchError, match="the key differs"):
        admit(state, request(bert, KEYS[1], fingerprint="f" * 16), meanwhile)
    assert set(state.owners().enrolled()) == {"anna"}


def test_an_invite_that_is_replaced_while_it_is_used_is_void(state: StateFolder, register: Registered) -> None:
    old = make_invite(state, "anna")
    newer: list[Invite] = []

    def meanwhile(owner: str, node_key: str) -> int:
        newer.append(make_invite(state, "anna"))
        return register(owner, node_key)

    with pytest.raises(InviteError, match="replaced"):
        admit(state, request(old), meanwhile)
    assert find_owner(state, newer[0].token).enrolled is None


@pytest.mark.parametrize("images", ["train_images", "held_out_images"])
def test_no_owner_has_more_images_than_there_are(state: StateFolder, images: str) -> None:
    invite = make_invite(state, "anna")
    request(invite, **{images: MOST_IMAGES})
    with pytest.raises(ValidationError, match=images):
        request(invite, **{images: MOST_IMAGES + 1})


def test_too_few_images_to_train_on_are_refused(make_state: Callable[..., StateFolder], register: Registered) -> None:
    small = make_state("small", exchange="gradients", training={"min_local_batch": 11})
    ensure_certificates(small.pki, "localhost", datetime.datetime.now(datetime.UTC))
    with pytest.raises(FederationError, match="needs 11 images to train on at least, and you have 10"):
        admit(small, request(make_invite(small, "anna")), register)
    assert not small.owners().enrolled()


# An image of 8x8x3 takes 192 bytes, and 52 for its id, label and digest.
@pytest.mark.parametrize(
    ("free_bytes", "stored_bytes", "brought", "good"),
    [
        (5000 * 244, 0, {"train_images": 2000, "held_out_images": 1000}, True),
        (5000 * 244 - 1, 0, {"train_images": 2000, "held_out_images": 1000}, False),
        (5000 * 244, 0, {"train_images": 1000, "copies": 2, "held_out_images": 1001}, False),
        (4000 * 244, 1000 * 244, {"train_images": 2000, "held_out_images": 1000}, True),
        (10**13, 0, {"train_images": MOST_IMAGES, "copies": 1000}, False),
    ],
)
def test_images_that_the_disk_cannot_hold_are_refused(
    make_state: Callable[..., StateFolder],
    register: Registered,
    monkeypatch: pytest.MonkeyPatch,
    free_bytes: int,
    stored_bytes: int,
    brought: dict[str, int],
    good: bool,
) -> None:
    """Those of the others count: they may not have been sent yet. Those on disk need no room any more."""
    for exchange in ("images", "updates"):
        state = make_state(exchange, exchange=exchange)
        ensure_certificates(state.pki, "localhost", datetime.datetime.now(datetime.UTC))
        admit(state, request(make_invite(state, "bert"), train_images=1500, held_out_images=500), register)
        shard = state.store("bert") / "train" / "00000.arrow"
        shard.parent.mkdir(parents=True)
        shard.write_bytes(bytes(stored_bytes))
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free_bytes))
        asked = request(make_invite(state, "anna"), KEYS[1], **brought)
        if good or exchange == "updates":
            admit(state, asked, register)
        else:
            with pytest.raises(FederationError, match="has room for") as caught:
                admit(state, asked, register)
            assert caught.value.hint
            assert set(state.owners().enrolled()) == {"bert"}


def test_an_owner_that_joins_again_needs_room_once(
    make_state: Callable[..., StateFolder], register: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state("images", exchange="images")
    ensure_certificates(state.pki, "localhost", datetime.datetime.now(datetime.UTC))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1500 * 244))
    invite = make_invite(state, "anna")
    for _ in range(2):
        admit(state, request(invite, train_images=1000, held_out_images=500), register)
    with pytest.raises(FederationError, match="has room for"):
        admit(state, request(invite, train_images=1000, held_out_images=501), register)


@pytest.mark.parametrize(
    "node_key",
    [
        openssh(ec.generate_private_key(ec.SECP256R1())),
        openssh(ec.generate_private_key(ec.SECP521R1())),
        openssh(ed25519.Ed25519PrivateKey.generate()),
        openssh(rsa.generate_private_key(65537, 2048)),
        "",
        "garbage",
        "ecdsa-sha2-nistp384 AAAA",
        KEYS[0][:-20],
        KEYS[0].replace("nistp384", "nistp256"),
        compressed(KEYS[0]),
        "\ud800",
        "ünïcode",
    ],
    ids=lambda key: ascii(key[:24]),
)
def test_a_node_key_other_than_p384_is_refused(state: StateFolder, register: Registered, node_key: str) -> None:
    invite = make_invite(state, "anna")
    asked = request(invite).model_copy(update={"node_key": node_key})
    with pytest.raises(FederationError, match="not a P-384 public key"):
        admit(state, asked, register)
    assert register.nodes == []
    assert state.owners().enrolled() == {}


def test_if_flower_refuses_the_node_the_owner_is_not_admitted(state: StateFolder) -> None:
    def refuse(_owner: str, _node_key: str) -> int:
        raise FederationError("'flwr supernode register' failed")

    with pytest.raises(FederationError, match="register"):
        admit(state, request(make_invite(state, "anna")), refuse)
    assert state.owners().enrolled() == {}


def test_node_keys_are_compared_as_flower_presents_them() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    expected = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert public_key_pem(openssh(key)) == expected
