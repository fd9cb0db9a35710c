"""A federation from the owners' arrival to the model, in memory: only Flower's network is missing."""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.app.error import Error
from safetensors.torch import save

from coordinator import processes, server_app, training_run
from coordinator.processes import Processes
from coordinator.server_app import run_federation
from coordinator.state import STATE_VARIABLE
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, ServiceError, UsageError
from ppfed.federation import ModelOrigin
from ppfed.images.source import Split
from ppfed.images.types import EncryptedImages
from ppfed.model_folder import load_model
from ppfed.networks.classifier import build_network
from ppfed.networks.config import Backbone
from ppfed.networks.state import load_network_state, network_state
from ppfed.store import Shard
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig, evaluate
from ppfed.training.settings import DataPlacement
from ppfed.wire.messages import EVALUATE, FINISH, SHARD, TRAIN

MakeFederation = Callable[..., SimpleNamespace]
Audit = Callable[..., list[dict[str, Any]]]

CPU = torch.device("cpu")
EXCHANGES = ["images", "updates"]
AVERAGED = {"average_passes": 0.7, "alternate_flip": True}


@pytest.fixture(autouse=True)
def short_farewells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_app, "_FAREWELL_S", 0.5)
    monkeypatch.setattr(server_app, "_LAST_FAREWELL_S", 0.5)


def train_further(federation: SimpleNamespace) -> None:
    """Let the federation begin with another model's weights."""
    network = build_network(federation.settings.network_config(), 99)
    weights = save(network_state(network))
    origin = ModelOrigin(
        federation="former",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        fingerprint="0" * 16,
    )
    federation.state.initial_weights.write_bytes(weights)
    settings = federation.settings.model_copy(update={"initial_model": origin})
    federation.state.set_plan(federation.plan.model_copy(update={"settings": settings}))


def trained_by_hand(federation: SimpleNamespace) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train on all owners' encrypted images at once: no federation, only the one training loop."""
    settings = federation.settings
    images = {
        split: ImageTensors.from_shards(
            [
                shard
                for owner in sorted(federation.prepared)
                for shard in federation.prepared[owner].store.shards(split)
            ],
            settings.shape,
            CPU,
        )
        for split in Split
    }
    further = federation.state.plan().settings.initial_model is not None
    network = build_network(settings.network_config(), 99 if further else settings.training.seed)
    trainer = Trainer(network, TrainingConfig.of(settings.training), CPU)
    accuracies = []
    for _ in trainer.train_epochs(images[Split.TRAIN], 0, settings.training.epochs):
        accuracies.append(evaluate(trainer.trained, images[Split.HELD_OUT]).accuracy)
    return network_state(trainer.trained), accuracies


@pytest.mark.parametrize("backbone", Backbone)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_federation_ends_with_a_model_for_everyone(
    make_federation: MakeFederation, audit: Audit, exchange: str, backbone: Backbone, fingerprint: str
) -> None:
    federation = make_federation(exchange=exchange, training={"rounds": 2, "seed": 3, "backbone": backbone})
    run_federation(federation.grid, federation.state, Processes("cpu"))
    status = federation.state.status()
    assert (status.phase, status.message) == (Phase.FINISHED, "")
    assert [record.round for record in status.rounds] == [1, 2]
    if exchange == "images":
        assert (status.images_received, status.images_expected) == (40, 40)
    model = load_model(federation.state.model, CPU)
    card = model.card
    assert (card.federation, card.exchange, card.fingerprint) == ("zoo", exchange, fingerprint)
    assert (card.rounds, card.local_epochs, card.seed, card.classes) == (2, 1, 3, ("cat", "dog"))
    assert [(one.name, one.train_images, one.held_out_images) for one in card.owners] == [
        ("anna", 19, 6),
        ("bert", 10, 5),
    ]
    assert card.held_out_images == 11
    assert card.cipher_spec() == federation.settings.cipher.spec
    assert card.leakage is not None
    assert card.leakage.cipher == federation.settings.cipher
    assert card.network_config() == federation.settings.network_config()
    assert card.accuracy == status.rounds[-1].accuracy
    # What the card claims is what the model does.
    correct = sum(
        evaluate(
            model.network,
            ImageTensors.from_shards(list(one.store.shards(Split.HELD_OUT)), federation.settings.shape, CPU),
        ).correct
        for one in federation.prepared.values()
    )
    assert card.accuracy == pytest.approx(correct / 11, rel=1e-12)
    for app in federation.apps.values():
        assert app.farewell is not None
        assert app.farewell.completed
        assert app.card == card
        theirs = load_model(app._model_folder, CPU)
        mine = network_state(model.network)
        assert all(torch.equal(tensor, mine[name]) for name, tensor in network_state(theirs.network).items())
    assert "model written" in [line["event"] for line in audit(federation.state)]


