"""The network: ResNet-18 is torchvision's, and its weights depend on the seed alone."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from ppfed.networks.classifier import Shortcut, build_network
from ppfed.networks.config import NetworkConfig

SMALL = NetworkConfig(classes=3, height=8, width=8, base_maps=4)


def random_images(shape: tuple[int, int, int, int], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Few examples: the first convolution of each shape compiles for up to a second.
@settings(max_examples=8)
@given(
    st.builds(
        NetworkConfig,
        classes=st.integers(1, 20),
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        channels=st.sampled_from([1, 3]),
        adaptation=st.lists(st.integers(1, 8), max_size=3).map(tuple),
        base_maps=st.integers(1, 4),
    ),
    st.integers(0, 3),
)
def test_any_shape_gives_finite_logits(config: NetworkConfig, count: int) -> None:
    network = build_network(config, seed=0).eval()
    with torch.no_grad():
        logits = network(random_images((count, config.height, config.width, config.channels)))
    assert logits.shape == (count, config.classes)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 8, 3), (2, 8, 8, 1), (2, 8, 8)])
@pytest.mark.parametrize("training", [False, True])
def test_another_layout_is_refused(shape: tuple[int, ...], training: bool) -> None:
    network = build_network(SMALL, 0).train(training)
    with pytest.raises(ValueError, match=r"\(N, 8, 8, 3\), channels last") as caught:
        network(torch.zeros(shape, dtype=torch.uint8))
    assert str(shape) in str(caught.value)


def test_another_size_is_taken() -> None:
    """A pass over crops feeds it."""
    assert build_network(SMALL, 0)(random_images((2, 5, 6, 3))).shape == (2, 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_weights_depend_on_the_seed_alone(seed: int, other: int) -> None:
    torch.manual_seed(other)
    first = build_network(SMALL, seed).state_dict()
    second = build_network(SMALL, seed).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    if other != seed:
        assert not torch.equal(first["resnet.conv1.weight"], build_network(SMALL, other).resnet.conv1.weight)


def test_building_leaves_the_global_randomness_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    build_network(SMALL, 7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_torchvision_computes(torchvision: ModuleType, training: bool) -> None:
    models = torchvision.models
    theirs = models.resnet18(num_classes=7).to(memory_format=torch.channels_last)
    ours = build_network(NetworkConfig(classes=7, height=96, width=128, adaptation=()), seed=0)
    ours.resnet.load_state_dict(theirs.state_dict())
    images = random_images((2, 96, 128, 3))

    with torch.no_grad():
        expected = theirs.train(training)(images.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
        # The same operators on the same memory layout, in the same order: equal to the bit.
        assert torch.equal(ours.train(training)(images), expected)


def test_parameter_count_of_the_cifar_network() -> None:
    # By hand, 3x3 convolutions without bias, batch norm 2 per map:
    #   stem    3*64*9 + 2*64                                              =     1,856
    #   stage 1 4 * 64*64*9 + 4*128                                        =   147,968
    #   stage 2 64*128*9  + 3 * 128*128*9 + shortcut 64*128  + 5*256       =   525,568
    #   stage 3 128*256*9 + 3 * 256*256*9 + shortcut 128*256 + 5*512       = 2,099,712
    #   stage 4 256*512*9 + 3 * 512*512*9 + shortcut 256*512 + 5*1024      = 8,393,728
    #   output  512*10 + 10                                                =     5,130
    plain = NetworkConfig(classes=10, height=32, width=32, adaptation=())
    assert parameters(build_network(plain, 0)) == 11_173_962
    # The adaptation network: 3*8 + 2*8 + 8*32 + 2*32 = 360; the stem then reads 32 maps: 29 * 64*9 = 16,704 more.
    adapted = NetworkConfig(classes=10, height=32, width=32)
    assert parameters(build_network(adapted, 0)) == 11_173_962 + 360 + 16_704


def test_a_negative_is_the_negative_of_the_input() -> None:
    network = build_network(NetworkConfig(classes=2, height=4, width=4, adaptation=(), base_maps=2), 0).eval()
    seen: list[Tensor] = []
    network.resnet.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    images = random_images((2, 4, 4, 3))
    network(images)
    network(255 - images)
    # Two roundings of v / 127.5, each by at most 2^-24 of a value below 2.
    torch.testing.assert_close(seen[0], -seen[1], atol=2**-22, rtol=0)


def test_mirrored_views_average_an_image_and_its_mirror_image_outside_of_training() -> None:
    images = random_images((3, 8, 8, 3))
    plain, both = build_network(SMALL, 0), build_network(replace(SMALL, mirrored_views=True), 0)
    assert torch.equal(plain.train()(images), both.train()(images))
    plain.eval()
    expected = (plain(images) + plain(images.flip(2))) / 2
    assert torch.equal(both.eval()(images), expected)
    assert torch.equal(both(images), both(images.flip(2)))
    assert not torch.equal(plain(images), plain(images.flip(2)))


@pytest.mark.parametrize(
    ("height", "width", "large"), [(32, 32, False), (95, 200, False), (96, 96, True), (224, 224, True)]
)
def test_large_images_get_the_imagenet_stem(height: int, width: int, large: bool) -> None:
    network = build_network(NetworkConfig(classes=2, height=height, width=width, base_maps=2), 0)
    assert network.resnet.conv1.kernel_size == ((7, 7) if large else (3, 3))
    assert isinstance(network.resnet.maxpool, nn.MaxPool2d if large else nn.Identity)


def test_narrow_networks_train_on_several_threads() -> None:
    """Without ``Shortcut`` this dies of a segmentation fault or "double free" on most runs: hence the child process."""
    script = """
import torch
from ppfed.networks.classifier import build_network
from ppfed.networks.config import NetworkConfig
torch.set_num_threads(2)
for base_maps in (2, 4, 8, 12, 16):
    print(base_maps, flush=True)
    network = build_network(NetworkConfig(classes=3, height=16, width=16, base_maps=base_maps), seed=0)
    for step in range(40):
        images = torch.randint(0, 256, (63 - step % 2, 16, 16, 3), dtype=torch.uint8)
        network(images).square().sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"with {done.stdout.split()} maps: {done.stderr}"


def test_a_narrow_shortcut_is_the_strided_convolution() -> None:
    shortcut = Shortcut(4, 8, 1, 2, bias=False)
    maps = torch.randn(3, 4, 9, 10, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.conv2d(maps, shortcut.weight, stride=2)
    # float32 sums of four products, in any order.
    assert_close(shortcut(maps), expected, rtol=1e-5, atol=1e-6)
