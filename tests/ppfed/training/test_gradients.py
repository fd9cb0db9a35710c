"""A step over images at several owners is the step of one machine that has them all."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppfed.networks.adaptation import features_of
from ppfed.networks.classifier import build_network
from ppfed.networks.config import Backbone, NetworkConfig
from ppfed.networks.state import network_state
from ppfed.training.augment import NO_AUGMENTATION
from ppfed.training.gradients import (
    Moments,
    PartialGradient,
    Turns,
    apply_step,
    batch_norm_layers,
    count_moments,
    merge_moments,
    owner_offset,
    partial_gradient,
    step_generator,
    steps_of_pass,
    values_per_image,
)
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig
from ppfed.training.settings import BatchNormMode, Precision, Schedule

CPU = torch.device("cpu")
SHAPE = (8, 8, 3)
CLASSES = 3
CONFIG = TrainingConfig(
    epochs=10,
    batch_size=64,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-2,
    schedule=Schedule.PAPER,
    label_smoothing=0.1,
    augmentation=NO_AUGMENTATION,
)
LOSS = nn.CrossEntropyLoss(label_smoothing=CONFIG.label_smoothing)
# Rounding of float64: values of order 1, some thousand operations, a few steps that magnify what went before.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
# The same for float32.
ROUNDED = {"rtol": 1e-3, "atol": 2e-5}


class Small(nn.Module):
    """A network in any precision; ``norm`` makes its normalisation layers."""

    def __init__(self, *, batch_norm: bool = True, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1: nn.Module = nn.BatchNorm2d(4) if batch_norm else nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 5, 3, stride=2)
        self.norm2: nn.Module = nn.BatchNorm2d(5) if batch_norm else nn.GroupNorm(1, 5)
        self.last = nn.Linear(5, CLASSES)
        self.to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        maps = images.permute(0, 3, 1, 2).to(self.last.weight.dtype) / 127.5 - 1
        maps = torch.relu(self.norm1(self.first(maps)))
        logits: Tensor = self.last(torch.relu(self.norm2(self.second(maps))).mean((2, 3)))
        return logits


def small(seed: int = 0, *, batch_norm: bool = True, dtype: torch.dtype = torch.float64) -> Small:
    torch.manual_seed(seed)
    return Small(batch_norm=batch_norm, dtype=dtype)


def batch(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def steps_of_owners(sizes: Sequence[int], steps: int) -> list[list[tuple[Tensor, Tensor]]]:
    return [[batch(size, 100 * step + owner) for owner, size in enumerate(sizes)] for step in range(steps)]


def federated(
    network: nn.Module,
    batches: list[list[tuple[Tensor, Tensor]]],
    mode: BatchNormMode = BatchNormMode.LOCAL,
    micro_batch: int = 1000,
) -> list[float]:
    trainer = Trainer(network, CONFIG, CPU)
    values = values_per_image(network, SHAPE)
    losses = []
    for step, owners in enumerate(batches):
        # Each owner has a network of its own, with the coordinator's state.
        parts = [
            partial_gradient(copy.deepcopy(network), images, labels, LOSS, micro_batch=micro_batch, batch_norm=mode)
            for images, labels in owners
        ]
        losses.append(apply_step(trainer, parts, step / 10, values))
    return losses


def centralized(
    network: nn.Module, batches: list[list[tuple[Tensor, Tensor]]], *, normalise: str, micro_batch: int = 1000
) -> list[float]:
    """Train with torch.optim.SGD on one machine.

    ``normalise`` says over what batch norm normalises: ``parts`` (each micro-batch of each owner), ``whole`` (one
    forward pass over the union), or ``running`` (one forward pass, with the running statistics).
    """
    optimizer = torch.optim.SGD(
        network.parameters(), lr=CONFIG.learning_rate, momentum=0.9, weight_decay=1e-2, nesterov=True
    )
    layers = batch_norm_layers(network)
    losses = []
    for step, owners in enumerate(batches):
        seen: dict[str, list[Tensor]] = {name: [] for name in layers}
        handles = [
            layer.register_forward_hook(lambda _layer, inputs, _out, kept=seen[name]: kept.append(inputs[0].detach()))
            for name, layer in layers.items()
        ]
        kept = {name: (layer.running_mean.clone(), layer.running_var.clone()) for name, layer in layers.items()}
        network.train()
        if normalise == "running":
            for layer in layers.values():
                layer.eval()
        total = sum(len(labels) for _, labels in owners)
        images, labels = (torch.cat(parts) for parts in zip(*owners, strict=True))
        pieces = [(images, labels)]
        if normalise == "parts":
            pieces = [
                piece
                for own in owners
                for piece in zip(*(one.tensor_split(-(-len(one) // micro_batch)) for one in own), strict=True)
            ]
        optimizer.param_groups[0]["lr"] = CONFIG.learning_rate_at(step / 10)
        optimizer.zero_grad()
        loss = sum(LOSS(network(some), wanted) * (len(wanted) / total) for some, wanted in pieces)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            union = torch.cat(seen[name])
            mean, var = kept[name]
            # As torch documents it: momentum 0.1, unbiased variance.
            layer.running_mean.copy_(0.9 * mean + 0.1 * union.mean((0, 2, 3)))
            layer.running_var.copy_(0.9 * var + 0.1 * union.var((0, 2, 3), correction=1))
    return losses


def assert_equal(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    for name, tensor in mine.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, theirs[name], **tolerance)


def assert_trained(network: nn.Module, fresh: nn.Module) -> None:
    before = fresh.state_dict()
    assert all(
        (tensor - before[name]).abs().max() > 1e-4
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


SIZES = (9, 2, 17)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, ROUNDED)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("micro_batch", [1000, 4])
def test_steps_equal_the_centralized_steps_with_the_same_micro_batches(
    dtype: torch.dtype, tolerance: dict[str, float], micro_batch: int
) -> None:
    one, other = small(dtype=dtype), small(dtype=dtype)
    batches = steps_of_owners(SIZES, 6)
    mine = federated(one, batches, micro_batch=micro_batch)
    theirs = centralized(other, batches, normalise="parts", micro_batch=micro_batch)
    assert_equal(one, other, **tolerance)
    assert mine == pytest.approx(theirs, rel=tolerance["rtol"])
    assert_trained(one, small(dtype=dtype))


class DoubleClassifier(nn.Module):
    """The classifier that federations train, in float64."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        config = NetworkConfig(CLASSES, *SHAPE, adaptation=(2, 2), base_maps=2, backbone=backbone)
        self.classifier = build_network(config, 0).double()

    def forward(self, images: Tensor) -> Tensor:
        maps = features_of(images, self.classifier.config.features).double()
        logits: Tensor = self.classifier.backbone(self.classifier.adaptation(maps))
        return logits