@pytest.mark.parametrize(("options", "further"), [({}, True), (AVERAGED, False)], ids=["further", "averaged"])
def test_several_processes_train_the_model_that_one_would(
    make_federation: MakeFederation, options: dict[str, Any], further: bool
) -> None:
    # A rate at which rounding does not grow: see tests/coordinator/test_processes.py.
    training = {"rounds": 2, "seed": 3, "base_maps": 4, "learning_rate": 0.002, **options}
    federation = make_federation(exchange="images", training=training)
    if further:
        train_further(federation)
    run_federation(federation.grid, federation.state, Processes("cpu", 2))
    status = federation.state.status()
    assert (status.phase, status.message) == (Phase.FINISHED, "")
    assert [record.round for record in status.rounds] == [1, 2]
    model = load_model(federation.state.model, CPU)
    weights, accuracies = trained_by_hand(federation)
    assert [record.accuracy for record in status.rounds] == accuracies
    torch.testing.assert_close(network_state(model.network), weights, rtol=1e-4, atol=1e-4)
    assert all(app.farewell.completed for app in federation.apps.values())


@pytest.mark.slow
def test_a_compiled_network_ends_as_the_model_that_an_eager_one_would(make_federation: MakeFederation) -> None:
    # A rate at which rounding does not grow (tests/coordinator/test_processes.py), and all 29 images in one batch: each
    # size of a batch is compiled for itself. A ConvMixer is compiled most quickly.
    training = {"rounds": 3, "seed": 3, "base_maps": 4, "learning_rate": 0.002, "batch_size": 32}
    training |= {"backbone": "convmixer", "adaptation": ()}
    federation = make_federation(exchange="images", training=training)
    run_federation(federation.grid, federation.state, Processes("cpu", compiled=True))
    assert list(federation.state.compiled.rglob("*.so"))
    model = load_model(federation.state.model, CPU)
    weights, accuracies = trained_by_hand(federation)
    assert [record.accuracy for record in federation.state.status().rounds] == accuracies
    torch.testing.assert_close(network_state(model.network), weights, rtol=1e-4, atol=1e-4)


def test_processes_that_fail_end_the_run_with_a_reason(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Torchrun refuses what is not one of its modules, as it would an installation that is damaged.
    monkeypatch.setattr(processes, "torchrun_arguments", lambda _state, _processes: ["--module", "nowhere"])
    federation = make_federation(exchange="images", training={"rounds": 2})
    with pytest.raises(ServiceError, match="training with 2 processes"):
        run_federation(federation.grid, federation.state, Processes("cpu", 2))
    status = federation.state.status()
    assert status.phase is Phase.FAILED
    assert "training with 2 processes" in status.message


@pytest.mark.parametrize(
    ("asked", "chosen", "options"),
    [
        ("auto", "resident", {}),
        ("resident", "resident", {}),
        ("streamed", "streamed", {}),
        ("streamed", "streamed", AVERAGED),
    ],
)
def test_images_train_the_same_model_as_one_party_would(
    make_federation: MakeFederation, audit: Audit, asked: str, chosen: str, options: dict[str, Any]
) -> None:
    """To the bit: on the CPU and on one thread the same steps give the same numbers."""
    federation = make_federation(exchange="images", training={"rounds": 3, "seed": 3, **options})
    run_federation(federation.grid, federation.state, Processes("cpu", placement=DataPlacement(asked)))
    (placed,) = [line for line in audit(federation.state) if line["event"] == "images placed"]
    # 29 images to train on and 11 held out, with their labels.
    assert (placed["asked"], placed["placement"], placed["size_bytes"]) == (asked, chosen, 40 * (8 * 8 * 3 + 8))
    expected, accuracies = trained_by_hand(federation)
    state = network_state(load_model(federation.state.model, CPU).network)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert [record.accuracy for record in federation.state.status().rounds] == accuracies
    start = network_state(build_network(federation.settings.network_config(), 3))
    assert not all(torch.equal(state[name], start[name]) for name in start)


def test_a_model_is_trained_further_to_the_bit_as_by_hand(make_federation: MakeFederation) -> None:
    federation = make_federation(exchange="images", training={"rounds": 2, "seed": 3})
    train_further(federation)
    run_federation(federation.grid, federation.state, Processes("cpu"))
    expected, accuracies = trained_by_hand(federation)
    model = load_model(federation.state.model, CPU)
    state = network_state(model.network)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert [record.accuracy for record in federation.state.status().rounds] == accuracies
    assert model.card.trained_further_from == federation.state.plan().settings.initial_model


@pytest.mark.parametrize("damage", ["missing", "other", "cut"])
def test_weights_to_train_further_that_are_damaged_end_the_run_with_a_reason(
    make_federation: MakeFederation, damage: str
) -> None:
    federation = make_federation(exchange="updates")
    train_further(federation)
    path = federation.state.initial_weights
    match damage:
        case "missing":
            path.unlink()
        case "other":
            path.write_bytes(save(network_state(build_network(federation.settings.network_config(), 98))))
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match="cannot be used") as caught:
        run_federation(federation.grid, federation.state, Processes("cpu"))
    assert "former of 2026-01-01" in caught.value.hint
    assert federation.state.status().phase is Phase.FAILED


