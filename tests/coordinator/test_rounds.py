"""Exchange 'updates': a round is an average made by hand, and no owner can spoil it for the others."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.app.error import Error

from coordinator import norm_bound
from coordinator import rounds as rounds_module
from coordinator.aggregation import make_strategy
from coordinator.checkpoint import Checkpoint, load_checkpoint
from coordinator.quorum import Quorum
from coordinator.rounds import Rounds
from coordinator.state import RoundRecord
from ppfed.errors import FederationError
from ppfed.images.source import Split
from ppfed.networks.classifier import build_network
from ppfed.networks.state import load_network_state, network_state
from ppfed.training.loop import Evaluation, ImageTensors, Trainer, TrainingConfig, evaluate
from ppfed.wire.messages import EVALUATE, TRAIN

MakeFederation = Callable[..., SimpleNamespace]
Audit = Callable[..., list[dict[str, Any]]]
Rewrite = Callable[..., Message]
State = dict[str, torch.Tensor]

CPU = torch.device("cpu")


def rounds_of(federation: SimpleNamespace) -> tuple[Rounds, Any]:
    network = build_network(federation.settings.network_config(), federation.settings.training.seed)
    rounds = Rounds(
        Quorum(federation.conversation, federation.state, federation.plan, federation.enrolled),
        federation.state,
        federation.settings,
        make_strategy(federation.settings),
        network,
    )
    return rounds, network


def run(federation: SimpleNamespace) -> tuple[list[RoundRecord], State]:
    rounds, network = rounds_of(federation)
    return list(rounds.run()), network_state(network)


def tensors(federation: SimpleNamespace, owner: str, split: Split) -> ImageTensors:
    shards = list(federation.prepared[owner].store.shards(split))
    return ImageTensors.from_shards(shards, federation.settings.shape, CPU)


def trained_by_hand(federation: SimpleNamespace, owner: str, start: State, number: int) -> tuple[State, float]:
    """Local training with the one training loop, without Flower, messages or apps."""
    settings = federation.settings
    network = build_network(settings.network_config(), 0)
    load_network_state(network, start)
    # Documented in clients/owner_app.py: each owner has an order of images of its own.
    trainer = Trainer(network, TrainingConfig.of(settings.training, zlib.crc32(owner.encode()) & 0xFFFF), CPU)
    epochs = settings.training.local_epochs
    *_, last = trainer.train_epochs(tensors(federation, owner, Split.TRAIN), (number - 1) * epochs, epochs)
    return network_state(network), last.loss


def averaged_by_hand(federation: SimpleNamespace, start: State, number: int, owners: list[str]) -> State:
    images = {owner: len(tensors(federation, owner, Split.TRAIN)) for owner in owners}
    states = {owner: trained_by_hand(federation, owner, start, number)[0] for owner in owners}
    total = sum(images.values())
    return {
        name: sum(states[owner][name].double() * images[owner] / total for owner in owners).float()  # type: ignore[union-attr]
        for name in start
    }


def measured_by_hand(federation: SimpleNamespace, state: State, owners: list[str]) -> Evaluation:
    network = build_network(federation.settings.network_config(), 0)
    load_network_state(network, state)
    results = [evaluate(network, tensors(federation, owner, Split.HELD_OUT)) for owner in owners]
    count = sum(one.count for one in results)
    loss = sum(one.loss * one.count for one in results if one.count) / count
    return Evaluation(sum(one.correct for one in results), count, loss)


def assert_close(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name in one:
        # Flower adds in float32 and in another order; by hand it was float64: a few units in the last place of
        # values around 1.
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)


def initial(federation: SimpleNamespace) -> State:
    return network_state(build_network(federation.settings.network_config(), federation.settings.training.seed))


@pytest.mark.parametrize("local_epochs", [1, 2])
def test_a_round_is_the_average_weighted_by_images(make_federation: MakeFederation, local_epochs: int) -> None:
    federation = make_federation(training={"rounds": 1, "local_epochs": local_epochs, "seed": 3})
    records, state = run(federation)
    start = initial(federation)
    by_hand = averaged_by_hand(federation, start, 1, ["anna", "bert"])
    assert_close(state, by_hand)
    # It would not pass unweighted, nor untrained.
    unweighted = [trained_by_hand(federation, owner, start, 1)[0] for owner in ("anna", "bert")]
    weight = "stem.weight" if "stem.weight" in start else next(iter(start))
    assert not torch.allclose(state[weight], (unweighted[0][weight] + unweighted[1][weight]) / 2, atol=1e-5)
    losses = {owner: trained_by_hand(federation, owner, start, 1)[1] for owner in ("anna", "bert")}
    assert [record.round for record in records] == [1]
    assert records[0].train_loss == pytest.approx((19 * losses["anna"] + 10 * losses["bert"]) / 29, rel=1e-9)
    assert records[0].owners == 2


BFLOAT16 = {"update_format": "bfloat16", "seed": 3}


def test_a_round_of_rounded_changes_is_the_average_of_what_they_say(make_federation: MakeFederation) -> None:
    federation = make_federation(training={**BFLOAT16, "rounds": 1})
    _, state = run(federation)
    start, images = initial(federation), {"anna": 19, "bert": 10}
    states = {owner: trained_by_hand(federation, owner, start, 1)[0] for owner in images}

    def said(owner: str, name: str) -> torch.Tensor:
        if "running" in name:
            return states[owner][name].double()
        change = (states[owner][name] - start[name]).to(torch.bfloat16)
        return start[name].double() + change.double()

    assert_close(
        state, {name: sum(said(owner, name) * count / 29 for owner, count in images.items()).float() for name in start}
    )
    exact = averaged_by_hand(federation, start, 1, ["anna", "bert"])
    assert any(not torch.allclose(state[name], exact[name], rtol=1e-6, atol=1e-6) for name in start)
    for name in start:
        # Each owner's change is off by 1/256 of itself at most, so the average is by the average of that.
        allowed = sum((states[owner][name] - start[name]).abs() / 256 * count / 29 for owner, count in images.items())
        assert ((state[name] - exact[name]).abs() <= allowed + 1e-6).all()


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_a_round_in_bfloat16_ends_near_one_in_float32(make_federation: MakeFederation, strategy: str) -> None:
    training = {"strategy": strategy, "rounds": 1, "seed": 3}
    _, whole = run(make_federation(name="whole", training=training))
    federation = make_federation(name="rounded", training={**training, "update_format": "bfloat16"})
    records, rounded = run(federation)
    assert [record.owners for record in records] == [2]
    start = initial(federation)
    trained = {name for name in start if "running" not in name}
    moved, apart = (
        math.sqrt(sum(float(((one[name] - other[name]) ** 2).sum()) for name in trained))
        for one, other in ((whole, start), (rounded, whole))
    )
    # An owner's change is off by 1/256 of itself at most, and where owners' changes cancel the average is off by more
    # beside itself: by 1/100 over all weights is generous, and a change applied twice or not at all is off by 1. Later
    # rounds of so small a network magnify any difference, and say nothing about rounding.
    assert 0 < apart < moved / 100


def test_accuracy_belongs_to_its_round(make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(training={"rounds": 3})
    averages: dict[int, State] = {}
    save = rounds_module.save_checkpoint

    def keep(folder: Path, checkpoint: Checkpoint) -> None:
        averages[checkpoint.rounds] = checkpoint.weights
        save(folder, checkpoint)

    monkeypatch.setattr(rounds_module, "save_checkpoint", keep)
    records, state = run(federation)
    assert [record.round for record in records] == list(averages) == [1, 2, 3]
    for record in records:
        by_hand = measured_by_hand(federation, averages[record.round], ["anna", "bert"])
        # The same network on the same images; only the mean of two means is taken in another order.
        assert record.held_out_loss == pytest.approx(by_hand.loss, rel=1e-9)
        assert record.accuracy == by_hand.accuracy
    losses = [record.held_out_loss for record in records]
    assert all(abs(one - other) > 1e-3 for one, other in itertools.pairwise(losses))
    assert all(torch.equal(state[name], averages[3][name]) for name in state)
    assert [kind for _, kind in federation.grid.asked] == [TRAIN] * 6 + [EVALUATE] * 2


def test_owners_without_held_out_images_have_no_accuracy(make_federation: MakeFederation) -> None:
    records, _ = run(make_federation({"anna": ((9,), ()), "bert": ((8,), ())}))
    assert [(record.accuracy, record.held_out_loss) for record in records] == [(None, None)] * 2


def everywhere(value: float, rows: slice = slice(None)) -> Callable[[Any], Any]:
    def change(weights: Any) -> Any:
        weights[rows] = value
        return weights

    return change


UPDATES: dict[str, dict[str, Any]] = {
    "not a number": {"arrays": {"weights": everywhere(float("nan"), slice(0, 1))}},
    "infinite": {"arrays": {"weights": everywhere(float("inf"))}},
    "too short": {"arrays": {"weights": lambda weights: weights[:-1]}},
    "too long": {"arrays": {"weights": lambda weights: np.append(weights, np.float32(0))}},
    "in two dimensions": {"arrays": {"weights": lambda weights: weights[None]}},
    "float64": {"arrays": {"weights": lambda weights: weights.astype(np.float64)}},
    # Batch norm would take the root of it.
    "negative variances": {"arrays": {"weights": everywhere(-1.0)}},
    "more images than announced": {"metrics": {"num-examples": 10_000}},
    "no loss": {"metrics": {"train-loss": float("nan")}},
    "impossible accuracy": {"metrics": {"correct": 99}},
    # Flower's FedAvg raises where owners report different metrics.
    "a metric of its own": {"metrics": {"bonus": 1.0}},
}


CHANGES: dict[str, tuple[dict[str, Callable[[Any], Any]], str]] = {
    "not a number": (
        {"change": lambda bits: np.full_like(bits, 0x7FC0)},
        "values of the change of the weights are not",
    ),
    "float32": ({"change": lambda bits: bits.astype(np.float32)}, "are float32, not bfloat16 in uint16"),
    "too short": ({"change": lambda bits: bits[1:]}, "the change of the weights has another length"),
    "negative variances": ({"statistics": lambda values: np.full_like(values, -1.0)}, "holds a negative variance"),
}


@pytest.mark.parametrize(("arrays", "reason"), CHANGES.values(), ids=CHANGES.keys())
def test_a_bad_change_is_left_out_and_the_round_goes_on(
    make_federation: MakeFederation,
    rewrite: Rewrite,
    audit: Audit,
    arrays: dict[str, Callable[[Any], Any]],
    reason: str,
) -> None:
    federation = make_federation(quorum=1, training={**BFLOAT16, "rounds": 1})

    def spoil(owner: str, question: Message, answer: Message) -> Message:
        return rewrite(answer, arrays) if (owner, question.metadata.message_type) == ("bert", TRAIN) else answer

    federation.faults.mutate = spoil
    records, _ = run(federation)
    assert records[0].owners == 1
    (refused,) = [line for line in audit(federation.state) if line["event"] == "refused"]
    assert refused["owner"] == "bert"
    assert reason in refused["reason"]


def test_an_owner_that_sends_whole_weights_where_changes_were_agreed_is_left_out(
    make_federation: MakeFederation, audit: Audit
) -> None:
    federation = make_federation(quorum=1, training={**BFLOAT16, "rounds": 1})

    def whole(owner: str, question: Message, answer: Message) -> Message:
        if (owner, question.metadata.message_type) == ("bert", TRAIN):
            answer.content["arrays"] = question.content.array_records["arrays"]
        return answer

    federation.faults.mutate = whole
    records, _ = run(federation)
    assert records[0].owners == 1
    (refused,) = [line for line in audit(federation.state) if line["event"] == "refused"]
    assert (refused["owner"], refused["reason"]) == (
        "bert",
        "the update is in format float32, and bfloat16 was agreed",
    )


@pytest.mark.parametrize("change", UPDATES.values(), ids=UPDATES.keys())
def test_a_bad_update_is_left_out_and_the_round_goes_on(
    make_federation: MakeFederation, rewrite: Rewrite, audit: Audit, change: dict[str, Any]
) -> None:
    federation = make_federation(
        {"anna": ((9,), (4,)), "bert": ((8,), (4,)), "carl": ((10,), (4,))}, quorum=2, training={"rounds": 1}
    )

    def spoil(owner: str, question: Message, answer: Message) -> Message:
        return rewrite(answer, **change) if (owner, question.metadata.message_type) == ("bert", TRAIN) else answer

    federation.faults.mutate = spoil
    records, state = run(federation)
    assert records[0].owners == 2
    assert_close(state, averaged_by_hand(federation, initial(federation), 1, ["anna", "carl"]))
    refused = [line["owner"] for line in audit(federation.state) if line["event"] == "refused"]
    assert refused == ["bert"]


@pytest.mark.parametrize("record", [MetricRecord({"a": 1}), ArrayRecord()])
def test_an_update_with_more_records_is_left_out(
    make_federation: MakeFederation, audit: Audit, record: MetricRecord | ArrayRecord
) -> None:
    federation = make_federation(quorum=1, training={"rounds": 1})

    def add(owner: str, question: Message, answer: Message) -> Message:
        if (owner, question.metadata.message_type) == ("bert", TRAIN):
            answer.content["more"] = record
        return answer

    federation.faults.mutate = add
    records, _ = run(federation)
    assert records[0].owners == 1
    assert [line["owner"] for line in audit(federation.state) if line["event"] == "refused"] == ["bert"]


def test_a_bad_evaluation_is_left_out(make_federation: MakeFederation, rewrite: Rewrite) -> None:
    federation = make_federation(quorum=1, training={"rounds": 1})

    def boast(owner: str, question: Message, answer: Message) -> Message:
        if (owner, question.metadata.message_type) == ("bert", EVALUATE):
            return rewrite(answer, metrics={"correct": 10_000})
        return answer

    federation.faults.mutate = boast
    records, state = run(federation)
    assert records[0].accuracy == measured_by_hand(federation, state, ["anna"]).accuracy


@pytest.mark.parametrize("how", ["error", "silence", "late"])
def test_an_owner_that_does_not_answer_is_left_out_of_the_round(
    make_federation: MakeFederation, audit: Audit, how: str
) -> None:
    # An error comes at once; the other two cost the deadline, which all other answers must meet on a busy machine too.
    deadline_s = 60.0 if how == "error" else 4.0
    federation = make_federation(quorum=1, deadline_s=deadline_s, training={"rounds": 2})
    failed: list[str] = []

    def first(owner: str, question: Message) -> bool:
        hit = owner == "bert" and question.metadata.group_id == "round 1"
        if hit:
            failed.append(owner)
        return hit

    if how == "error":
        federation.faults.mutate = lambda owner, question, answer: (
            Message(Error(3, "out of memory"), reply_to=question) if first(owner, question) else answer
        )
    elif how == "silence":
        federation.faults.drop = first
    else:
        federation.faults.delay_s = lambda owner, question: deadline_s + 0.5 if first(owner, question) else 0.0
    records, state = run(federation)
    assert failed == ["bert"]
    assert [record.owners for record in records] == [1, 2]
    after_one = averaged_by_hand(federation, initial(federation), 1, ["anna"])
    assert_close(state, averaged_by_hand(federation, after_one, 2, ["anna", "bert"]))
    (line,) = [line for line in audit(federation.state) if line["event"] in ("no answer", "missed the deadline")]
    assert (line["owner"], line["group"]) == ("bert", "round 1")


def test_without_a_quorum_it_fails_and_says_what_to_do(make_federation: MakeFederation, audit: Audit) -> None:
    federation = make_federation(quorum=2, deadline_s=0.2)
    federation.faults.drop = lambda owner, _question: owner == "bert"
    rounds, network = rounds_of(federation)
    with pytest.raises(FederationError, match="3 attempts in a row") as caught:
        list(rounds.run())
    assert "audit.jsonl" in caught.value.hint
    assert all(torch.equal(tensor, initial(federation)[name]) for name, tensor in network_state(network).items())
    events = [line["event"] for line in audit(federation.state)]
    assert events.count("round fell short of the quorum") == 3
    assert load_checkpoint(federation.state.checkpoint) is None


def test_an_owner_that_is_away_for_a_moment_is_waited_for(make_federation: MakeFederation, audit: Audit) -> None:
    """A restarted owner takes a minute to be back: the attempts must not be used up before."""
    federation = make_federation(quorum=2, deadline_s=5.0, training={"rounds": 1})
    seen = iter(range(1000))

    def answer(owner: str, question: Message, reply: Message) -> Message:
        if owner == "bert" and next(seen) == 0:
            federation.faults.offline.add("bert")
            return Message(Error(3, "node unavailable"), reply_to=question)
        return reply

    looked = iter(range(1000))
    get_node_ids = federation.grid.get_node_ids

    def look() -> list[int]:
        if "bert" in federation.faults.offline and next(looked) == 20:
            federation.faults.offline.clear()
        return list(get_node_ids())

    federation.faults.mutate = answer
    federation.grid.get_node_ids = look
    records, _ = run(federation)
    assert [record.owners for record in records] == [2]
    short = [line for line in audit(federation.state) if line["event"] == "round fell short of the quorum"]
    assert len(short) == 1


class CrashError(Exception):
    """The coordinator's process is gone."""


