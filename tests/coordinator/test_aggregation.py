"""Flower's strategies: parameters through the server's optimizer, batch-norm statistics averaged, nothing forgotten."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from coordinator.aggregation import Aggregation, make_strategy
from coordinator.checkpoint import load_checkpoint
from coordinator.quorum import Quorum
from coordinator.rounds import Rounds
from ppfed.errors import FederationError
from ppfed.networks.classifier import build_network
from ppfed.networks.config import Backbone
from ppfed.networks.state import flatten, network_layout, network_state
from ppfed.training.loop import Evaluation
from ppfed.wire.messages import TRAIN
from ppfed.wire.weights import RoundResult, pack_round_result

MakeFederation = Callable[..., SimpleNamespace]
State = dict[str, Tensor]
IMAGES = (30, 10)
OPTIMIZERS = ("fedavgm", "fedadam", "fedyogi")


@pytest.fixture
def make(make_settings: Callable[..., Any]) -> Callable[..., SimpleNamespace]:
    """Make an aggregation and weights to feed it."""

    def make(strategy: str = "fedavg", **training: Any) -> SimpleNamespace:
        settings = make_settings(training={"strategy": strategy, **training})
        network = build_network(settings.network_config(), 0)
        return SimpleNamespace(
            aggregation=Aggregation(make_strategy(settings), network),
            settings=settings,
            start=network_state(network),
            layout=network_layout(network),
            trained={name for name, _ in network.named_parameters()},
        )

    return make


def updates(start: State, seed: int) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: tensor + torch.rand(tensor.shape, generator=generator) for name, tensor in start.items()} for _ in IMAGES
    ]


def messages(some: list[State]) -> list[Message]:
    made = []
    for state, images in zip(some, IMAGES, strict=True):
        result = RoundResult(state, images, 1.0, Evaluation(1, 2, 0.5))
        made.append(Message(pack_round_result(result), dst_node_id=1, message_type=TRAIN))
    return made


def mean(some: list[State]) -> State:
    total = sum(IMAGES)
    return {
        name: sum(one[name].double() * images / total for one, images in zip(some, IMAGES, strict=True))
        for name in some[0]
    }  # type: ignore[misc]


def close(one: State, other: State) -> None:
    for name, tensor in one.items():
        # Flower computes in float32: a few units in the last place of values around 1, divided by tau = 1e-3 at worst.
        torch.testing.assert_close(tensor.double(), other[name].double(), rtol=1e-4, atol=1e-5)


def test_plain_averaging_is_flowers_bit_for_bit(make: Callable[..., SimpleNamespace]) -> None:
    made = make()
    some = updates(made.start, 1)
    arrays, _ = FedAvg(weighted_by_key="num-examples").aggregate_train(1, messages(some))
    assert arrays is not None
    mine = made.aggregation.aggregate(1, made.start, messages(some))
    assert torch.equal(flatten(mine), torch.tensor(arrays["weights"].numpy()))
    assert made.aggregation.state() == {}
    close(mine, mean(some))


@pytest.mark.parametrize("backbone", Backbone)
@pytest.mark.parametrize("strategy", OPTIMIZERS)
def test_statistics_are_averaged_and_parameters_are_not(
    make: Callable[..., SimpleNamespace], strategy: str, backbone: Backbone
) -> None:
    made = make(strategy, server_learning_rate=0.5, backbone=backbone)
    some = updates(made.start, 1)
    result, average = made.aggregation.aggregate(1, made.start, messages(some)), mean(some)
    statistics = set(made.start) - made.trained
    assert {name.rpartition(".")[2] for name in statistics} == {"running_mean", "running_var"}
    close({name: result[name] for name in statistics}, average)
    assert all(not torch.allclose(result[name].double(), average[name], atol=1e-3) for name in made.trained)


def test_fedavgm_is_momentum_on_the_average_change(make: Callable[..., SimpleNamespace]) -> None:
    made = make("fedavgm", server_learning_rate=0.7, server_momentum=0.6)
    current, velocity = made.start, dict.fromkeys(made.trained, torch.zeros(()).double())
    for number in (1, 2, 3):
        some = updates(current, number)
        average = mean(some)
        velocity = {name: 0.6 * velocity[name] + current[name].double() - average[name] for name in velocity}
        expected = {name: current[name].double() - 0.7 * velocity[name] for name in velocity}
        current = made.aggregation.aggregate(number, current, messages(some))
        close({name: current[name] for name in velocity}, expected)


@pytest.mark.parametrize("strategy", ["fedadam", "fedyogi"])
def test_adaptive_steps_are_as_published(make: Callable[..., SimpleNamespace], strategy: str) -> None:
    """Reddi et al., algorithm 2, with beta_2 = 0.99 and tau = 1e-3; Flower corrects Adam's bias besides."""
    made = make(strategy, server_learning_rate=0.03, server_momentum=0.8)
    current = made.start
    first = dict.fromkeys(made.trained, torch.zeros(()).double())
    second = dict(first)
    for number in (1, 2, 3):
        some = updates(current, number)
        average = mean(some)
        change = {name: average[name] - current[name].double() for name in first}
        first = {name: 0.8 * first[name] + 0.2 * change[name] for name in first}
        if strategy == "fedadam":
            second = {name: 0.99 * second[name] + 0.01 * change[name] ** 2 for name in first}
            rate = 0.03 * (1 - 0.99 ** (number + 1)) ** 0.5 / (1 - 0.8 ** (number + 1))
        else:
            second = {
                name: second[name] - 0.01 * change[name] ** 2 * torch.sign(second[name] - change[name] ** 2)
                for name in first
            }
            rate = 0.03
        expected = {name: current[name].double() + rate * first[name] / (second[name].sqrt() + 1e-3) for name in first}
        current = made.aggregation.aggregate(number, current, messages(some))
        close({name: current[name] for name in first}, expected)


