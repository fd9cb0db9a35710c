from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppfed.ciphers.negative_positive import COLOUR_PERMUTATIONS
from ppfed.errors import UsageError
from ppfed.images.types import UInt8Array
from ppfed.networks.adaptation import features_of
from ppfed.networks.config import InputFeatures
from scenarios.material import digits
from scenarios.studies.orbit_search import ROWS_FILE, Leak, OrbitRow, SearchBudget, in_table, main, measure, read_rows
from scenarios.studies.orbits import EIGHT_CONSTANTS, ORBITS, Orbit, to_lightness

NAMES = [orbit.name for orbit in ORBITS]


def orbit_of(name: str) -> Orbit:
    return next(orbit for orbit in ORBITS if orbit.name == name)


def pictures(seed: int, count: int = 3) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def xor_at_random(pixels: UInt8Array, constants: tuple[int, ...], seed: int) -> UInt8Array:
    return pixels ^ np.random.default_rng(seed).choice(np.array(constants, dtype=np.uint8), pixels.shape)


def shuffled_colours(pixels: UInt8Array, seed: int) -> UInt8Array:
    order = COLOUR_PERMUTATIONS[np.random.default_rng(seed).integers(0, 6, pixels.shape[:3])]
    return np.take_along_axis(pixels, order.astype(np.intp), axis=3)


def in_other_order(pixels: UInt8Array, high: int, wide: int, seed: int) -> UInt8Array:
    """Permute the pixels of each group of high x wide, pixel by pixel: the slow way."""
    random = np.random.default_rng(seed)
    moved = pixels.copy()
    for image in moved:
        for row in range(0, image.shape[0], high):
            for column in range(0, image.shape[1], wide):
                group = image[row : row + high, column : column + wide].reshape(-1, 3)
                image[row : row + high, column : column + wide] = random.permutation(group).reshape(high, wide, 3)
    return moved


def from_lightness(pixels):
    """Undo ``to_lightness``."""
    lightness, orange, leaf = (pixels[..., channel] for channel in range(3))
    middle = lightness - halved(leaf)
    blue = middle - halved(orange)
    return np.stack([blue + orange, leaf + middle, blue], axis=3)


def halved(difference):
    return (difference.view(np.int8) >> 1).view(np.uint8)


NP = (0x00, 0xFF)
TWICE = (0x00, 0xFF, 0x80, 0x7F)


@pytest.mark.parametrize(
    ("name", "encrypt"),
    [
        ("NP", lambda p, s: xor_at_random(p, NP, s)),
        ("NP + shuffle", lambda p, s: shuffled_colours(xor_at_random(p, NP, s), s + 1)),
        ("NP twice", lambda p, s: xor_at_random(p, TWICE, s)),
        ("NP twice + shuffle", lambda p, s: shuffled_colours(xor_at_random(p, TWICE, s), s + 1)),
        ("eight constants + shuffle", lambda p, s: shuffled_colours(xor_at_random(p, EIGHT_CONSTANTS, s), s + 1)),
        ("NP on lightness and colour", lambda p, s: from_lightness(xor_at_random(to_lightness(p), NP, s))),
        ("NP + shuffle, pairs", lambda p, s: shuffled_colours(in_other_order(p, 1, 2, s), s + 1)),
        ("NP + shuffle, blocks of 2x2", lambda p, s: xor_at_random(in_other_order(p, 2, 2, s), NP, s + 1)),
        ("NP, values of 2x2 blocks", lambda p, s: shuffled_colours(in_other_order(p, 2, 2, s), s + 1)),
    ],
)
def test_encrypted_images_have_the_representative_of_their_originals(name, encrypt):
    plain = pictures(1)
    encrypted = encrypt(plain, 2)
    assert not np.array_equal(encrypted, plain)
    assert np.array_equal(orbit_of(name).keep(encrypted), orbit_of(name).keep(plain))


@pytest.mark.parametrize("name", NAMES)
def test_other_images_have_other_representatives_of_the_same_form(name):
    keep = orbit_of(name).keep
    kept = keep(pictures(1))
    assert kept.shape == (3, 8, 8, 3)
    assert kept.dtype == np.uint8
    assert not np.array_equal(kept, keep(pictures(2)))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("plain", "colour alone")])
def test_a_representative_stands_for_itself(name):
    """What is fed to solvers is itself an image of the orbit; lightness and colour are taken apart before that."""
    keep = orbit_of(name).keep
    kept = keep(pictures(1))
    if "lightness" in name:
        kept = from_lightness(kept)
    assert np.array_equal(keep(kept), keep(pictures(1)))


@given(st.binary(min_size=12, max_size=12))
def test_lightness_and_colour_lose_nothing(values):
    pixels = np.frombuffer(values, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert np.array_equal(from_lightness(to_lightness(pixels)), pixels)


def test_grey_has_its_value_as_lightness_and_no_colour():
    grey = np.full((1, 2, 2, 3), 77, dtype=np.uint8)
    assert np.array_equal(to_lightness(grey), np.broadcast_to(np.array([77, 0, 0], dtype=np.uint8), grey.shape))


def test_representatives_are_the_input_features_of_the_ciphers_that_ppfed_has():
    images = pictures(3)
    for name, features in [
        ("NP + shuffle", InputFeatures.SORTED_FOLD),
        ("NP twice + shuffle", InputFeatures.SORTED_FOLD_TWICE),
    ]:
        shown = features_of(torch.from_numpy(images), features).permute(0, 2, 3, 1)
        ours = torch.from_numpy(orbit_of(name).keep(images)).float()
        # One counts from mid-grey and the other from the ends, so that one sorts up and the other down.
        levels = ours.flip(3) if name == "NP + shuffle" else ours
        alike = torch.corrcoef(torch.stack([shown.flatten(), levels.flatten()]))[0, 1].abs()
        assert alike > 0.9999, name


@pytest.mark.slow
def test_measures_an_orbit_and_tells_leaks_apart():
    material = digits(16, 200, 60, attacker_images=300)
    budget = SearchBudget(epochs=4, base_maps=4, attacker_images=300, attack_steps=60, targets=40, solved=10)
    plain, hidden = (
        measure(orbit_of(name), material, budget, torch.device("cpu"), seed=0)
        for name in ("plain", "eight constants + shuffle")
    )
    assert plain.solver == Leak(1.0, 0.0, 1.0)
    assert hidden.solver is not None
    assert hidden.solver.ssim < 0.9
    assert plain.network.ssim > hidden.network.ssim
    assert plain.accuracy > 0.2


def test_refuses_to_attack_without_images_of_the_attacker():
    material = replace(digits(16, 20, 20), attacker=None)
    with pytest.raises(ValueError, match="attacker"):
        measure(ORBITS[0], material, SearchBudget(), torch.device("cpu"), seed=0)


def test_keeps_what_was_measured_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = OrbitRow("NP", 0.5, Leak(0.25, 0.125, 0.5), None)
    (tmp_path / ROWS_FILE).write_text(
        '{"name": "NP", "accuracy": 0.5, "solver": null,'
        ' "network": {"ssim": 0.25, "ssim_spread": 0.125, "found": 0.5}}\n'
    )
    assert read_rows(tmp_path / ROWS_FILE) == {"NP": row}
    assert main(["nowhere", str(tmp_path), "NP"]) == 0
    assert capsys.readouterr().out == in_table([row])
    assert "| NP | 50.0 | 0.250 ± 0.125 | 50.0 % | - | - |" in in_table([row])


def test_an_orbit_that_there_is_not_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match="folders"):
        main(["nowhere", str(tmp_path), "no such orbit"])