def crash_when(federation: SimpleNamespace, kind: str, group: str) -> None:
    def crash(_owner: str, question: Message) -> bool:
        if (question.metadata.message_type, question.metadata.group_id) == (kind, group):
            raise CrashError
        return False

    federation.faults.refuse = crash


@pytest.mark.parametrize(
    ("kind", "group"),
    [(TRAIN, "round 1"), (TRAIN, "round 2"), (TRAIN, "round 3"), (EVALUATE, "evaluation")],
)
@pytest.mark.parametrize("update_format", ["float32", "bfloat16"])
def test_going_on_after_a_crash_equals_an_undisturbed_run(
    make_federation: MakeFederation, kind: str, group: str, update_format: str
) -> None:
    training = {"rounds": 3, "update_format": update_format}
    undisturbed, expected = run(make_federation(name="undisturbed", training=training))
    federation = make_federation(name="crashed", training=training)
    crash_when(federation, kind, group)
    records: dict[int, RoundRecord] = {}

    def collect(some: Iterator[RoundRecord]) -> None:
        for record in some:
            records[record.round] = record

    with pytest.raises(CrashError):
        collect(rounds_of(federation)[0].run())
    federation.faults.refuse = lambda _owner, _question: False
    for owner in federation.enrolled:
        federation.conversation.forget(owner)
    rounds, network = rounds_of(federation)
    collect(rounds.run())
    state = network_state(network)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    # Every round has its record, and the same numbers as without the crash; only the time it took is another.
    assert [
        records[record.round].model_copy(update={"seconds": record.seconds}) for record in undisturbed
    ] == undisturbed