@pytest.mark.parametrize("backbone", Backbone)
@pytest.mark.parametrize(
    ("mode", "normalise"), [(BatchNormMode.LOCAL, "parts"), (BatchNormMode.SHARED, "running")], ids=["local", "shared"]
)
def test_the_classifier_itself_equals_the_centralized_one(
    backbone: Backbone, mode: BatchNormMode, normalise: str
) -> None:
    one, other = DoubleClassifier(backbone), DoubleClassifier(backbone)
    batches = steps_of_owners((8, 6), 3)
    federated(one, batches, mode)
    centralized(other, batches, normalise=normalise)
    # 20 layers of batch norm over as few as 6 values divide by small variances, which magnifies the rounding.
    assert_equal(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, ROUNDED)], ids=["float64", "float32"]
)
def test_shared_batch_norm_equals_one_forward_pass_over_the_union(
    dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    one, other = small(dtype=dtype), small(dtype=dtype)
    batches = steps_of_owners(SIZES, 6)
    mine = federated(one, batches, BatchNormMode.SHARED, micro_batch=4)
    theirs = centralized(other, batches, normalise="running")
    assert_equal(one, other, **tolerance)
    assert mine == pytest.approx(theirs, rel=tolerance["rtol"])
    assert_trained(one, small(dtype=dtype))


def test_without_batch_norm_steps_equal_one_forward_pass_over_the_union() -> None:
    one, other = small(batch_norm=False), small(batch_norm=False)
    batches = steps_of_owners(SIZES, 6)
    federated(one, batches, micro_batch=4)
    centralized(other, batches, normalise="whole")
    assert_equal(one, other, **EXACT)


def test_local_batch_norm_differs_from_one_forward_pass_over_the_union() -> None:
    """What the tests above would show if they could not fail; and why there are two modes."""
    one, other = small(), small()
    batches = steps_of_owners(SIZES, 1)
    federated(one, batches)
    centralized(other, batches, normalise="whole")
    assert not torch.allclose(one.first.weight, other.first.weight, rtol=1e-6, atol=1e-8)
    # The first layer sees no other images' statistics: its own are exact even so.
    torch.testing.assert_close(one.norm1.running_var, other.norm1.running_var, **EXACT)


@pytest.mark.parametrize("backbone", Backbone)
def test_one_owner_takes_the_step_of_the_one_training_loop(backbone: Backbone) -> None:
    config = NetworkConfig(CLASSES, *SHAPE, adaptation=(2, 2), base_maps=2, backbone=backbone)
    one, other = build_network(config, 0), build_network(config, 0)
    images, labels = batch(12, 0)
    trainer = Trainer(other, CONFIG, CPU)
    (result,) = trainer.train_epochs(ImageTensors(images, labels), 0, 1)
    order = torch.randperm(12, generator=_epoch_generator())
    (loss,) = federated(one, [[(images[order], labels[order])]])
    # Parameters bit for bit; running statistics are summed in another order than in torch's kernel.
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert_equal(one, other, rtol=1e-5, atol=1e-6)
    assert loss == pytest.approx(result.loss, rel=1e-6)


def _epoch_generator() -> torch.Generator:
    from ppfed.training.loop import epoch_generator

    return epoch_generator(CONFIG.seed, 0)


@pytest.mark.parametrize("mode", BatchNormMode)
def test_an_owner_changes_nothing_in_its_network(mode: BatchNormMode) -> None:
    network = small()
    before = copy.deepcopy(network)
    partial_gradient(network, *batch(7, 0), LOSS, micro_batch=4, batch_norm=mode)
    assert_equal(network, before, rtol=0, atol=0)
    for layer in batch_norm_layers(network).values():
        assert (layer.momentum, layer.training, len(layer._forward_pre_hooks)) == (0.1, True, 0)
    assert all(one.grad is None for one in network.parameters())


def test_a_gradient_in_bfloat16_is_rounded_and_float32() -> None:
    exact, rounded = (
        partial_gradient(small(dtype=torch.float32), *batch(7, 0), LOSS, micro_batch=4, precision=one).gradient
        for one in (Precision.AUTO, Precision.BFLOAT16)
    )
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.3


def test_a_long_gradient_is_shortened() -> None:
    network = small()
    part = partial_gradient(network, *batch(5, 0), LOSS, micro_batch=100)
    large = PartialGradient(part.gradient * 1e3, part.moments, part.images, part.loss)
    values = values_per_image(network, SHAPE)
    length = float(part.gradient.norm())
    one, other, free = (copy.deepcopy(network) for _ in range(3))
    apply_step(Trainer(one, CONFIG, CPU), [large], 0.0, values, clip=length)
    apply_step(Trainer(other, CONFIG, CPU), [part], 0.0, values, clip=length * 1.01)
    apply_step(Trainer(free, CONFIG, CPU), [large], 0.0, values)
    assert_equal(one, other, **EXACT)
    assert not torch.allclose(one.first.weight, free.first.weight)


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_merged_moments_are_the_unions(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(sizes), 3, 4, dtype=torch.float64, generator=generator) * 5 + 2
    parts = [
        (len(some), Moments(some.mean((0, 2)), some.var((0, 2), correction=0))) for some in torch.split(values, sizes)
    ]
    merged = merge_moments(parts)
    torch.testing.assert_close(merged.mean, values.mean((0, 2)), **EXACT)
    torch.testing.assert_close(merged.variance, values.var((0, 2), correction=0), **EXACT)


def test_values_per_image_are_what_a_forward_pass_shows() -> None:
    # Mirrored views double the images when the network predicts, which must not count.
    config = NetworkConfig(classes=CLASSES, height=10, width=6, adaptation=(2, 3), base_maps=2, mirrored_views=True)
    network = build_network(config, 0)
    seen: dict[str, int] = {}
    for name, layer in batch_norm_layers(network).items():
        layer.register_forward_hook(
            lambda _layer, inputs, _out, name=name: seen.update({name: inputs[0][:, 0].numel() // len(inputs[0])})
        )
    network.train()(torch.zeros(2, 10, 6, 3, dtype=torch.uint8))
    assert values_per_image(network, (10, 6, 3)) == seen
    assert next(iter(seen.values())) == 60
    statistics = sum(one.numel() for name, one in network_state(network).items() if name.endswith("running_var"))
    assert count_moments(network) == statistics


@settings(deadline=None)
@given(
    images=st.integers(2, 400),
    steps=st.integers(1, 60),
    fewest=st.integers(2, 9),
    shift=st.integers(0, 0xFFFF),
    epoch=st.integers(0, 3),
)
def test_a_pass_uses_every_image_once(images: int, steps: int, fewest: int, shift: int, epoch: int) -> None:
    turns = Turns(images, steps, fewest, shift)
    taken = [step for step in range(steps) if turns.part(step) is not None]
    assert len(taken) == turns.parts == min(steps, images // fewest)
    rows = [turns.rows(step, 7, epoch) for step in taken]
    assert [len(some) for some in rows] == [turns.count(step) for step in taken]
    assert sum(turns.count(step) for step in range(steps)) == (images if taken else 0)
    if taken:
        assert min(len(some) for some in rows) >= fewest
        assert sorted(torch.cat(rows).tolist()) == list(range(images))
        gaps = [later - earlier for earlier, later in itertools.pairwise([*taken, taken[0] + steps])]
        assert max(gaps) - min(gaps) <= 1


def test_orders_differ_between_passes_and_owners_and_not_between_questions() -> None:
    turns = Turns(100, 5)
    assert torch.equal(turns.rows(2, 1, 0), turns.rows(2, 1, 0))
    assert not torch.equal(turns.rows(2, 1, 0), turns.rows(2, 1, 1))
    assert not torch.equal(turns.rows(2, 1, 0), turns.rows(2, 2, 0))
    draws = {int(torch.randint(2**62, (), generator=step_generator(1, 0, step))) for step in range(5)}
    draws.add(int(torch.randint(2**62, (), generator=step_generator(1, 1, 0))))
    assert len(draws) == 6
    assert owner_offset("anna") != owner_offset("bert")
    with pytest.raises(ValueError, match="turn"):
        Turns(2, 5).rows(1, 0, 0)


@pytest.mark.parametrize(("images", "batch_size", "steps"), [(1, 128, 1), (128, 128, 1), (129, 128, 2), (0, 4, 1)])
def test_steps_of_a_pass(images: int, batch_size: int, steps: int) -> None:
    assert steps_of_pass(images, batch_size) == steps
