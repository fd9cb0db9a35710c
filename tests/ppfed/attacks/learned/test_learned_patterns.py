"""Learned patterns: colours of a pixel find their sides again, and what has none stays undecided."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from ppfed.attacks.learned.learned_patterns import LearnedPatterns, Leaves, train_patterns
from ppfed.attacks.learned.pixel_scorer import ScorerTraining
from ppfed.attacks.values.stream import NP_CONSTANTS, NP_TWICE_CONSTANTS
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from tests.ppfed.photographs import pieces

CPU = torch.device("cpu")
CONSTANTS = {"np-v1": NP_CONSTANTS, "np2-v1": NP_TWICE_CONSTANTS}
EVERY = list(product(CONSTANTS, (True, False)))
# Of what the commonest pattern leaves. Measured: 0.55, 0.81, 0.31, 0.58.
GAINS = [(*one, gain) for one, gain in zip(EVERY, (0.45, 0.7, 0.2, 0.48), strict=True)]
PIECES = pieces(120)
OWN, TARGETS = PIECES[:100], PIECES[100:]


def encrypt(name: str, shuffle: bool, pixels: UInt8Array) -> UInt8Array:
    spec = CipherSpec(name, Scope.IMAGE, colour_shuffle=shuffle)
    return make_cipher(spec, MasterKey(bytes(32))).encrypt(PlainImages(pixels)).pixels


def train(leaves: Leaves, own: UInt8Array, steps: int = 150) -> LearnedPatterns:
    return train_patterns(own, leaves, ScorerTraining(steps, 16, 5e-3, 16, (16, 32)), device=CPU, seed=0)


@pytest.mark.parametrize(("name", "shuffle"), EVERY)
def test_plain_and_encrypted_images_leave_the_same(name: str, shuffle: bool) -> None:
    leaves = Leaves(CONSTANTS[name], shuffle)
    left = leaves.of(TARGETS)
    np.testing.assert_array_equal(left, leaves.of(encrypt(name, shuffle, TARGETS)))
    back = left ^ np.array(CONSTANTS[name], dtype=np.uint8)[leaves.masks(TARGETS)]
    np.testing.assert_array_equal(np.sort(back, axis=3), np.sort(TARGETS, axis=3))
    if not shuffle:
        np.testing.assert_array_equal(back, TARGETS)


@pytest.mark.parametrize(("name", "shuffle", "gain"), GAINS)
def test_patterns_are_found(name: str, shuffle: bool, gain: float) -> None:
    """Always to say that all colours are on one side would be right of this part."""
    leaves = Leaves(CONSTANTS[name], shuffle)
    constants, masks = np.array(CONSTANTS[name], dtype=np.uint8), leaves.masks(TARGETS)
    alike = (masks == masks[..., :1]).all(axis=3).mean()
    settled = train(leaves, OWN).settle(encrypt(name, shuffle, TARGETS))
    wanted = leaves.of(TARGETS) ^ constants[masks]
    right = (settled[..., None] ^ constants == wanted[..., None]).all(axis=3).any(axis=3).mean()
    assert right > alike + gain * (1 - alike)


def test_of_noise_nothing_is_learned() -> None:
    leaves = Leaves(NP_CONSTANTS, any_order=False)
    noise = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    masks = leaves.masks(noise)
    settled = train(leaves, OWN, steps=10).settle(noise)
    constants = np.array(NP_CONSTANTS, dtype=np.uint8)
    wanted = leaves.of(noise) ^ constants[masks]
    right = (settled[..., None] ^ constants == wanted[..., None]).all(axis=3).any(axis=3).mean()
    # One of four patterns, of 6,144 pixels.
    assert abs(right - 0.25) < 0.03


def test_grey_images_have_no_patterns() -> None:
    leaves = Leaves(NP_TWICE_CONSTANTS, any_order=True)
    grey = np.ascontiguousarray(TARGETS[..., :1])
    trained = train(leaves, grey)
    assert trained.network is None
    np.testing.assert_array_equal(trained.settle(grey), leaves.of(grey))


def test_constants_that_are_no_group_are_refused() -> None:
    with pytest.raises(ValueError, match="group"):
        Leaves((0xFF, 0), any_order=False)