def test_a_finished_run_has_nothing_to_train(make_federation: MakeFederation) -> None:
    federation = make_federation()
    records, state = run(federation)
    federation.grid.asked.clear()
    again, same = run(federation)
    assert [kind for _, kind in federation.grid.asked] == [EVALUATE] * 2
    assert all(torch.equal(same[name], state[name]) for name in state)
    assert again[-1].accuracy == records[-1].accuracy
    assert not math.isnan(again[-1].held_out_loss or math.nan)


def test_an_answer_that_cannot_be_read_costs_its_owner_the_round_and_nobody_else(
    make_federation: MakeFederation, audit: Audit
) -> None:
    federation = make_federation(quorum=1, training={"rounds": 1})
    federation.faults.garble = lambda owner, question: owner == "anna"
    (record,), _ = run(federation)
    assert record.owners == 1
    reasons = [line["reason"] for line in audit(federation.state) if line["event"] == "no answer"]
    assert reasons == ["unreadable answer (DecodeError)"] * 2


THREE = {"anna": ((12, 7), (6,)), "bert": ((10,), (5,)), "carl": ((8,), ())}


def hostile(
    federation: SimpleNamespace, rewrite: Rewrite, change: Callable[[Any], Any], *, every_round: bool, images: int = 8
) -> None:
    """Let carl answer with other weights, in round 1 alone or in all."""

    def spoil(owner: str, question: Message, answer: Message) -> Message:
        if owner != "carl" or question.metadata.message_type != TRAIN:
            return answer
        if not every_round and question.metadata.group_id != "round 1":
            return rewrite(answer, metrics={"num-examples": images})
        return rewrite(answer, arrays={"weights": change}, metrics={"num-examples": images})

    federation.faults.mutate = spoil


