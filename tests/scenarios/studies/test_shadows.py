"""Membership by shadow networks, on a few handwritten digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppfed.errors import UsageError
from scenarios.material import digits
from scenarios.studies.rows import RowsFile
from scenarios.studies.shadows import ShadowBudget, ShadowRow, halves, main, measure

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
    assert all(row.by_loss.members + row.by_loss.others == FEW.images for row in rows)
    assert all(row.member_accuracy > row.accuracy for row in rows)
    # Of 30 and 30 images chance strays by 0.075, and the mean over six attacked networks by less.
    assert np.mean([row.by_loss.auc for row in rows]) > 0.8
    assert np.mean([row.by_shadows.auc for row in rows]) > 0.75


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    material, brief = digits(8, FEW.images, 20), replace(FEW, networks=4, epochs=1)
    file, folder = RowsFile(tmp_path / "shadows.jsonl", ShadowRow), tmp_path / "networks"
    measure("plain", material, brief, folder, file, CPU)
    rows, first = file.read(), (folder / "plain-0.npz").read_bytes()
    (folder / "plain-1.npz").unlink()
    (tmp_path / "shadows.jsonl").unlink()
    measure("plain", material, brief, folder, file, CPU)
    measure("plain", material, brief, folder, file, CPU)
    assert file.read() == rows
    assert (folder / "plain-0.npz").read_bytes() == first


def test_each_image_is_in_half_of_the_networks() -> None:
    inside = halves(1000, 8)
    assert (inside.sum(axis=0) == 4).all()
    # 1,000 coins: three standard deviations are 47.
    assert np.abs(inside.sum(axis=1) - 500).max() < 60
    assert not np.array_equal(inside[0], inside[1])


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(["only-one"])
    with pytest.raises(UsageError, match="'folded' is not known"):
        main(["data", str(tmp_path), "folded"])