@pytest.mark.parametrize("strategy", OPTIMIZERS)
def test_what_a_strategy_remembers_can_be_restored(make: Callable[..., SimpleNamespace], strategy: str) -> None:
    one, other, forgetful = make(strategy), make(strategy), make(strategy)
    current = one.aggregation.aggregate(1, one.start, messages(updates(one.start, 1)))
    other.aggregation.load_state(one.aggregation.state())
    results = [
        flatten(each.aggregation.aggregate(2, current, messages(updates(current, 2))))
        for each in (one, other, forgetful)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_weights_that_owners_would_refuse_are_an_error(make: Callable[..., SimpleNamespace]) -> None:
    made = make("fedavgm", server_learning_rate=10.0)
    some = [{name: torch.full_like(one, 9e5) for name, one in made.start.items()} for _ in IMAGES]
    with pytest.raises(FederationError, match="round 1 cannot be used") as caught:
        made.aggregation.aggregate(1, made.start, messages(some))
    assert "--server-learning-rate" in caught.value.hint


class CrashError(Exception):
    """The coordinator's process is gone."""


@pytest.mark.parametrize("strategy", OPTIMIZERS)
def test_going_on_after_a_crash_equals_an_undisturbed_run(make_federation: MakeFederation, strategy: str) -> None:
    def rounds_of(federation: SimpleNamespace) -> tuple[Rounds, Any]:
        network = build_network(federation.settings.network_config(), 0)
        quorum = Quorum(federation.conversation, federation.state, federation.plan, federation.enrolled)
        strategy = make_strategy(federation.settings)
        return Rounds(quorum, federation.state, federation.settings, strategy, network), network

    training = {"rounds": 3, "strategy": strategy}
    rounds, network = rounds_of(make_federation(name="undisturbed", training=training))
    list(rounds.run())
    expected = network_state(network)
    federation = make_federation(name="crashed", training=training)

    def crash(_owner: str, question: Message) -> bool:
        if question.metadata.group_id == "round 3":
            raise CrashError
        return False

    federation.faults.refuse = crash
    with pytest.raises(CrashError):
        list(rounds_of(federation)[0].run())
    kept = load_checkpoint(federation.state.checkpoint)
    assert kept is not None
    assert all(np.isfinite(tensor.numpy()).all() and tensor.any() for tensor in kept.momentum.values())
    assert len(kept.momentum) == (1 if strategy == "fedavgm" else 2)
    federation.faults.refuse = lambda _owner, _question: False
    rounds, network = rounds_of(federation)
    list(rounds.run())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network_state(network).items())
