"""Adaptation networks and input features: what each can see, and what it cannot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope, cipher_names
from ppfed.images.types import PlainImages
from ppfed.keys.master import MasterKey
from ppfed.networks.adaptation import BlockWise, PositionMixing, adaptation_network, features_of
from ppfed.networks.config import AdaptationKind, InputFeatures, best_features

PIXEL, BLOCK, BLOCK_WISE = AdaptationKind.PIXEL, AdaptationKind.BLOCK, AdaptationKind.BLOCK_WISE


def random_images(count: int, side: int, channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, channels), dtype=torch.uint8, generator=generator)


def random_features(side: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_a_fold_cannot_tell_a_value_from_its_negative(seed: int, channels: int) -> None:
    images = random_images(2, 6, channels, seed)
    flips = random_images(2, 6, channels, seed + 1) > 127
    masked = torch.where(flips, 255 - images, images)
    for features in (InputFeatures.FOLD, InputFeatures.SORTED_FOLD):
        assert torch.equal(features_of(images, features), features_of(masked, features))
    if bool(flips.any()):
        assert not torch.equal(features_of(images, InputFeatures.VALUES), features_of(masked, InputFeatures.VALUES))


@given(st.integers(0, 2**31), st.permutations(range(3)))
def test_a_sorted_fold_cannot_tell_the_order_of_colours(seed: int, order: list[int]) -> None:
    images = random_images(2, 6, 3, seed)
    expected = features_of(images, InputFeatures.SORTED_FOLD)
    assert torch.equal(features_of(images[..., order], InputFeatures.SORTED_FOLD), expected)


@given(st.integers(0, 2**31))
def test_a_sorted_fold_is_the_fold_in_order(seed: int) -> None:
    images = random_images(2, 5, 3, seed)
    expected = features_of(images, InputFeatures.FOLD).sort(dim=1).values
    assert torch.equal(features_of(images, InputFeatures.SORTED_FOLD), expected)


TWICE = (InputFeatures.FOLD_TWICE, InputFeatures.SORTED_FOLD_TWICE)


@pytest.mark.parametrize("features", TWICE)
def test_a_fold_twice_is_the_same_for_all_four_masks_and_for_nothing_else(features: InputFeatures) -> None:
    values = torch.arange(256, dtype=torch.uint8)
    low = values.int() & 127
    distance = torch.minimum(low, 127 - low)
    expected = distance.float() / 31.5 - 1.0
    for mask in (0x00, 0xFF, 0x80, 0x7F):
        # Whole numbers and halves up to 255, then one and the same division: equal to the bit.
        assert torch.equal(features_of((values ^ mask).view(1, 16, 16, 1), features).flatten(), expected)
    assert [int((distance == one).sum()) for one in range(64)] == [4] * 64


@given(st.integers(0, 2**31), st.permutations(range(3)))
def test_a_sorted_fold_twice_cannot_tell_the_order_of_colours(seed: int, order: list[int]) -> None:
    images = random_images(2, 6, 3, seed)
    sorted_twice = features_of(images, InputFeatures.SORTED_FOLD_TWICE)
    twice = features_of(images, InputFeatures.FOLD_TWICE)
    assert torch.equal(sorted_twice, features_of(images[..., order], InputFeatures.SORTED_FOLD_TWICE))
    assert torch.equal(sorted_twice, twice.sort(dim=1).values)
    if order != [0, 1, 2]:
        assert not torch.equal(twice, features_of(images[..., order], InputFeatures.FOLD_TWICE))


def test_a_fold_twice_has_a_gradient() -> None:
    """Attacks search for images by gradient descent through the features."""
    values = torch.tensor([10.0, 100.0, 140.0, 250.0]).reshape(1, 2, 2, 1).requires_grad_()
    features_of(values, InputFeatures.FOLD_TWICE).sum().backward()
    # Towards 64 and 192 it rises, by 1 / 31.5 for each grey level.
    torch.testing.assert_close(values.grad.flatten() * 31.5, torch.tensor([1.0, -1.0, 1.0, -1.0]))


SHOWN = [(name, shuffle) for name in ("np-v1", "np2-v1") for shuffle in (False, True)]


@pytest.mark.parametrize(("name", "shuffle"), SHOWN)
def test_the_features_of_a_cipher_with_fresh_masks_do_not_see_the_key(name: str, shuffle: bool) -> None:
    spec = CipherSpec(name, Scope.IMAGE, shuffle)
    images = random_images(3, 8, 3)
    shown = []
    for key in (bytes(32), bytes(range(32))):
        encrypted = make_cipher(spec, MasterKey(key)).encrypt(PlainImages(images.numpy())).pixels
        assert not torch.equal(torch.from_numpy(encrypted), images)
        shown.append(features_of(torch.from_numpy(encrypted), best_features(spec)))
    assert torch.equal(shown[0], features_of(images, best_features(spec)))
    assert torch.equal(shown[0], shown[1])


def test_the_features_of_a_cipher_show_no_less_than_it_leaves() -> None:
    """A fold twice would throw away the top bit, and sorting the colours' order, where the cipher keeps them."""
    kinds = {spec: best_features(CipherSpec(spec[0], Scope.IMAGE, spec[1])) for spec in SHOWN}
    assert list(kinds.values()) == [
        InputFeatures.FOLD,
        InputFeatures.SORTED_FOLD,
        InputFeatures.FOLD_TWICE,
        InputFeatures.SORTED_FOLD_TWICE,
    ]
    for name in cipher_names():
        for shuffle in (False, True):
            assert best_features(CipherSpec(name, Scope.FIXED, shuffle)) is InputFeatures.VALUES
            if (name, shuffle) not in SHOWN:
                assert best_features(CipherSpec(name, Scope.IMAGE, shuffle)) is InputFeatures.VALUES


