"""Learned inversion without pairs: it undoes what serves all images, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppfed.attacks.learned.unpaired import QUICK, UnpairedInversion, train_unpaired
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from scenarios.material import digits

MATERIAL = digits(16, images=500, held_out=300)
OWN = MATERIAL.train.pixels[..., :1]
TARGETS = MATERIAL.held_out.pixels[..., :1]
"""Other digits than the attacker's."""


def correlation(restored: UInt8Array, originals: UInt8Array) -> float:
    """Size of the correlation over images, without their mean: a negative shows the picture too."""
    first, second = (values.astype(float) - values.mean(0) for values in (restored, originals))
    return float(abs((first * second).sum()) / np.sqrt((first**2).sum() * (second**2).sum()))


def attack(spec: CipherSpec) -> tuple[UnpairedInversion, UInt8Array]:
    cipher = make_cipher(spec, MasterKey(bytes(32)))
    hidden = cipher.encrypt(PlainImages(TARGETS)).pixels
    return train_unpaired(hidden, OWN, QUICK, device=torch.device("cpu"), seed=0), hidden


def test_one_mask_is_undone() -> None:
    inversion, hidden = attack(CipherSpec("np-v1", Scope.FIXED, colour_shuffle=False))
    # A ciphertext's values have random signs, so that it correlates by chance only.
    assert correlation(hidden, TARGETS) < 0.2
    assert correlation(inversion.restore(hidden), TARGETS) > 0.8


@pytest.mark.parametrize("name", ["np-v1", "logistic-rc4-v1"])
def test_fresh_choices_are_not(name: str) -> None:
    inversion, hidden = attack(CipherSpec(name, Scope.IMAGE, colour_shuffle=False))
    # 300 images of 256 values: chance is a few thousandths.
    assert correlation(inversion.restore(hidden), TARGETS) < 0.05


def test_the_same_seed_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    hidden, own = rng.integers(0, 256, (2, 20, 8, 8, 3), dtype=np.uint8)
    brief = type(QUICK)("brief", steps=3, batch_size=8, widths=(4, 8))
    weights = [train_unpaired(hidden, own, brief, device=torch.device("cpu"), seed=seed).weight for seed in (5, 5, 6)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_shapes_must_agree() -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="shape"):
        train_unpaired(images, np.zeros((4, 8, 4, 1), np.uint8), QUICK, device=torch.device("cpu"), seed=0)
    inversion = UnpairedInversion(np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match="trained on"):
        inversion.restore(np.zeros((4, 8, 4, 1), np.uint8))
