"""The search of gradients, on a few handwritten digits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from ppfed.attacks import gradient_inversion
from ppfed.errors import UsageError
from ppfed.leakage.gradients import GradientSearch
from ppfed.training.settings import BatchNormMode
from scenarios.gradient_search import INITIAL, TRAINED, SearchBudget, main, measure, read_rows
from scenarios.material import digits

FEW = SearchBudget(
    epochs=30,
    base_maps=4,
    targets=8,
    batches=(1, 2),
    search=GradientSearch(replace(gradient_inversion.QUICK, steps=2), images=3, largest=2),
)


def test_every_setting_is_measured_once(tmp_path: Path) -> None:
    material, file = digits(16, 60, 20), tmp_path / "gradients.jsonl"
    measure(material, replace(FEW, batches=(2,)), file, torch.device("cpu"))
    measure(material, FEW, file, torch.device("cpu"))
    rows = read_rows(file)
    settings = [(row.weights, row.batch_norm, row.batch) for row in rows]
    assert sorted(settings) == sorted(product((INITIAL, TRAINED), BatchNormMode, (1, 2)))
    assert [row.resemblance.images for row in rows] == [3 if row.batch == 1 else 2 for row in rows]
    assert {row.resemblance.candidates for row in rows} == {8}
    accuracies = {row.weights: row.accuracy for row in rows}
    assert accuracies[TRAINED] > accuracies[INITIAL]
    measure(material, FEW, file, torch.device("cpu"))
    assert read_rows(file) == rows


def test_it_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(["only-one"])