def bounded(audit: Audit, federation: SimpleNamespace) -> list[tuple[str, str]]:
    return [(line["owner"], line["group"]) for line in audit(federation.state) if line["event"] == "bounded"]


@pytest.mark.parametrize("every_round", [False, True], ids=["once", "in every round"])
@pytest.mark.parametrize("value", [1e3, 9e5])
def test_weights_below_the_limit_do_not_end_the_run(
    make_federation: MakeFederation, rewrite: Rewrite, audit: Audit, value: float, every_round: bool
) -> None:
    """Averaged as they come they make every honest answer of the next round exceed the limits."""
    training = {"rounds": 8}
    control, _ = run(make_federation(THREE, name="control", quorum=2, training=training))
    federation = make_federation(THREE, quorum=2, training=training)
    hostile(federation, rewrite, everywhere(value), every_round=every_round)
    records, _ = run(federation)
    assert [(record.round, record.owners) for record in records] == [(number, 3) for number in range(1, 9)]
    assert all(math.isfinite(record.train_loss) and math.isfinite(record.held_out_loss) for record in records)
    # It learns, as the control does: both began near 1, and end between 0.4 and 0.7.
    assert records[-1].train_loss < 0.8 * control[0].train_loss
    assert control[-1].train_loss < 0.8 * control[0].train_loss
    if not every_round:
        # Over 11 images, after eight rounds of which one went astray.
        assert abs(records[-1].held_out_loss - control[-1].held_out_loss) < 0.5
    assert set(bounded(audit, federation)) >= {
        ("carl", f"round {number}") for number in (range(1, 9) if every_round else [1])
    }
    assert {owner for owner, _ in bounded(audit, federation)} == {"carl"}


