"""The owner's app does what was agreed and nothing else, whatever the coordinator asks for."""

from __future__ import annotations

import copy
import datetime
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.metadata import Metadata

from clients.answers import MOST_ANSWERS, AnswerLimit
from clients.owner_app import OwnerApp
from clients.prepared import Prepared
from ppfed.errors import DataError, PeerDataError
from ppfed.federation import Exchange, FederationSettings, Invite, new_token
from ppfed.images.source import Split
from ppfed.model_folder import (
    CURVE_FILE,
    CardOwner,
    ModelCard,
    installed_versions,
    load_model,
)
from ppfed.networks.classifier import build_network
from ppfed.networks.state import load_network_state, network_layout, network_state
from ppfed.training import placement as data_placement
from ppfed.training.curve import CurvePoint, curve_to_json
from ppfed.training.gradients import PartialGradient, Turns, count_moments, owner_offset, step_generator
from ppfed.training.loop import Evaluation, ImageTensors, TrainingConfig
from ppfed.training.streaming import StoredImages
from ppfed.wire.messages import EVALUATE, FINISH, GRADIENT, MANIFEST, SHARD, TRAIN, pack_request
from ppfed.wire.shards import ShardName, pack_shard_request, unpack_manifest, unpack_shard
from ppfed.wire.weights import (
    Farewell,
    GradientOrder,
    RoundOrder,
    pack_farewell,
    pack_gradient_order,
    pack_round_order,
    pack_weights,
    unpack_evaluation,
    unpack_gradient,
    unpack_round_result,
)

CPU = torch.device("cpu")
ALL_TYPES = (MANIFEST, SHARD, TRAIN, GRADIENT, EVALUATE, FINISH)


