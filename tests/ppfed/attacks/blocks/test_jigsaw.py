"""Blocks find their neighbours by their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ppfed.attacks.blocks.cutting import cut, join
from ppfed.attacks.blocks.edges import COLOURS, Variants, facing, seam_costs, turned
from ppfed.attacks.blocks.jigsaw import Assembly, assemble
from ppfed.attacks.blocks.pixel_order import pixel_order
from ppfed.attacks.blocks.views import likeliest_view, views
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

from ...photographs import pieces

ALL = Variants.of(turns=True, negatives=True, colours=True)
RANDOM_NEIGHBOURS = 112 / 2016
"""Of the 2016 pairs of 64 blocks, 112 are neighbours on a grid of 8 x 8."""


def solved(ciphertexts: UInt8Array, name: str, *, pooled: bool, block_px: int = 4, **search: Any) -> Assembly:
    etc, generator = name == "etc-v1", np.random.default_rng(0)
    return assemble(
        ciphertexts,
        block_px=block_px,
        variants=Variants.of(turns=etc, negatives=etc, colours=etc and ciphertexts.shape[3] == 3),
        pixels=not etc,
        pooled=pooled,
        generator=generator,
        **search,
    )


def encrypted(plain: UInt8Array, name: str, scope: Scope) -> UInt8Array:
    cipher = make_cipher(CipherSpec(name, scope, colour_shuffle=False), MasterKey(bytes(range(32))))
    return cipher.encrypt(PlainImages(plain), np.arange(12 * len(plain), dtype=np.uint8).reshape(-1, 12)).pixels


def origins(plain: UInt8Array, ciphertexts: UInt8Array, assembly: Assembly) -> list[UInt8Array]:
    """For each image the number of the plain block that lies in each cell, by the values that ciphers leave alone."""
    found = []
    for index, (before, after) in enumerate(zip(cut(plain, 4), cut(ciphertexts, 4), strict=True)):
        old, new = (np.sort(np.minimum(blocks, 255 - blocks).reshape(64, -1)) for blocks in (before, after))
        source = (old == new[:, None]).all(axis=2).argmax(axis=1)
        found.append(source[assembly.block[index % len(assembly.block)]])
    return found


def neighbours_right(origin: UInt8Array) -> float:
    """Part of the pairs of cells side by side whose blocks were neighbours."""
    row, column = np.divmod(origin.astype(int), 8)
    across = np.abs(np.diff(row, axis=1)) + np.abs(np.diff(column, axis=1))
    down = np.abs(np.diff(row, axis=0)) + np.abs(np.diff(column, axis=0))
    return float(np.mean(np.concatenate([across.ravel(), down.ravel()]) == 1))


def is_a_view(pictures: UInt8Array, plain: UInt8Array) -> bool:
    return any(np.array_equal(view, plain) for view in views(pictures, ALL))


def test_costs_are_what_the_seam_shows() -> None:
    """Put two blocks side by side in a few ways, and measure the seam itself."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8)
    costs = seam_costs(blocks, ALL, step=0.5, grey=1.0)
    sides = facing()
    for number in generator.choice(len(ALL), 20, replace=False):
        turn, negative, colour = ALL.turn[number], ALL.negative[number], ALL.colour[number]
        left = blocks[:, 0].astype(float)
        right = np.stack([turned(block, turn) for block in blocks[:, 1]])[..., COLOURS[colour]].astype(float)
        right = 255 - right if negative else right
        seam = 1.5 * left[:, :, -1] - 0.5 * left[:, :, -2] - 1.5 * right[:, :, 0] + 0.5 * right[:, :, 1]
        side, backwards = sides[turn, 2]
        # Channel c of the left block meets channel COLOURS[colour, c] of the right one.
        got = costs[0, 0, 1, side, backwards, negative, colour]
        # Single precision on squares of up to 500 x 500.
        assert got == pytest.approx((seam**2).mean(), rel=1e-3, abs=1)


@pytest.mark.parametrize("name", ["etc-v1", "block-pixel-v1"])
def test_one_scramble_for_all_images_is_undone_exactly(name: str) -> None:
    plain = pieces(20)
    ciphertexts = encrypted(plain, name, Scope.FIXED)
    assert is_a_view(solved(ciphertexts, name, pooled=True).restore(ciphertexts), plain)