def test_sixty_rounds_in_the_same_direction_do_not_end_the_run(
    make_federation: MakeFederation, rewrite: Rewrite
) -> None:
    """With ten times the median in each of them honest answers exceeded the limits in round 53."""
    federation = make_federation(THREE, quorum=2, training={"rounds": 60})
    hostile(federation, rewrite, everywhere(9e5), every_round=True)
    records, _ = run(federation)
    assert [record.owners for record in records] == [3] * 60
    assert math.isfinite(records[-1].train_loss)


def test_an_owner_that_outweighs_all_others_does_not_end_the_run(
    make_federation: MakeFederation, rewrite: Rewrite, audit: Audit
) -> None:
    """It announced so many images that the average is its own answer."""
    federation = make_federation(
        THREE, quorum=2, training={"rounds": 8}, enrolled={"carl": {"train_images": 100_000_000}}
    )
    hostile(federation, rewrite, everywhere(9e5), every_round=True, images=100_000_000)
    records, _ = run(federation)
    assert [record.owners for record in records] == [3] * 8
    assert {owner for owner, _ in bounded(audit, federation)} == {"carl"}


@pytest.mark.parametrize("images", [8, 100_000_000])
@pytest.mark.parametrize(("mean", "variance"), [(9e5, 9e5), (9e5, 0.0), (0.0, 0.0)])
def test_batch_norm_statistics_do_not_end_the_run(
    make_federation: MakeFederation, rewrite: Rewrite, audit: Audit, mean: float, variance: float, images: int
) -> None:
    """The parameters are honest; with these statistics the average could not be evaluated."""
    federation = make_federation(THREE, quorum=2, training={"rounds": 3}, enrolled={"carl": {"train_images": images}})
    kinds = np.concatenate(
        [np.full(tensor.numel(), name.rpartition(".")[2]) for name, tensor in initial(federation).items()]
    )

    def change(weights: Any) -> Any:
        weights[kinds == "running_mean"] = mean
        weights[kinds == "running_var"] = variance
        return weights

    hostile(federation, rewrite, change, every_round=True, images=images)
    records, _ = run(federation)
    assert [record.owners for record in records] == [3] * 3
    assert all(math.isfinite(record.held_out_loss) for record in records)
    assert bounded(audit, federation) == [("carl", f"round {number}") for number in (1, 2, 3)]


