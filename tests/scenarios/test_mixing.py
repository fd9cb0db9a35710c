"""Pixel block mixing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfed.ciphers.registry import cipher_names
from ppfed.images.types import Int64Array, UInt8Array
from scenarios.mixing import default_block, mix_blocks


def numbered(count: int, height: int, width: int, channels: int = 3) -> UInt8Array:
    """Make images of which every pixel says which image it is of, and where it was."""
    image = np.arange(count, dtype=np.uint8)[:, None, None]
    where = np.arange(height * width, dtype=np.uint8).reshape(1, height, width)
    shape = (count, height, width)
    return np.stack([np.broadcast_to(image, shape), np.broadcast_to(where, shape), image ^ where], axis=3)[
        ..., :channels
    ]


@st.composite
def settings_of(draw: st.DrawFn) -> tuple[UInt8Array, Int64Array, tuple[int, int], int, float, int]:
    count, height, width = draw(st.integers(0, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    labels = np.array(draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count)), dtype=np.int64)
    block = draw(st.tuples(st.integers(1, 10), st.integers(1, 10)))
    pixels = numbered(count, height, width, draw(st.sampled_from([1, 3])))
    return pixels, labels, block, draw(st.integers(1, 12)), draw(st.floats(0, 1)), draw(st.integers(0, 2**32))


@given(settings_of())
def test_every_block_is_that_of_an_image_of_the_class(
    case: tuple[UInt8Array, Int64Array, tuple[int, int], int, float, int],
) -> None:
    pixels, labels, block, sources, probability, seed = case
    before = pixels.copy()
    mixed = mix_blocks(
        pixels,
        labels,
        block=block,
        sources=sources,
        probability=probability,
        generator=np.random.default_rng(seed),
    )
    assert np.array_equal(pixels, before)
    assert (mixed.shape, mixed.dtype) == (pixels.shape, np.uint8)
    for image, label in zip(mixed, labels, strict=True):
        origins = set()
        for top in range(0, pixels.shape[1], block[0]):
            for left in range(0, pixels.shape[2], block[1]):
                place = slice(top, top + block[0]), slice(left, left + block[1])
                origin = int(image[top, left, 0])
                origins.add(origin)
                assert labels[origin] == label
                assert np.array_equal(image[place], pixels[origin][place])
        # Its own blocks, and those of its sources.
        assert len(origins) <= sources + 1


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_so_many_blocks_are_replaced_and_all_others_of_the_class_take_part(probability: float) -> None:
    pixels = numbered(200, 8, 16)
    labels = np.arange(200) % 10
    mixed = mix_blocks(pixels, labels, block=(4, 2), probability=probability, generator=np.random.default_rng(0))
    origin = mixed[:, ::4, ::2, 0].reshape(200, 16)
    replaced = origin != np.arange(200)[:, None]
    # 3,200 blocks: five standard deviations of their share are at most 0.045; none at 0 and 1.
    assert abs(replaced.mean() - probability) <= 5 * (probability * (1 - probability) / 3200) ** 0.5
    if probability == 1:
        counts = Counter((origin // 10)[labels == 3].reshape(-1).tolist())
        # Each of the 20 is drawn for another with a chance of 0.35, so that one is never drawn on one seed in 200.
        assert set(counts) == set(range(20))
        # At most ten sources for 16 blocks.
        assert max(len(set(row)) for row in origin.tolist()) <= 10


def test_probability_zero_changes_nothing() -> None:
    pixels = numbered(30, 8, 8)
    labels = np.zeros(30, dtype=np.int64)
    mixed = mix_blocks(pixels, labels, block=(2, 2), probability=0, generator=np.random.default_rng(0))
    assert np.array_equal(mixed, pixels)
    assert not np.shares_memory(mixed, pixels)


def test_small_classes() -> None:
    pixels = numbered(4, 8, 8)
    labels = np.array([7, 0, 7, 7])
    mixed = mix_blocks(pixels, labels, block=(1, 1), probability=1, generator=np.random.default_rng(0))
    assert np.array_equal(mixed[1], pixels[1])
    assert {int(value) for value in np.unique(mixed[0, ..., 0])} == {2, 3}


def test_the_generator_decides() -> None:
    pixels, labels = numbered(20, 8, 8), np.arange(20) % 2
    first, again, other = (
        mix_blocks(pixels, labels, block=(4, 4), generator=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_published_blocks_and_those_of_small_images() -> None:
    assert default_block(192, 192) == (96, 24)
    assert default_block(32, 32) == (16, 4)
    assert default_block(1, 5) == (1, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.zeros((2, 1), np.int64)},
        {"block": (0, 2)},
        {"sources": 0},
        {"probability": 1.5},
        {"probability": float("nan")},
    ],
    ids=str,
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"labels": np.zeros(2, np.int64), "block": (2, 2), **wrong}
    with pytest.raises(ValueError, match=r"labels|mixing"):
        mix_blocks(numbered(2, 4, 4), **arguments, generator=np.random.default_rng(0))  # type: ignore[arg-type]


def test_it_is_no_cipher() -> None:
    assert not [name for name in cipher_names() if "mix" in name]
