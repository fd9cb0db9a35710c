"""Membership by shadow networks, on a few handwritten digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppfed.errors import UsageError
from ppfed.images.types import PlainImages
from scenarios.material import Material, digits
from scenarios.studies.rows import RowsFile
from scenarios.studies.shadows import SMALL_BUDGET, Shadow, ShadowBudget, ShadowRow, halves, main, measure

CPU = torch.device("cpu")
FEW = ShadowBudget(images=60, networks=6, epochs=60, base_maps=8)


def test_networks_that_know_their_images_by_heart_give_them_away(tmp_path: Path) -> None:
    material = digits(8, FEW.images, 20)
    # Labels without sense can only be learned by heart.
    material = replace(material, train_labels=np.random.default_rng(1).permutation(material.train_labels))
    file = RowsFile(tmp_path / "shadows.jsonl", ShadowRow)
    measure("sorted-fold", material, FEW, tmp_path / "networks", file, CPU)
    rows = file.read()
    assert [(row.input, row.network) for row in rows] == [("sorted-fold", number) for number in range(6)]
    assert all(row.member_accuracy > row.accuracy for row in rows)
    loss, calibrated, likelihood = (
        [getattr(row, name).auc for row in rows] for name in ("by_loss", "by_calibration", "by_likelihood")
    )
    # Of 30 and 30 images chance strays by 0.075, and the mean over six attacked networks by less.
    assert np.mean(loss) > 0.8
    # Whoever has shadow networks also has the loss: they are worth their cost only if they lose nothing on it.
    assert max(np.mean(calibrated), np.mean(likelihood)) > np.mean(loss) - rows[0].by_loss.auc_chance_spread


def shadows_of_noise(folder: Path, budget: ShadowBudget, gain: float) -> tuple[Material, RowsFile[ShadowRow]]:
    """Put networks there that tell an image's difficulty and noise, and ``gain`` more of their own images."""
    rng = np.random.default_rng(2)
    difficulty = 2 * rng.normal(size=budget.images)
    folder.mkdir()
    for number, members in enumerate(halves(budget.images, budget.networks)):
        confidences = difficulty + rng.normal(size=budget.images) + gain * members
        name = f"plain-{budget.images}x{budget.epochs}-{budget.base_maps}-{number}.npz"
        Shadow(confidences, 0.5, 0.5).save(folder / name)
    images, labels = PlainImages(np.zeros((budget.images, 4, 4, 3), np.uint8)), np.zeros(budget.images, np.int64)
    material = Material(("one",), images, labels, PlainImages(images.pixels[:1]), labels[:1])
    return material, RowsFile(folder / "shadows.jsonl", ShadowRow)


# With so many images a design that knows its members in advance stands out of what chance does: each image in exactly
# half of the networks gave the likelihood ratio 0.474 on noise, six standard deviations below one half.
MANY = ShadowBudget(images=20_000, networks=8)


def test_networks_that_tell_nothing_give_nothing_away(tmp_path: Path) -> None:
    material, file = shadows_of_noise(tmp_path / "networks", MANY, gain=0)
    measure("plain", material, MANY, tmp_path / "networks", file, CPU)
    rows = file.read()
    assert len(rows) == MANY.networks
    for row in rows:
        for outcome in (row.by_loss, row.by_calibration, row.by_likelihood):
            # Four standard deviations: once in 16,000 times.
            assert abs(outcome.auc - 0.5) < 4 * outcome.auc_chance_spread


def test_shadow_networks_find_what_the_loss_hides_in_difficulty(tmp_path: Path) -> None:
    material, file = shadows_of_noise(tmp_path / "networks", MANY, gain=1)
    measure("plain", material, MANY, tmp_path / "networks", file, CPU)
    # Theory: Phi(1 / sqrt(2 * variance)) is 0.62 for the variance of 5 that the loss has, and 0.74 for the 1.3 of the
    # difference from the mean of about four shadow networks, which vary in number. Chance strays by 0.004.
    rows = file.read()
    assert len(rows) == MANY.networks
    for row in rows:
        assert row.by_loss.auc == pytest.approx(0.624, abs=0.02)
        assert row.by_calibration.auc == pytest.approx(0.73, abs=0.02)
        assert row.by_likelihood.auc > row.by_loss.auc + 0.02


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    material, brief = digits(8, FEW.images, 20), replace(FEW, networks=4, epochs=1)
    file, folder = RowsFile(tmp_path / "shadows.jsonl", ShadowRow), tmp_path / "networks"
    measure("plain", material, brief, folder, file, CPU)
    rows, first = file.read(), (folder / "plain-60x1-8-0.npz").read_bytes()
    (folder / "plain-60x1-8-1.npz").unlink()
    (tmp_path / "shadows.jsonl").unlink()
    measure("plain", material, brief, folder, file, CPU)
    measure("plain", material, brief, folder, file, CPU)
    assert file.read() == rows
    assert (folder / "plain-60x1-8-0.npz").read_bytes() == first


def test_another_budget_is_measured_apart(tmp_path: Path) -> None:
    material, brief = digits(8, FEW.images, 20), replace(FEW, networks=4, epochs=1)
    file = RowsFile(tmp_path / "shadows.jsonl", ShadowRow)
    for budget in (brief, replace(brief, base_maps=4)):
        measure("plain", material, budget, tmp_path / "networks", file, CPU)
    assert [row.budget.base_maps for row in file.read()] == [8] * 4 + [4] * 4
    assert len(list((tmp_path / "networks").iterdir())) == 8


def test_an_image_is_in_a_network_whatever_the_others_are_trained_on() -> None:
    inside = halves(10_000, 8)
    # 10,000 coins: four standard deviations are 200.
    assert np.abs(inside.sum(axis=1) - 5000).max() < 200
    for number in range(8):
        others = np.delete(inside, number, axis=0).sum(axis=0)
        members, rest = others[inside[number]], others[~inside[number]]
        # Means of about 5,000 sums of seven coins each, whose deviation is sqrt(7) / 2: four of sqrt(2 / 5,000) of it.
        assert abs(members.mean() - rest.mean()) < 4 * np.sqrt(7) / 2 * np.sqrt(2 / 4800)
    # More networks leave those that are there as they are.
    assert np.array_equal(halves(10_000, 4), inside[:4])


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(["only-one"])
    with pytest.raises(UsageError, match="'folded' is not known"):
        main(["data", str(tmp_path), "folded"])


def test_what_is_measured_and_at_which_budget_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ShadowBudget]] = []
    monkeypatch.setattr("scenarios.studies.shadows.read_images", lambda *_: None)
    monkeypatch.setattr(
        "scenarios.studies.shadows.measure", lambda kind, _material, budget, *_: asked.append((kind, budget))
    )
    for names in ([], ["plain"], ["small", "plain"], ["small"]):
        assert main(["data", str(tmp_path / "out"), *names]) == 0
    full = ShadowBudget()
    kinds = ["plain", "sorted-fold"]
    assert asked == [
        *((kind, full) for kind in kinds),
        ("plain", full),
        *((kind, SMALL_BUDGET) for kind in ["plain", *kinds]),
    ]
