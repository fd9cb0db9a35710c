"""Learned seams: neighbours in pictures, and none where there is no picture."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from ppfed.attacks.alone import puzzle_variants
from ppfed.attacks.blocks.cutting import cut
from ppfed.attacks.blocks.edges import COLOURS, MISFIT, turned
from ppfed.attacks.blocks.jigsaw import Assembly, Fit
from ppfed.attacks.learned.learned_seams import QUICK, LearnedSeams, SeamsPreset, _Pairs, train_seams
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.leakage.metrics import resemblance

from ...photographs import SIDE, tiles
from ..blocks.test_jigsaw import ALL, RANDOM_NEIGHBOURS, neighbours_right, origins, solved


def jpeg(pictures: UInt8Array) -> UInt8Array:
    """Store pictures as those of the measurements are: the classical solver then finds 0.73 of neighbours, not 0.33."""
    stored = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=75)
        stored.append(np.asarray(Image.open(file)))
    return np.stack(stored)


PIECES = jpeg(np.random.default_rng(0).permutation(tiles(2)))
OWN, TARGETS = PIECES[8:], PIECES[:8]
"""Other pieces of the same photographs."""
BRIEF = replace(QUICK, steps=100, batch_size=512)


def encrypted(plain: UInt8Array, name: str) -> UInt8Array:
    cipher = make_cipher(CipherSpec(name, Scope.IMAGE, colour_shuffle=False), MasterKey(bytes(range(32))))
    return cipher.encrypt(PlainImages(plain), np.arange(12 * len(plain), dtype=np.uint8).reshape(-1, 12)).pixels


def attack(name: str, own: UInt8Array, preset: SeamsPreset = BRIEF, seed: int = 0) -> LearnedSeams:
    variants = puzzle_variants(name, own.shape[3])
    return train_seams(own, preset, block_px=4, variants=variants, device=torch.device("cpu"), seed=seed)


@cache
def trained(name: str) -> LearnedSeams:
    return attack(name, OWN)


def searched(hidden: UInt8Array, name: str, fit: Fit) -> Assembly:
    """Search less than an attacker, who spends seconds on each image in which nothing fits."""
    return solved(hidden, name, pooled=False, fit=fit, searches=1, steps=1000)


def neighbours(name: str, plain: UInt8Array, fit: Fit) -> float:
    hidden = encrypted(plain, name)
    found = searched(hidden, name, fit)
    return float(np.mean([neighbours_right(origin) for origin in origins(plain, hidden, found)]))


@pytest.mark.parametrize("name", ["etc-v1", "block-pixel-v1"])
def test_it_finds_neighbours(name: str) -> None:
    # 0.58 and 0.62 were measured with so little training and search, of EtC 0.70 with preset ``quick``, where the
    # classical solver has 0.73: it takes more than 138 pictures to be better.
    assert neighbours(name, TARGETS, trained(name).costs) > 0.45


def test_noise_has_no_neighbours() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
    # 4 images of 112 seams: chance strays by 0.011.
    assert neighbours("etc-v1", noise, trained("etc-v1").costs) < RANDOM_NEIGHBOURS + 0.04


def test_another_cipher_that_leaves_no_seams_is_not_undone() -> None:
    """ELE scrambles blocks too, but nothing in them is whole."""
    hidden = encrypted(TARGETS, "ele-v1")
    found = searched(hidden, "etc-v1", trained("etc-v1").costs)
    # Chance is 1 of 10; 5 or more by chance have odds of 1 in 600.
    assert resemblance(found.restore(hidden), TARGETS).reidentified < 0.5


def test_what_ciphers_do_to_a_block_changes_no_cost() -> None:
    blocks = cut(TARGETS[:1], 4)[:, :12]
    other = blocks.copy()
    other[0, 3] = 255 - turned(blocks[0, 3], 6)[..., COLOURS[3]]
    # Its sides and the ways in which it is related to the others change places.
    mine, theirs = (np.sort(trained("etc-v1").costs(one, ALL)[[0, 1, 2]][:, :, 3].ravel()) for one in (blocks, other))
    # Sums of squares in another order.
    assert mine == pytest.approx(theirs, abs=1e-3)
    assert mine.min() < MISFIT / 2


def test_costs_are_the_same_from_both_sides() -> None:
    blocks = cut(TARGETS[:1], 4)[:, :10]
    costs = trained("block-pixel-v1").costs(blocks, puzzle_variants("block-pixel-v1", 3))
    assert np.array_equal(costs, costs.transpose(2, 3, 0, 1, 4, 5, 6))
    first, second = np.triu_indices(10, 1)
    apart = costs[first, :, second]
    assert apart.min() >= 0
    assert apart.max() == np.float32(MISFIT)


def test_right_pairs_are_shown_as_they_lie_in_the_picture() -> None:
    image = TARGETS[1:2]
    pairs = _Pairs.of(cut(image, 4), ALL)
    right = np.flatnonzero(pairs.right(8, 8))
    first, side, second = np.unravel_index(pairs.index[right], pairs.shape)[:3]
    # Nearly all are among the cheapest by the classical cost.
    assert len(right) > 0.9 * 2 * 8 * 7
    for shown, one, under, other in zip(pairs.shown(right), first, side, second, strict=True):
        row, column = 4 * (one // 8), 4 * (one % 8)
        assert other - one == (8 if under else 1)
        seam = image[0, row : row + 8, column : column + 4].swapaxes(0, 1) if under else None
        assert np.array_equal(shown, image[0, row : row + 4, column : column + 8] if seam is None else seam)


def test_the_same_seed_gives_the_same() -> None:
    brief = SeamsPreset("brief", images=4, steps=3, batch_size=32, filters=3, maps=4)
    same, again, other = (attack("etc-v1", OWN[:8], brief, seed).network.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["rows"], other["rows"])


def test_grey_images_of_any_size_are_taken() -> None:
    grey = np.ascontiguousarray(TARGETS[:, :8, :20, :1])
    brief = SeamsPreset("brief", images=4, steps=3, batch_size=32, filters=3, maps=4)
    hidden = encrypted(grey, "etc-v1")
    fit = attack("etc-v1", grey, brief).costs
    restored = searched(hidden, "etc-v1", fit).restore(hidden)
    assert restored.shape == grey.shape
    before, after = (np.sort(np.minimum(one, 255 - one).reshape(len(one), -1)) for one in (grey, restored))
    assert np.array_equal(before, after), "blocks are moved, never painted"


def test_what_it_cannot_take_is_refused() -> None:
    grey = cut(TARGETS[:1, ..., :1], 4)
    for blocks, match in ((grey, "channels"), (cut(TARGETS[:2], 4), "one image")):
        with pytest.raises(ValueError, match=match):
            trained("etc-v1").costs(blocks, ALL)
    with pytest.raises(ValueError, match="no images"):
        attack("etc-v1", OWN[:0])