class Shown:
    """Remembers what the owner was shown."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def shard_sent(self, number: int, total: int, size_bytes: int) -> None:
        self.lines.append(("shard", number, total, size_bytes))

    def round_started(self, number: int, rounds: int, evaluation: Evaluation) -> None:
        self.lines.append(("started", number, rounds, evaluation.count))

    def step(self, done: int, steps: int) -> None:
        self.lines.append(("step", done, steps))

    def round_finished(self, number: int, rounds: int, train_loss: float) -> None:
        self.lines.append(("finished", number, rounds, train_loss))


@pytest.fixture
def make_owner(
    tmp_path: Path, make_settings: Callable[..., FederationSettings], make_prepared: Callable[..., Prepared]
) -> Callable[..., SimpleNamespace]:
    def make(invite_number: int = 0, order_seed: int | None = None, **changes: Any) -> SimpleNamespace:
        settings = make_settings(**changes)
        invite = Invite(
            owner="anna",
            address="127.0.0.1:9443",
            ca_certificate="none",
            token=new_token(bytes([invite_number]) * 32),
            federation=settings,
        )
        limit = AnswerLimit(tmp_path / "answers.json", invite)
        prepared = make_prepared(tmp_path / "store")
        display = Shown()
        app = OwnerApp("anna", settings, prepared, CPU, tmp_path / "model", display, limit, order_seed)
        network = build_network(settings.network_config(), settings.training.seed + 1)
        client_app = app.client_app()

        def ask(message_type: str, content: RecordDict) -> RecordDict:
            metadata = Metadata(
                run_id=1,
                message_id="m",
                src_node_id=1,
                dst_node_id=2,
                reply_to_message_id="",
                group_id="",
                created_at=datetime.datetime.now(datetime.UTC).timestamp(),
                ttl=60.0,
                message_type=message_type,
            )
            message = Message(content=content, metadata=metadata)
            return client_app(message=message, context=Context(1, 2, {}, RecordDict(), {})).content

        return SimpleNamespace(
            app=app, ask=ask, settings=settings, prepared=prepared, display=display, weights=network_state(network)
        )

    return make


def order(owner: SimpleNamespace, number: int = 1) -> RecordDict:
    return pack_round_order(RoundOrder(number, owner.weights))


def step_order(owner: SimpleNamespace, number: int, step: int, steps: int = 3) -> RecordDict:
    """19 images in batches of 8 make three steps."""
    return pack_gradient_order(GradientOrder(number, step, steps, owner.weights))


def card(settings: FederationSettings, fingerprint: str, **changes: Any) -> ModelCard:
    facts = {
        "federation": settings.name,
        "exchange": str(settings.exchange),
        "cipher": settings.cipher,
        "fingerprint": fingerprint,
        "height": settings.height,
        "width": settings.width,
        "channels": settings.channels,
        "classes": settings.classes,
        "adaptation": settings.training.adaptation,
        "base_maps": settings.training.base_maps,
        "mirrored_views": settings.network_config().mirrored_views,
        "owners": (CardOwner(name="anna", train_images=19, held_out_images=6),),
        "rounds": 2,
        "local_epochs": 1,
        "accuracy": 0.5,
        "held_out_images": 6,
        "seed": 0,
        "training": {},
        "versions": installed_versions(),
        "created": datetime.datetime.now(datetime.UTC),
        **changes,
    }
    return ModelCard.model_validate(facts)


def goodbye(owner: SimpleNamespace, card_text: str, curve: str = "[]") -> RecordDict:
    return pack_farewell(Farewell(True, "", card_text, owner.weights, curve))


def contents(owner: SimpleNamespace, fingerprint: str) -> list[RecordDict]:
    """Every kind of content that a message may hold, whatever its type says."""
    return [
        pack_request(),
        pack_shard_request(ShardName(Split.TRAIN, 0)),
        pack_shard_request(ShardName(Split.HELD_OUT, 0)),
        order(owner),
        step_order(owner, 1, 0),
        goodbye(owner, card(owner.settings, fingerprint).model_dump_json()),
        RecordDict(),
        # All at once.
        RecordDict(
            {
                "arrays": pack_weights(owner.weights),
                "config": ConfigRecord({"split": "train", "index": 0, "round": 1, "v": 1, "exchange": "images"}),
            }
        ),
    ]


def holds_images(content: RecordDict, prepared: Prepared) -> bool:
    held = b"".join(array.data for record in content.array_records.values() for array in record.values())
    return any(
        image.tobytes()[:32] in held
        for split in Split
        for shard in prepared.store.shards(split)
        for image in shard.images.pixels
    )


def test_the_check_can_fail(make_owner: Callable[..., SimpleNamespace]) -> None:
    owner = make_owner(exchange="images")
    answer = owner.ask(SHARD, pack_shard_request(ShardName(Split.TRAIN, 0)))
    assert holds_images(answer, owner.prepared)


@pytest.mark.parametrize("message_type", [*ALL_TYPES, "query", "train.shard", "evaluate.shard", "query.more"])
@pytest.mark.parametrize("exchange", ["updates", "gradients"])
def test_no_message_yields_images(
    make_owner: Callable[..., SimpleNamespace], fingerprint: str, message_type: str, exchange: str
) -> None:
    owner = make_owner(exchange=exchange)
    for content in contents(owner, fingerprint):
        try:
            answer = owner.ask(message_type, copy.deepcopy(content))
        except (PeerDataError, ValueError):
            continue
        wanted = TRAIN if exchange == "updates" else GRADIENT
        assert message_type in (wanted, EVALUATE, FINISH)
        assert not holds_images(answer, owner.prepared)
    assert ("shard",) not in [line[:1] for line in owner.display.lines]


@pytest.mark.parametrize("message_type", [MANIFEST, SHARD])
def test_in_updates_images_are_refused_by_name(make_owner: Callable[..., SimpleNamespace], message_type: str) -> None:
    owner = make_owner(exchange="updates")
    with pytest.raises(PeerDataError, match="asked for exchange 'images', and this owner agreed to 'updates'"):
        owner.ask(message_type, pack_shard_request(ShardName(Split.TRAIN, 0)))
    assert owner.app.bytes_out == 0


@pytest.mark.parametrize("message_type", [TRAIN, EVALUATE])
def test_in_images_nothing_is_trained(make_owner: Callable[..., SimpleNamespace], message_type: str) -> None:
    owner = make_owner(exchange="images")
    with pytest.raises(PeerDataError, match=r"asked for exchange 'updates'.*, and this owner agreed to 'images'"):
        owner.ask(message_type, order(owner))


def test_all_shards_are_sent_as_they_are_stored(make_owner: Callable[..., SimpleNamespace], fingerprint: str) -> None:
    owner = make_owner(exchange="images")
    manifest = unpack_manifest(owner.ask(MANIFEST, pack_request()), owner.settings, 25)
    assert len(manifest.names()) == 3
    for name in manifest.names():
        answer = owner.ask(SHARD, pack_shard_request(name))
        checksum = manifest.checksums[name.split][name.index]
        shard = unpack_shard(answer, name, owner.settings, fingerprint, checksum)
        stored = list(owner.prepared.store.shards(name.split))[name.index]
        assert np.array_equal(shard.images.pixels, stored.images.pixels)
    sent = 25 * (8 * 8 * 3 + 12 + 8)
    assert owner.app.bytes_out == sent
    assert owner.display.lines[-1] == ("shard", 3, 3, sent)


def test_a_damaged_shard_is_the_owners_own_trouble(make_owner: Callable[..., SimpleNamespace]) -> None:
    owner = make_owner(exchange="images")
    owner.prepared.store.path(Split.TRAIN, 0).write_bytes(b"garbage")
    with pytest.raises(DataError, match="is not a shard") as failure:
        owner.ask(SHARD, pack_shard_request(ShardName(Split.TRAIN, 0)))
    assert "the coordinator" not in failure.value.message


@pytest.mark.parametrize("name", [ShardName(Split.TRAIN, 2), ShardName(Split.HELD_OUT, 999_999)])
def test_a_shard_that_does_not_exist_is_refused(
    make_owner: Callable[..., SimpleNamespace], tmp_path: Path, name: ShardName
) -> None:
    owner = make_owner(exchange="images")
    with pytest.raises(PeerDataError, match="does not exist") as caught:
        owner.ask(SHARD, pack_shard_request(name))
    assert str(tmp_path) not in str(caught.value)


def test_training_answers_with_weights_and_numbers(make_owner: Callable[..., SimpleNamespace]) -> None:
    owner = make_owner()
    layout = network_layout(build_network(owner.settings.network_config(), 0))
    result = unpack_round_result(owner.ask(TRAIN, order(owner)), 19, 6, layout)
    assert any(not torch.equal(tensor, owner.weights[name]) for name, tensor in result.weights.items())
    measured = unpack_evaluation(owner.ask(EVALUATE, order(owner, 3)), 6)
    assert measured == result.evaluation
    kinds = [line[0] for line in owner.display.lines]
    assert kinds == ["started", "step", "step", "step", "finished"]
    assert owner.app.bytes_out == 4 * sum(tensor.numel() for tensor in owner.weights.values())


@pytest.mark.parametrize("exchange", ["updates", "gradients"])
def test_half_as_much_is_sent_in_bfloat16(make_owner: Callable[..., SimpleNamespace], exchange: str) -> None:
    owner = make_owner(exchange=exchange, training={"update_format": "bfloat16"})
    network = build_network(owner.settings.network_config(), 0)
    parameters, channels = sum(one.numel() for one in network.parameters()), count_moments(network)
    if exchange == "updates":
        answer = owner.ask(TRAIN, order(owner))
        names = {"change", "statistics"}
    else:
        answer = owner.ask(GRADIENT, step_order(owner, 1, 0))
        names = {"gradient", "moments"}
    assert set(answer.array_records["arrays"]) == names
    # Batch norm's means and variances stay float32.
    assert owner.app.bytes_out == 2 * parameters + 4 * 2 * channels


def test_a_change_is_of_the_weights_that_came(make_owner: Callable[..., SimpleNamespace]) -> None:
    """Rounded, it is the same training: the coordinator gets nearly what it would have got whole."""
    owner = make_owner()
    layout = network_layout(owner.app._network)
    whole = unpack_round_result(owner.ask(TRAIN, order(owner)), 19, 6, layout).weights
    changed = make_owner(training={"update_format": "bfloat16"})
    answer = changed.ask(TRAIN, order(changed))
    rounded = unpack_round_result(answer, 19, 6, layout, changed.weights).weights
    assert any(not torch.equal(rounded[name], whole[name]) for name in whole)
    for name, tensor in whole.items():
        # 8 significant bits of the change, and float32's last place of weights around 1.
        allowed = (tensor - changed.weights[name]).abs() / 256 + 1e-6
        assert ((rounded[name] - tensor).abs() <= allowed).all()


@pytest.mark.parametrize("exchange", ["updates", "gradients"])
def test_an_owner_short_of_memory_answers_the_same(
    make_owner: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    answers = []
    for number, (free, kind) in enumerate([(2**40, ImageTensors), (0, StoredImages)]):
        monkeypatch.setattr(data_placement, "free_bytes", lambda _device, free=free: free)
        owner = make_owner(number, exchange=exchange)
        question = (TRAIN, order(owner)) if exchange == "updates" else (GRADIENT, step_order(owner, 1, 1))
        trained, measured = owner.ask(*question), owner.ask(EVALUATE, order(owner, 3))
        arrays = {name: array.data for name, array in trained.array_records["arrays"].items()}
        answers.append((arrays, trained.metric_records, unpack_evaluation(measured, 6)))
        assert isinstance(owner.app._images.train, kind)
    assert answers[0] == answers[1]


def test_a_round_depends_on_its_order_alone(make_owner: Callable[..., SimpleNamespace]) -> None:
    """Asked twice, it trains twice the same: a lost answer can be asked for again."""
    owner = make_owner()
    first, again = (owner.ask(TRAIN, order(owner)) for _ in range(2))
    assert first.array_records["arrays"]["weights"].data == again.array_records["arrays"]["weights"].data
    second = owner.ask(TRAIN, order(owner, 2))
    assert second.array_records["arrays"]["weights"].data != first.array_records["arrays"]["weights"].data


@pytest.mark.parametrize(("message_type", "number"), [(TRAIN, 0), (TRAIN, 3), (EVALUATE, 4)])
def test_a_round_that_was_not_agreed_is_refused(
    make_owner: Callable[..., SimpleNamespace], message_type: str, number: int
) -> None:
    """Two rounds were agreed; the third number is only measured. Beyond the schedule the learning rate is negative."""
    owner = make_owner(training={"rounds": 2})
    with pytest.raises(PeerDataError, match="a round that was not agreed"):
        owner.ask(message_type, order(owner, number))
    assert owner.display.lines == []


def refused(owner: SimpleNamespace, message_type: str, number: int) -> str:
    with pytest.raises(PeerDataError) as caught:
        owner.ask(message_type, order(owner, number))
    return caught.value.message


@pytest.mark.parametrize(("message_type", "number"), [(TRAIN, 2), (EVALUATE, 3)])
def test_a_round_is_answered_some_times_and_no_more(
    make_owner: Callable[..., SimpleNamespace], message_type: str, number: int
) -> None:
    """Answers get lost, so some may be asked for again; and a restart of either side is not a way around the limit."""
    owner = make_owner()
    for _ in range(MOST_ANSWERS - 2):
        owner.ask(message_type, order(owner, number))
    owner = make_owner()
    for _ in range(2):
        owner.ask(message_type, order(owner, number))
    for one in (owner, make_owner()):
        shown, sent = list(one.display.lines), one.app.bytes_out
        assert f"answered {MOST_ANSWERS} times" in refused(one, message_type, number)
        assert (one.display.lines, one.app.bytes_out) == (shown, sent)


@pytest.mark.parametrize("answered", [(TRAIN, 2), (EVALUATE, 3)])
def test_an_earlier_round_is_not_answered_again(
    make_owner: Callable[..., SimpleNamespace], answered: tuple[str, int]
) -> None:
    owner = make_owner()
    owner.ask(TRAIN, order(owner, 1))
    owner.ask(answered[0], order(owner, answered[1]))
    assert "before the last one" in refused(owner, TRAIN, 1)
    assert "before the last one" in refused(make_owner(), TRAIN, 1)


@pytest.mark.parametrize("number", [1, 2])
def test_only_the_last_average_is_measured_apart(make_owner: Callable[..., SimpleNamespace], number: int) -> None:
    assert "before the last round" in refused(make_owner(), EVALUATE, number)


def test_what_was_refused_does_not_count(make_owner: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    owner = make_owner()
    refused(owner, EVALUATE, 1)
    refused(owner, TRAIN, 3)
    assert not (tmp_path / "answers.json").exists()


def test_another_invite_is_another_agreement(make_owner: Callable[..., SimpleNamespace]) -> None:
    owner = make_owner()
    owner.ask(TRAIN, order(owner, 2))
    assert "before the last one" in refused(make_owner(), TRAIN, 1)
    owner = make_owner(invite_number=1)
    result = unpack_round_result(owner.ask(TRAIN, order(owner, 1)), 19, 6, network_layout(owner.app._network))
    assert result.images == 19
    assert any(not torch.equal(tensor, owner.weights[name]) for name, tensor in result.weights.items())
    assert [line[:2] for line in owner.display.lines if line[0] == "started"] == [("started", 1)]


def test_the_order_of_the_images_is_drawn_for_each_invite(make_owner: Callable[..., SimpleNamespace]) -> None:
    """Cut the same order in 3 and then in 6 steps, and the sums of two answers differ by one image."""
    gradients = {"exchange": "gradients", "training": {"min_local_batch": 2}}
    owner = make_owner(**gradients)
    gradient_of(owner, 1, 0)
    again, renewed = make_owner(**gradients), make_owner(invite_number=1, **gradients)
    seeds = [one.app._limit.order_seed for one in (owner, again, renewed)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_the_order_is_kept_from_others(make_owner: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    owner = make_owner()
    owner.ask(TRAIN, order(owner))
    kept = tmp_path / "answers.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert str(owner.app._limit.order_seed) in kept.read_text()
    assert str(owner.app._limit.order_seed) not in repr(owner.app._limit._record)


def test_the_count_does_not_hold_the_token(make_owner: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    owner = make_owner(invite_number=1)
    owner.ask(TRAIN, order(owner))
    kept = (tmp_path / "answers.json").read_text()
    assert new_token(bytes([1]) * 32) not in kept


def gradient_of(owner: SimpleNamespace, number: int, step: int, steps: int = 3) -> PartialGradient:
    network = build_network(owner.settings.network_config(), 0)
    parameters = sum(one.numel() for one in network.parameters())
    images = Turns(19, steps, 2, owner_offset("anna")).count(step)
    answer = owner.ask(GRADIENT, step_order(owner, number, step, steps))
    return unpack_gradient(answer, images, parameters, count_moments(network))


@pytest.mark.parametrize(("exchange", "message_type"), [("updates", TRAIN), ("gradients", GRADIENT)])
def test_batches_depend_on_the_owners_secret_order_and_on_it_alone(
    make_owner: Callable[..., SimpleNamespace], exchange: str, message_type: str
) -> None:
    answers = []
    for number, seed in enumerate((None, 2**61 + 1, 2**61 + 1, 2**61 + 2)):
        owner = make_owner(number, seed, exchange=exchange, training={"horizontal_flip": False, "shift": 0})
        question = step_order(owner, 1, 0, 3) if exchange == "gradients" else order(owner)
        arrays = owner.ask(message_type, question).array_records["arrays"]
        answers.append(next(iter(arrays.values())).numpy())
    by_name, first, same, other = answers
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, by_name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_is_of_the_steps_images(make_owner: Callable[..., SimpleNamespace], precision: str) -> None:
    owner = make_owner(exchange="gradients", training={"precision": precision})
    parts = [gradient_of(owner, 1, step) for step in range(3)]
    assert sum(part.images for part in parts) == 19
    network = build_network(owner.settings.network_config(), 0)
    load_network_state(network, owner.weights)
    config = TrainingConfig.of(owner.settings.training, owner_offset("anna"))
    data = ImageTensors.from_shards(list(owner.prepared.store.shards(Split.TRAIN)), (8, 8, 3), CPU)
    for step, part in enumerate(parts):
        rows = Turns(19, 3, 2, owner_offset("anna")).rows(step, config.seed, 0)
        images = config.augmentation(data.images[rows], step_generator(config.seed, 0, step))
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network.train()(images)
        torch.nn.functional.cross_entropy(logits.float(), data.labels[rows]).backward()
        by_hand = torch.cat([one.grad.reshape(-1) for one in network.parameters()])
        # The same operations on the same numbers.
        assert torch.equal(part.gradient, by_hand)
    assert owner.app.bytes_out == 3 * 4 * (parts[0].gradient.numel() + 2 * parts[0].moments.mean.numel())


def test_a_pass_is_shown_as_a_round(make_owner: Callable[..., SimpleNamespace]) -> None:
    owner = make_owner(exchange="gradients")
    losses = [gradient_of(owner, 1, step).loss for step in range(3)]
    counts = [Turns(19, 3, 2, owner_offset("anna")).count(step) for step in range(3)]
    owner.ask(EVALUATE, order(owner, 2))
    owner.ask(GRADIENT, step_order(owner, 2, 0))
    owner.ask(EVALUATE, order(owner, 3))
    kinds = [line[0] for line in owner.display.lines]
    assert kinds == ["started", "step", "step", "step", "finished", "started", "step", "finished"]
    assert owner.display.lines[0] == ("started", 1, 2, 0)
    assert owner.display.lines[5] == ("started", 2, 2, 6)
    loss = sum(one * count for one, count in zip(losses, counts, strict=True)) / 19
    assert owner.display.lines[4][3] == pytest.approx(loss)


@pytest.mark.parametrize(
    ("number", "step", "steps", "reason"),
    [
        (0, 0, 3, "a round that was not agreed"),
        (3, 0, 3, "a round that was not agreed"),
        (1, 3, 3, "a step that cannot exist"),
        (1, -1, 3, "a step that cannot exist"),
        (1, 0, 2, "fewer steps than"),
        (1, 0, 10**9, "a step that cannot exist"),
    ],
)
def test_a_step_that_cannot_be_is_refused(
    make_owner: Callable[..., SimpleNamespace], number: int, step: int, steps: int, reason: str
) -> None:
    owner = make_owner(exchange="gradients")
    with pytest.raises(PeerDataError, match=reason):
        owner.ask(GRADIENT, step_order(owner, number, step, steps))
    assert owner.app.bytes_out == 0


def test_fewer_images_than_agreed_are_no_gradient(make_owner: Callable[..., SimpleNamespace]) -> None:
    """However finely a coordinator wants to cut, an owner answers for so many images or not at all."""
    owner = make_owner(exchange="gradients", training={"min_local_batch": 4})
    turns = Turns(19, 1000, 4, owner_offset("anna"))
    mine = [step for step in range(1000) if turns.part(step) is not None]
    assert len(mine) == 19 // 4
    for step in mine:
        content = owner.ask(GRADIENT, step_order(owner, 1, step, 1000))
        assert content.metric_records["metrics"]["num-examples"] >= 4
    for step in set(range(1000)) - set(mine):
        with pytest.raises(PeerDataError, match="not this owner's turn"):
            owner.ask(GRADIENT, step_order(owner, 1, step, 1000))


@pytest.mark.parametrize("measured", [False, True])
def test_the_number_of_steps_stays(make_owner: Callable[..., SimpleNamespace], measured: bool) -> None:
    owner = make_owner(exchange="gradients")
    gradient_of(owner, 1, 0)
    if measured:
        # Its answer is counted, too, and says nothing of steps.
        owner.ask(EVALUATE, order(owner, 2))
    for one in (owner, make_owner(exchange="gradients")):
        with pytest.raises(PeerDataError, match="changed the number of steps"):
            one.ask(GRADIENT, step_order(one, 2, 0, 4))


def test_a_step_is_answered_some_times_and_no_more(make_owner: Callable[..., SimpleNamespace]) -> None:
    owner = make_owner(exchange="gradients")
    for _ in range(MOST_ANSWERS):
        gradient_of(owner, 1, 0)
    # A coordinator that was killed may go back within the round.
    gradient_of(owner, 1, 2)
    gradient_of(owner, 1, 1)
    for one in (owner, make_owner(exchange="gradients")):
        with pytest.raises(PeerDataError, match="a step that was answered 5 times"):
            gradient_of(one, 1, 0)
    gradient_of(owner, 2, 0)
    with pytest.raises(PeerDataError, match="before the last one"):
        gradient_of(owner, 1, 1)
    for _ in range(MOST_ANSWERS):
        owner.ask(EVALUATE, order(owner, 3))
    with pytest.raises(PeerDataError, match="a round that was answered 5 times"):
        owner.ask(EVALUATE, order(owner, 3))


@pytest.mark.parametrize(("least", "measured"), [(6, 6), (7, 0)])
def test_few_held_out_images_are_not_measured_in_gradients(
    make_owner: Callable[..., SimpleNamespace], least: int, measured: int
) -> None:
    """Measured with weights chosen for it, in each pass and five times over, one image could be read."""
    owner = make_owner(exchange="gradients", training={"min_local_batch": least})
    assert owner.prepared.held_out_images == 6
    answer = owner.ask(EVALUATE, order(owner, 2))
    assert unpack_evaluation(answer, owner.prepared.measured(owner.settings)).count == measured


def test_a_single_held_out_image_is_not_measured(make_owner: Callable[..., SimpleNamespace]) -> None:
    """Its loss, under weights chosen for it, tells of that image alone."""
    owner = make_owner()
    for held_out, measured in ((1, 0), (2, 2)):
        prepared = replace(owner.prepared, held_out_images=held_out)
        assert prepared.measured(owner.settings) == measured
    images = owner.settings.model_copy(update={"exchange": Exchange.IMAGES})
    # Sent like all others, it is measured like all others.
    assert replace(owner.prepared, held_out_images=1).measured(images) == 1


def test_nothing_is_measured_before_the_first_pass(make_owner: Callable[..., SimpleNamespace]) -> None:
    owner = make_owner(exchange="gradients")
    with pytest.raises(PeerDataError, match="before the first round"):
        owner.ask(EVALUATE, order(owner, 1))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"invite": "x", "round": -1}', '{"invite": "x", "more": 1}'])
def test_a_damaged_count_is_not_a_fresh_one(
    make_owner: Callable[..., SimpleNamespace], tmp_path: Path, content: str
) -> None:
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(DataError, match="is damaged") as caught:
        make_owner()
    assert "Remove it" in caught.value.hint


@pytest.mark.parametrize("message_type", [TRAIN, EVALUATE, FINISH])
@pytest.mark.parametrize(
    "values",
    [
        lambda weights: weights[:-1],
        lambda weights: np.append(weights, np.float32(0)),
        lambda weights: weights * np.float32("nan"),
        lambda weights: weights.astype(np.float64),
        lambda weights: np.full_like(weights, -1.0),  # negative variances
        lambda weights: weights[:0],
    ],
)
def test_wrong_weights_are_refused_and_change_nothing(
    make_owner: Callable[..., SimpleNamespace],
    fingerprint: str,
    tmp_path: Path,
    message_type: str,
    values: Callable[[Any], Any],
) -> None:
    owner = make_owner()
    before = {name: tensor.clone() for name, tensor in network_state(owner.app._network).items()}
    flat = pack_weights(owner.weights)["weights"].numpy()
    config = {
        "round": 1,
        "completed": True,
        "message": "",
        "card": card(owner.settings, fingerprint).model_dump_json(),
        "curve": "[]",
    }
    if message_type == EVALUATE:
        config["round"] = 3
    content = RecordDict({"arrays": ArrayRecord({"weights": Array(values(flat))}), "config": ConfigRecord(config)})
    with pytest.raises(PeerDataError):
        owner.ask(message_type, content)
    after = network_state(owner.app._network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert owner.app.farewell is None
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("exchange", ["images", "updates"])
def test_the_farewell_brings_the_model(
    make_owner: Callable[..., SimpleNamespace], fingerprint: str, tmp_path: Path, exchange: str
) -> None:
    owner = make_owner(exchange=exchange)
    made = card(owner.settings, fingerprint)
    curve = [CurvePoint(1, 0.5, 0.25, 1.0, 2.0)]
    owner.ask(FINISH, goodbye(owner, made.model_dump_json(), curve_to_json(curve)))
    assert owner.app.card == made
    assert "0.25" in (tmp_path / "model" / CURVE_FILE).read_text()
    loaded = load_model(tmp_path / "model", CPU)
    assert loaded.card == made
    assert all(torch.equal(tensor, owner.weights[name]) for name, tensor in network_state(loaded.network).items())


def test_a_farewell_without_a_model_says_why(make_owner: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    owner = make_owner()
    owner.ask(FINISH, pack_farewell(Farewell(False, "the disk is full", "", {})))
    assert owner.app.farewell.message == "the disk is full"
    assert owner.app.card is None
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '{"format": "ppfed-model"}', "x" * 100], ids=lambda text: text[:9]
)
def test_a_malformed_card_is_refused(make_owner: Callable[..., SimpleNamespace], tmp_path: Path, text: str) -> None:
    owner = make_owner()
    with pytest.raises(PeerDataError, match="model card is malformed"):
        owner.ask(FINISH, goodbye(owner, text))
    assert (owner.app.farewell, owner.app.card) == (None, None)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("curve", ["", "{", "null", '[{"round": "x"}]', "x" * 100], ids=lambda curve: curve[:9])
def test_a_malformed_curve_is_refused(
    make_owner: Callable[..., SimpleNamespace], fingerprint: str, tmp_path: Path, curve: str
) -> None:
    owner = make_owner()
    with pytest.raises(PeerDataError, match="curve is malformed"):
        owner.ask(FINISH, goodbye(owner, card(owner.settings, fingerprint).model_dump_json(), curve))
    assert owner.app.farewell is None
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"base_maps": 4},
        {"height": 16},
        {"adaptation": ()},
        {"classes": ("dog", "cat")},
        {"classes": ("cat", "dog", "emu")},
        {"channels": 1},
    ],
)
def test_a_card_of_another_network_is_refused(
    make_owner: Callable[..., SimpleNamespace], fingerprint: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    owner = make_owner()
    text = card(owner.settings, fingerprint, **changes).model_dump_json()
    with pytest.raises(PeerDataError, match="another network"):
        owner.ask(FINISH, goodbye(owner, text))
    assert owner.app.farewell is None
    assert not (tmp_path / "model").exists()