@pytest.mark.parametrize("update_format", ["float32", "bfloat16"])
def test_honest_answers_are_not_changed_by_a_bit(
    make_federation: MakeFederation, audit: Audit, monkeypatch: pytest.MonkeyPatch, update_format: str
) -> None:
    training = {"rounds": 8, "update_format": update_format}
    federation = make_federation(THREE, training=training)
    _, state = run(federation)
    assert bounded(audit, federation) == []
    monkeypatch.setattr(norm_bound, "FACTOR", math.inf)
    _, unbounded = run(make_federation(THREE, name="unbounded", training=training))
    assert all(torch.equal(state[name], unbounded[name]) for name in state)


def test_the_bound_outlives_a_restart(make_federation: MakeFederation, rewrite: Rewrite, audit: Audit) -> None:
    """After a restart only two owners answer: by themselves they say nothing of what is usual."""
    federation = make_federation(THREE, quorum=2, training={"rounds": 3})
    crash_when(federation, TRAIN, "round 2")
    with pytest.raises(CrashError):
        run(federation)
    federation.faults.refuse = lambda _owner, _question: False
    federation.faults.offline.add("bert")
    for owner in federation.enrolled:
        federation.conversation.forget(owner)
    hostile(federation, rewrite, everywhere(9e5), every_round=True)
    records, _ = run(federation)
    assert [record.owners for record in records] == [3, 2, 2]
    assert bounded(audit, federation) == [("carl", "round 2"), ("carl", "round 3")]


