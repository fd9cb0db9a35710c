"""The state that travels: complete, a copy, and nothing that does not fit gets in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppfed.errors import ModelError
from ppfed.networks.classifier import build_network
from ppfed.networks.config import NetworkConfig
from ppfed.networks.state import load_network_state, network_state
from ppfed.training.loop import predict_logits

CONFIG = NetworkConfig(classes=3, height=8, width=8, base_maps=2)
NAMES = tuple(network_state(build_network(CONFIG, 0)))
IMAGES = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def damaged(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    return changed


Damage = Callable[[dict[str, Tensor], str], object]
DAMAGES: dict[str, Damage] = {
    "is missing": lambda state, name: state.pop(name),
    "has shape": lambda state, name: state.update({name: state[name][None]}),
    "is torch.float64": lambda state, name: state.update({name: state[name].double()}),
    "is torch.int64": lambda state, name: state.update({name: state[name].long()}),
    "not finite": lambda state, name: state.update({name: damaged(state[name], float("nan"))}),
    "values that are not finite": lambda state, name: state.update({name: damaged(state[name], float("-inf"))}),
}


# Few examples and shapes: the first convolution of each shape compiles for up to a second.
@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from([CONFIG, NetworkConfig(classes=2, height=8, width=8, channels=1, adaptation=(), base_maps=2)]),
    st.integers(0, 1000),
)
def test_a_state_makes_another_network_the_same(config: NetworkConfig, seed: int) -> None:
    images = IMAGES[..., : config.channels]
    network, other = build_network(config, seed), build_network(config, seed + 1)
    network(images)  # moves the batch-norm statistics
    load_network_state(other, network_state(network))
    assert torch.equal(predict_logits(other, images), predict_logits(network, images))


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(sorted(DAMAGES)))
def test_a_misfit_is_named_and_changes_nothing(name: str, kind: str) -> None:
    network = build_network(CONFIG, 0)
    before = network_state(network)
    state = network_state(build_network(CONFIG, 1))
    DAMAGES[kind](state, name)
    with pytest.raises(ModelError) as caught:
        load_network_state(network, state)
    assert name in caught.value.message
    assert kind in caught.value.message
    assert caught.value.hint
    assert all(torch.equal(tensor, before[entry]) for entry, tensor in network_state(network).items())


@given(st.text().filter(lambda name: name not in NAMES))
def test_an_unknown_name_is_refused_and_shown_briefly(name: str) -> None:
    network = build_network(CONFIG, 0)
    with pytest.raises(ModelError) as caught:
        load_network_state(network, {**network_state(network), name: torch.zeros(1)})
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_a_negative_variance_is_refused() -> None:
    network = build_network(CONFIG, 0)
    state = network_state(network)
    state["resnet.bn1.running_var"] = damaged(state["resnet.bn1.running_var"], -1.0)
    with pytest.raises(ModelError, match=r"resnet\.bn1\.running_var holds a negative variance"):
        load_network_state(network, state)


def test_it_is_everything_but_the_counters_in_a_fixed_order() -> None:
    network = build_network(CONFIG, 0)
    state = network_state(network)
    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    assert counters
    assert list(state) == [name for name in network.state_dict() if name not in counters]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())


def test_it_is_a_copy() -> None:
    network = build_network(CONFIG, 0)
    state = network_state(network)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    network(IMAGES)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())


def test_loading_keeps_the_memory_format_and_takes_no_hold_of_the_state() -> None:
    network = build_network(CONFIG, 0)
    state = network_state(network)
    load_network_state(network, state)
    assert network.resnet.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    state["resnet.fc.bias"].fill_(5.0)
    assert not torch.equal(network.resnet.fc.bias, state["resnet.fc.bias"])