@pytest.mark.parametrize("name", ["etc-v1", "block-pixel-v1"])
def test_images_scrambled_apart_do_not_pool(name: str) -> None:
    plain = pieces(40)
    ciphertexts = encrypted(plain, name, Scope.IMAGE)
    found = origins(plain, ciphertexts, solved(ciphertexts, name, pooled=True))
    # 40 images of 112 seams: chance strays by less than 0.01.
    assert np.mean([neighbours_right(origin) for origin in found]) == pytest.approx(RANDOM_NEIGHBOURS, abs=0.03)


@pytest.mark.parametrize("name", ["etc-v1", "block-pixel-v1"])
def test_one_image_gives_many_neighbours(name: str) -> None:
    """Blocks of 4x4 pixels, each image alone: hard, and far from chance all the same."""
    plain = pieces(4)
    ciphertexts = encrypted(plain, name, Scope.IMAGE)
    found = origins(plain, ciphertexts, solved(ciphertexts, name, pooled=False))
    # On photographs of this size 0.75 and 0.89 were measured; single ones vary much, and chance is 0.06.
    assert np.mean([neighbours_right(origin) for origin in found]) > 0.3


@pytest.mark.parametrize("which", [1, 2])
def test_large_blocks_of_one_image_are_solved(which: int) -> None:
    """Coffee and a cat; a rocket's evenly blue sky has blocks that nothing tells apart."""
    generator = np.random.default_rng(1)
    plain = pieces(3, side=128, scale=2)[which : which + 1]
    blocks = cut(plain, 16)[0][generator.permutation(64)]
    ways = generator.choice(len(ALL), 64)
    hidden = np.stack([views(block[None], ALL)[way][0] for block, way in zip(blocks, ways, strict=True)])
    ciphertexts = join(hidden[None], 8)
    restored = solved(ciphertexts, "etc-v1", pooled=False, block_px=16).restore(ciphertexts)
    # Three blocks of 64: where a block is grey, its channels can be exchanged unnoticed.
    assert max(np.mean(view == plain) for view in views(restored, ALL)) > 0.95


def test_noise_has_no_edges() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    ciphertexts = encrypted(noise, "block-pixel-v1", Scope.FIXED)
    found = origins(noise, ciphertexts, solved(ciphertexts, "block-pixel-v1", pooled=True))
    # 112 seams: three standard deviations of chance are 0.065.
    assert neighbours_right(found[0]) < RANDOM_NEIGHBOURS + 0.07


def is_upright_or_turned(order: UInt8Array, found: UInt8Array) -> bool:
    placed = order[found].reshape(4, 4)
    return any(np.array_equal(turned(placed, turn), np.arange(16).reshape(4, 4)) for turn in range(8))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_order_inside_blocks_is_found(channels: int) -> None:
    """Of each image alone; of a flat one nothing says it."""
    generator = np.random.default_rng(4)
    found = 0
    for picture in pieces(20)[..., :channels]:
        order = generator.permutation(16)
        blocks = cut(picture[None], 4)
        hidden = blocks.reshape(1, 64, 16, channels)[:, :, order].reshape(blocks.shape)
        found += is_upright_or_turned(order, pixel_order(hidden, generator=generator))
    assert found >= 18


def test_noise_has_no_order() -> None:
    generator = np.random.default_rng(5)
    noise = generator.integers(0, 256, (1, 64, 4, 4, 3), dtype=np.uint8)
    assert not is_upright_or_turned(np.arange(16), pixel_order(noise, generator=generator))


def test_views_are_all_and_the_first_is_the_picture_itself() -> None:
    plain = pieces(2)
    shown = views(plain, ALL)
    assert len({view.tobytes() for view in shown}) == 96
    assert np.array_equal(shown[0], plain)


def test_own_photographs_tell_which_way_is_up() -> None:
    """Up to left and right."""
    plain, own = pieces(40), pieces(200, seed=1)
    hidden = views(plain, ALL)[77]
    chosen = likeliest_view(hidden, own, ALL, pooled=True)
    assert any(np.array_equal(view, plain) for view in (chosen, chosen[:, :, ::-1]))