def test_who_takes_the_place_of_another_has_no_record() -> None:
    seen = norm_bound.SeenNorms(longest={"anna": 1e5, "bert": 1.0}, beyond={"anna": 2}, nodes={"anna": 1, "bert": 2})
    assert norm_bound.NormBound(seen, {"anna": 1, "bert": 2}).seen == seen
    replaced = norm_bound.NormBound(seen, {"anna": 3, "bert": 2}).seen
    assert (replaced.longest, replaced.beyond, replaced.nodes) == ({"bert": 1.0}, {}, {"anna": 3, "bert": 2})


def test_who_went_beyond_the_bound_twice_is_known_after_a_restart(
    make_federation: MakeFederation, rewrite: Rewrite, audit: Audit
) -> None:
    def counted_with(federation: SimpleNamespace) -> list[float]:
        lines = [line["reason"] for line in audit(federation.state) if line["event"] == "bounded"]
        return [float(line.split("counts with ")[1].split(";")[0]) for line in lines]

    training = {"rounds": 5}
    control = make_federation(THREE, name="control", quorum=2, training=training)
    hostile(control, rewrite, everywhere(9e5), every_round=True)
    run(control)
    federation = make_federation(THREE, quorum=2, training=training)
    hostile(federation, rewrite, everywhere(9e5), every_round=True)
    crash_when(federation, TRAIN, "round 4")
    with pytest.raises(CrashError):
        run(federation)
    federation.faults.refuse = lambda _owner, _question: False
    for owner in federation.enrolled:
        federation.conversation.forget(owner)
    run(federation)
    # Ten times the median twice, then the median.
    expected = counted_with(control)
    assert len(expected) == 5
    assert expected[1] > 5 * expected[2]
    assert counted_with(federation) == pytest.approx(expected)
