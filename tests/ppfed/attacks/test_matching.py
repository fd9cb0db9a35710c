"""Few things that were moved alike in all images are put back, by what pictures say of how they vary together."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ppfed.attacks.matching import Float32Array, IndexArray, Matching

from ..photographs import pieces

SIDE_BLOCKS = 6
BLOCKS = SIDE_BLOCKS**2
SHAPE = (SIDE_BLOCKS, SIDE_BLOCKS)


def brightness(count: int, skipped: int = 0) -> Float32Array:
    """Return the mean of each 4x4 block of pieces of photographs: (count, blocks, 1)."""
    drawn = pieces(skipped + count, side=4 * SIDE_BLOCKS, scale=2)[skipped:]
    blocks = drawn.reshape(count, SIDE_BLOCKS, 4, SIDE_BLOCKS, 4, -1).mean(axis=(2, 4, 5))
    return blocks.reshape(count, BLOCKS, 1).astype(np.float32)


@pytest.fixture(scope="module")
def matching() -> Matching:
    """What an attacker knows of pictures."""
    return Matching(brightness(600), SHAPE)


def moved(images: Float32Array, seed: int) -> tuple[Float32Array, IndexArray]:
    """Move things: thing i of what is returned belongs at place i."""
    place = np.random.default_rng(seed).permutation(BLOCKS)
    return images[:, place], place


def views(place: IndexArray) -> list[IndexArray]:
    """List the same order as it is, mirrored and turned."""
    numbers = np.arange(BLOCKS).reshape(SHAPE)
    ways = [numbers[::down, ::right] for down in (1, -1) for right in (1, -1)]
    return [way.reshape(-1)[place] for way in (*ways, *(way.T for way in ways))]


def likely(matching: Matching, images: Float32Array, place: IndexArray) -> float:
    """Say how likely an order is at the lowest noise, from its definition."""
    seen = images[..., 0] - matching._centre[0]
    moments = seen.T.astype(np.float64) @ seen / len(seen)
    return float((moments * matching._weights[-1][0][np.ix_(place, place)]).sum())


def test_search_finds_the_order_of_a_hundred_images_up_to_a_view(matching: Matching) -> None:
    for seed in range(3):
        images, place = moved(brightness(100, skipped=600 + 100 * seed), seed)
        found = matching.search(images, np.random.default_rng(seed))
        assert max(np.mean(view == place) for view in views(found)) > 0.9


def test_search_finds_nothing_in_images_that_were_moved_each_otherwise(matching: Matching) -> None:
    images = brightness(40, skipped=600)
    each = np.stack([moved(image[None], seed)[0][0] for seed, image in enumerate(images)])
    found = matching.search(each, np.random.default_rng(0))
    # Of 36 things about one is at its place by chance, of eight views at most some.
    assert max(np.mean(view == np.arange(BLOCKS)) for view in views(found)) < 0.3


def test_no_exchange_of_two_betters_what_has_settled(matching: Matching) -> None:
    images, _ = moved(brightness(30, skipped=600), 1)
    settled = matching.settle(images, np.random.default_rng(1).permutation(BLOCKS))
    assert sorted(settled) == list(range(BLOCKS))
    best = likely(matching, images, settled)
    for first, second in combinations(range(BLOCKS), 2):
        other = settled.copy()
        other[[first, second]] = other[[second, first]]
        assert likely(matching, images, other) <= best * (1 + 1e-5)


def test_settling_loses_nothing(matching: Matching) -> None:
    images, place = moved(brightness(200, skipped=600), 2)
    assert likely(matching, images, matching.settle(images, place)) >= likely(matching, images, place) * (1 - 1e-6)