def test_in_updates_no_image_reaches_the_coordinator(make_federation: MakeFederation) -> None:
    federation = make_federation(exchange="updates")
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert not (federation.state.folder / "store").exists()
    assert {kind for _, kind in federation.grid.asked} == {TRAIN, EVALUATE, FINISH}


@pytest.mark.parametrize(
    ("exchange", "last", "options"),
    [
        ("images", 1, {}),
        ("images", 3, {}),
        ("images", 1, AVERAGED),
        ("images", 3, AVERAGED),
        ("updates", 3, {}),
        ("updates", 3, {"alternate_flip": True}),
    ],
)
def test_a_crash_right_after_a_checkpoint_loses_nothing(
    make_federation: MakeFederation,
    monkeypatch: pytest.MonkeyPatch,
    exchange: str,
    last: int,
    options: dict[str, Any],
) -> None:
    """Going on equals an undisturbed run; the last round's accuracy must not be that of the round before."""
    training = {"rounds": 3, **options}
    whole = make_federation(name="whole", exchange=exchange, training=training)
    run_federation(whole.grid, whole.state, Processes("cpu"))
    federation = make_federation(name="crashed", exchange=exchange, training=training)

    class KilledError(BaseException):
        """Like a signal: nothing handles it."""

    module = "coordinator.pooled" if exchange == "images" else "coordinator.rounds"
    import importlib

    home = importlib.import_module(module)
    save = home.save_checkpoint

    def save_and_die(folder: Any, checkpoint: Any) -> None:
        save(folder, checkpoint)
        if checkpoint.rounds == last:
            raise KilledError

    with monkeypatch.context() as broken:
        broken.setattr(home, "save_checkpoint", save_and_die)
        with pytest.raises(KilledError):
            run_federation(federation.grid, federation.state, Processes("cpu"))
    run_federation(federation.grid, federation.state, Processes("cpu"))
    mine, theirs = federation.state.status(), whole.state.status()
    assert mine.phase is Phase.FINISHED
    assert [(one.round, one.accuracy, one.train_loss) for one in mine.rounds] == [
        (one.round, one.accuracy, one.train_loss) for one in theirs.rounds
    ]
    cards = [load_model(one.state.model, CPU).card for one in (federation, whole)]
    assert (cards[0].accuracy, cards[0].rounds) == (cards[1].accuracy, cards[1].rounds)
    states = [network_state(load_model(one.state.model, CPU).network) for one in (federation, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_stop_request_ends_it_and_the_owners_are_told(
    make_federation: MakeFederation, audit: Audit, exchange: str
) -> None:
    federation = make_federation(exchange=exchange, training={"rounds": 50})
    kind = TRAIN if exchange == "updates" else SHARD

    def stop_at_fourth(_owner: str, question: Message, answer: Message) -> Message:
        if [one for _, one in federation.grid.asked].count(kind) == 4:
            federation.state.stop_request.touch()
        return answer

    federation.faults.mutate = stop_at_fourth
    run_federation(federation.grid, federation.state, Processes("cpu"))
    status = federation.state.status()
    assert status.phase is Phase.STOPPED
    assert "asked to stop" in status.message
    assert not federation.state.model.exists()
    for app in federation.apps.values():
        assert app.farewell is not None
        assert (app.farewell.completed, app.farewell.message) == (False, status.message)
        assert app.card is None
    assert "stopped" in [line["event"] for line in audit(federation.state)]


def test_a_stop_request_ends_the_wait_for_owners(make_federation: MakeFederation) -> None:
    federation = make_federation()
    federation.faults.offline.add("bert")
    timer = threading.Timer(0.2, federation.state.stop_request.touch)
    timer.start()
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert federation.state.status().phase is Phase.STOPPED
    assert federation.apps["anna"].farewell is not None


def test_a_federation_below_its_quorum_fails_and_the_owners_are_told(make_federation: MakeFederation) -> None:
    federation = make_federation(deadline_s=0.2, quorum=2)
    federation.faults.drop = lambda owner, question: owner == "bert" and question.metadata.message_type == TRAIN
    with pytest.raises(FederationError, match="3 attempts in a row"):
        run_federation(federation.grid, federation.state, Processes("cpu"))
    status = federation.state.status()
    assert status.phase is Phase.FAILED
    assert "3 attempts in a row" in status.message
    assert all(app.farewell.message == status.message for app in federation.apps.values())


def test_an_internal_error_fails_it_without_telling_details(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation()

    def explode(*_arguments: Any) -> None:
        raise ZeroDivisionError("/home/somebody/secret")

    monkeypatch.setattr(training_run, "write_model", explode)
    with pytest.raises(ZeroDivisionError):
        run_federation(federation.grid, federation.state, Processes("cpu"))
    status = federation.state.status()
    assert status.phase is Phase.FAILED
    assert "ZeroDivisionError" in status.message
    assert "secret" not in status.message
    for app in federation.apps.values():
        assert app.farewell is not None
        assert "secret" not in app.farewell.message


def test_the_status_is_written_even_where_nobody_can_be_told(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation()

    def explode() -> list[int]:
        raise ConnectionError("the SuperLink is gone")

    federation.grid.get_node_ids = explode
    with pytest.raises(ConnectionError):
        run_federation(federation.grid, federation.state, Processes("cpu"))
    assert federation.state.status().phase is Phase.FAILED


def test_an_owner_that_does_not_hear_the_end_is_on_record(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation()
    federation.faults.drop = lambda owner, question: owner == "bert" and question.metadata.message_type == FINISH
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert federation.state.status().phase is Phase.FINISHED
    assert federation.apps["anna"].card is not None
    assert [line["owner"] for line in audit(federation.state) if line["event"] == "did not hear the end"] == ["bert"]


def test_an_owner_left_out_of_the_intake_is_on_no_card_but_is_told(
    make_federation: MakeFederation, nonsense: Any
) -> None:
    federation = make_federation(exchange="images", quorum=1)
    federation.faults.mutate = lambda owner, question, answer: (
        Message(nonsense, reply_to=question) if owner == "bert" and question.metadata.message_type == SHARD else answer
    )
    run_federation(federation.grid, federation.state, Processes("cpu"))
    card = load_model(federation.state.model, CPU).card
    assert [(one.name, one.train_images) for one in card.owners] == [("anna", 19)]
    assert card.held_out_images == 6
    assert federation.apps["bert"].farewell is not None


def test_the_card_counts_an_image_once(make_federation: MakeFederation) -> None:
    """An owner announced three variants of each image, or sends the same image again and again: the ids tell."""
    federation = make_federation(
        {"anna": ((12, 12, 12), (6,)), "bert": ((12,), (4,))},
        exchange="images",
        enrolled={"anna": {"train_images": 12, "copies": 3}},
    )
    store = federation.prepared["anna"].store
    first = next(store.shards(Split.TRAIN))
    for index in (1, 2):
        store.write(Split.TRAIN, index, first)
    repeated = next(federation.prepared["bert"].store.shards(Split.HELD_OUT))
    once = EncryptedImages(
        repeated.images.pixels,
        repeated.images.ids[[0, 0, 0, 1]],
        repeated.images.cipher,
        repeated.images.fingerprint,
    )
    federation.prepared["bert"].store.write(Split.HELD_OUT, 0, Shard(once, repeated.labels))
    run_federation(federation.grid, federation.state, Processes("cpu"))
    card = load_model(federation.state.model, CPU).card
    assert [(one.name, one.train_images, one.held_out_images) for one in card.owners] == [
        ("anna", 12, 6),
        ("bert", 12, 2),
    ]


def test_no_image_to_train_on_is_a_failure(make_federation: MakeFederation) -> None:
    federation = make_federation({"anna": ((), (4,))}, exchange="images", enrolled={"anna": {"train_images": 1}})
    with pytest.raises(FederationError, match="lists 0 shards of split train"):
        run_federation(federation.grid, federation.state, Processes("cpu"))
    assert federation.state.status().phase is Phase.FAILED


def test_the_flower_app_reads_the_environment(make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(training={"rounds": 1})
    monkeypatch.setenv(STATE_VARIABLE, str(federation.state.folder))
    for name, value in Processes("cpu").environment().items():
        monkeypatch.setenv(name, value)
    server_app.main(federation.grid, None)
    assert federation.state.status().phase is Phase.FINISHED
    assert json.loads((federation.state.folder / "status.json").read_text())["phase"] == "finished"


def test_questions_of_an_owner_that_reports_errors_do_not_end_the_run(
    make_federation: MakeFederation, audit: Audit
) -> None:
    federation = make_federation(quorum=1, training={"rounds": 1})
    federation.faults.mutate = lambda owner, question, answer: (
        Message(Error(2, "x" * 10_000), reply_to=question) if owner == "bert" else answer
    )
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert federation.state.status().phase is Phase.FINISHED
    # What a peer writes is not repeated without end.
    assert all(len(line.get("reason") or "") < 600 for line in audit(federation.state))
    assert load_network_state is not None


THREE = {"anna": ((12, 7), (6,)), "bert": ((10,), (5,)), "carl": ((8,), ())}


class KilledError(BaseException):
    """Like a signal: nothing handles it."""


def kill_when(federation: SimpleNamespace, reached: Callable[[Message], bool]) -> None:
    def refuse(_owner: str, question: Message) -> bool:
        if reached(question):
            raise KilledError
        return False

    federation.faults.refuse = refuse
    with pytest.raises(KilledError):
        run_federation(federation.grid, federation.state, Processes("cpu"))
    federation.faults.refuse = lambda _owner, _question: False


@pytest.mark.parametrize("exchange", ["updates", "gradients"])
def test_a_federation_that_is_started_again_goes_on_without_an_owner_that_is_gone(
    make_federation: MakeFederation, audit: Audit, exchange: str
) -> None:
    training = {"rounds": 3, "batch_size": 20, "learning_rate": 0.02}
    federation = make_federation(THREE, exchange=exchange, quorum=2, deadline_s=2.0, training=training)
    kill_when(federation, lambda question: str(question.metadata.group_id).startswith("round 2"))
    federation.faults.offline.add("carl")
    said: list[str] = []
    federation.faults.mutate = lambda _owner, _question, answer: (
        said.append(federation.state.status().message) or answer
    )
    run_federation(federation.grid, federation.state, Processes("cpu"))
    status = federation.state.status()
    assert status.phase is Phase.FINISHED
    assert status.message == f"carl did not get the model: send them the folder {federation.state.model}"
    assert [line["owner"] for line in audit(federation.state) if line["event"] == "did not hear the end"] == ["carl"]
    assert [record.round for record in status.rounds] == [1, 2, 3]
    assert [line["owners"] for line in audit(federation.state) if line["event"] == "goes on without"] == ["carl"]
    assert said[0] == "going on without carl, who may join again"
    # It may have, by then.
    assert said[-1] == ""


def test_an_owner_that_does_not_fit_the_steps_is_named_until_the_end(make_federation: MakeFederation) -> None:
    training = {"rounds": 2, "batch_size": 10, "learning_rate": 0.02}
    federation = make_federation(THREE, exchange="gradients", quorum=1, training=training)
    federation.state.steps_of_pass(1)
    federation.state.set_begun()
    large = [name for name, one in federation.enrolled.items() if one.train_images > 10]
    assert large
    said: list[str] = []
    federation.faults.mutate = lambda _owner, _question, answer: (
        said.append(federation.state.status().message) or answer
    )
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert set(said[:-1]) == {
        f"without {', '.join(large)}, who joined late with more images than the steps of a pass have room for"
    }


def test_the_card_counts_the_images_that_were_measured(make_federation: MakeFederation) -> None:
    """And not those of an owner that had left: 3 of 6 are 50 %, and no share of 11."""
    federation = make_federation(quorum=1, deadline_s=2.0)

    def leave(_owner: str, question: Message) -> bool:
        if question.metadata.group_id == "round 2":
            federation.faults.offline.add("bert")
        return False

    federation.faults.refuse = leave
    run_federation(federation.grid, federation.state, Processes("cpu"))
    rounds = federation.state.status().rounds
    assert [(one.owners, one.held_out_images) for one in rounds] == [(2, 6), (1, 6)]
    card = load_model(federation.state.model, CPU).card
    assert card.held_out_images == 6
    assert card.measured() == f"{card.accuracy:.2%} on 6 held-out images of 11, as not all owners were there"
    curve = list(csv.DictReader((federation.state.model / "curve.csv").open()))
    assert [(one["owners"], one["held_out_images"]) for one in curve] == [("2", "6"), ("1", "6")]


def test_a_first_run_waits_for_all(make_federation: MakeFederation) -> None:
    federation = make_federation(THREE, quorum=2, deadline_s=2.0, training={"rounds": 1})
    federation.faults.offline.add("carl")
    timer = threading.Timer(4.0, federation.faults.offline.clear)
    timer.start()
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert [record.owners for record in federation.state.status().rounds] == [3]


def test_a_first_run_that_may_begin_with_fewer_does(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation(THREE, quorum=2, begin_with=2, deadline_s=2.0, training={"rounds": 1})
    federation.faults.offline.add("carl")
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert [record.owners for record in federation.state.status().rounds] == [2]
    assert [line["owners"] for line in audit(federation.state) if line["event"] == "goes on without"] == ["carl"]
    assert federation.state.begun


def test_an_owner_that_joined_too_late_gets_the_model(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation(THREE, quorum=2, begin_with=2, deadline_s=2.0, training={"rounds": 1})
    with federation.state.changing_owners() as owners:
        late = owners.pop("carl")

    def join(_owner: str, question: Message) -> bool:
        with federation.state.changing_owners() as owners:
            owners["carl"] = late
        return False

    federation.faults.refuse = join
    run_federation(federation.grid, federation.state, Processes("cpu"))
    status = federation.state.status()
    assert (status.phase, status.message, status.owners) == (Phase.FINISHED, "", ("anna", "bert"))
    assert [record.owners for record in status.rounds] == [2]
    assert federation.apps["carl"].card == load_model(federation.state.model, CPU).card
    assert [one.name for one in federation.apps["carl"].card.owners] == ["anna", "bert"]


def test_a_later_run_waits_for_the_quorum_as_long_as_it_takes(make_federation: MakeFederation) -> None:
    federation = make_federation(THREE, quorum=2, deadline_s=2.0, training={"rounds": 2})
    kill_when(federation, lambda question: question.metadata.group_id == "round 2")
    federation.faults.offline |= {"bert", "carl"}
    timer = threading.Timer(4.0, lambda: federation.faults.offline.discard("bert"))
    timer.start()
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert [record.owners for record in federation.state.status().rounds] == [3, 2]


def test_a_smaller_quorum_lets_a_federation_go_on_that_lost_too_many(make_federation: MakeFederation) -> None:
    federation = make_federation(THREE, quorum=3, deadline_s=2.0, training={"rounds": 2})
    kill_when(federation, lambda question: question.metadata.group_id == "round 2")
    federation.faults.offline |= {"bert", "carl"}
    federation.state.set_plan(federation.plan.model_copy(update={"quorum": 1}))
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert [record.owners for record in federation.state.status().rounds] == [3, 1]


def test_training_goes_on_without_owners_whose_images_are_all_here(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch, audit: Audit
) -> None:
    """Nobody is online any more, nor waited for, and the model is the one that all would have had."""
    whole = make_federation(name="whole", exchange="images")
    run_federation(whole.grid, whole.state, Processes("cpu"))
    federation = make_federation(exchange="images")

    def die(*_arguments: Any, **_named: Any) -> None:
        raise KilledError

    with monkeypatch.context() as broken:
        broken.setattr(training_run, "train_pooled", die)
        with pytest.raises(KilledError):
            run_federation(federation.grid, federation.state, Processes("cpu"))
    federation.faults.offline |= {"anna", "bert"}
    federation.grid.asked.clear()
    run_federation(federation.grid, federation.state, Processes("cpu"))
    assert federation.state.status().phase is Phase.FINISHED
    assert federation.grid.asked == []
    assert [line["owner"] for line in audit(federation.state) if line["event"] == "complete already"] == [
        "anna",
        "bert",
    ]
    models = [load_model(one.state.model, CPU) for one in (federation, whole)]
    states = [network_state(one.network) for one in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert models[0].card.owners == models[1].card.owners