@pytest.mark.parametrize("features", InputFeatures)
def test_features_fill_the_same_range_and_layout(features: InputFeatures) -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    found = features_of(every, features)
    assert found.shape == (1, 3, 16, 16)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.max() == 1.0
    # 127.5 itself is no value: the smallest fold is 0.5, which is 0.5 / 63.75 above -1.
    assert found.min() == pytest.approx(-1.0, abs=0.5 / 63.75 + 1e-6)


def test_the_pixel_network_is_the_papers() -> None:
    layers = list(adaptation_network(PIXEL, 3, (8, 32), 5, 7))
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Conv2d)]
    assert shapes == [(8, 3, 1, 1), (32, 8, 1, 1)]
    assert adaptation_network(PIXEL, 3, (8, 32), 5, 7)(torch.zeros(2, 3, 5, 7)).shape == (2, 32, 5, 7)


def test_the_pixel_network_treats_all_positions_alike() -> None:
    network = adaptation_network(PIXEL, 3, (8, 32), 6, 6).eval()
    images = random_features(6)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    permuted = images.flatten(2)[..., order].view_as(images)
    # A convolution may sum in another order at another place: 32-bit rounding, about 1e-7 of values of order 1.
    torch.testing.assert_close(
        network(permuted), network(images).flatten(2)[..., order].view(2, 32, 6, 6), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", AdaptationKind)
def test_no_maps_is_the_identity(kind: AdaptationKind) -> None:
    images = random_features(5)
    assert torch.equal(adaptation_network(kind, 3, (), 5, 5)(images), images)


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([BLOCK, BLOCK_WISE]), st.integers(1, 3), st.integers(1, 3))
def test_block_networks_give_full_resolution(kind: AdaptationKind, rows: int, columns: int) -> None:
    network = adaptation_network(kind, 3, (6, 5, 2), 4 * rows, 4 * columns).eval()
    assert network(torch.zeros(2, 3, 4 * rows, 4 * columns)).shape == (2, 2, 4 * rows, 4 * columns)


def blocks_swapped(maps: Tensor) -> Tensor:
    """Exchange the left and the right half of two columns of blocks."""
    return torch.cat([maps[..., 4:], maps[..., :4]], -1)


def test_the_block_network_treats_all_blocks_alike_and_the_block_wise_one_does_not() -> None:
    images = random_features(8)
    for kind, alike in ((BLOCK, True), (BLOCK_WISE, False)):
        torch.manual_seed(0)
        network = adaptation_network(kind, 3, (6, 2), 8, 8).eval()
        # The same rounding as above.
        same = torch.allclose(network(blocks_swapped(images)), blocks_swapped(network(images)), atol=1e-5)
        assert same is alike


def test_a_change_in_one_block_stays_there_unless_positions_are_mixed() -> None:
    images = random_features(8)
    changed = images.clone()
    changed[..., :4, :4] += 1.0
    for kind, stays in ((BLOCK, True), (BLOCK_WISE, False)):
        network = adaptation_network(kind, 3, (6, 2), 8, 8).eval()
        difference = (network(changed) - network(images)).abs()
        assert bool(difference[..., :4, :4].any())
        assert bool(difference[..., 4:, 4:].any()) is not stays


def test_block_wise_maps_and_mixing_can_undo_blocks_of_different_keys_in_another_order() -> None:
    """What the network is for: some weights restore the picture from permuted values in permuted blocks."""
    images = random_features(8)
    blocks = nn.functional.pixel_unshuffle(images, 4).flatten(2)
    generator = torch.Generator().manual_seed(5)
    inside = torch.stack([torch.randperm(48, generator=generator) for _ in range(4)])
    order = torch.randperm(4, generator=generator)
    scrambled = torch.stack([blocks[:, inside[b], b] for b in range(4)], -1)[..., order]
    encrypted = nn.functional.pixel_shuffle(scrambled.unflatten(2, (2, 2)), 4)

    wise, mixing = BlockWise(3, 48, 2, 2), PositionMixing(2, 2)
    with torch.no_grad():
        for place, old in enumerate(order.tolist()):
            wise.weight[place] = torch.eye(48)[inside[old]]
        mixing.weight.copy_(torch.eye(4)[order])
    restored = nn.functional.pixel_shuffle(mixing(wise(encrypted)), 4)
    # Sums of one product by one and products by zero: exact but for the sign of zero.
    torch.testing.assert_close(restored, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [BLOCK, BLOCK_WISE])
def test_what_cannot_be_is_refused(kind: AdaptationKind) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        adaptation_network(kind, 3, (8, 2), 6, 8)
    with pytest.raises(ValueError, match="two layers"):
        adaptation_network(kind, 3, (8,), 8, 8)
