"""The search of gradients, on a few handwritten digits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from ppfed.attacks.sent import gradient_inversion
from ppfed.errors import UsageError
from ppfed.leakage.sent import GradientSearch
from ppfed.training.settings import BatchNormMode
from scenarios.material import digits
from scenarios.studies.gradient_search import INITIAL, TRAINED, SearchBudget, SearchRow, main, measure
from scenarios.studies.rows import RowsFile

FEW = SearchBudget(
    epochs=30,
    base_maps=4,
    targets=8,
    batches=(1, 2),
    search=GradientSearch(replace(gradient_inversion.QUICK, steps=2), images=3, largest=2),
)


def test_every_setting_is_measured_once(tmp_path: Path) -> None:
    material, file = digits(16, 60, 20), RowsFile(tmp_path / "gradients.jsonl", SearchRow)
    measure(material, replace(FEW, batches=(2,)), file, torch.device("cpu"))
    measure(material, FEW, file, torch.device("cpu"))
    rows = file.read()
    settings = [(row.weights, row.batch_norm, row.batch) for row in rows]
    assert sorted(settings) == sorted(product((INITIAL, TRAINED), BatchNormMode, (1, 2)))
    assert [row.resemblance.images for row in rows] == [3 if row.batch == 1 else 2 for row in rows]
    assert {row.resemblance.candidates for row in rows} == {8}
    accuracies = {row.weights: row.accuracy for row in rows}
    assert accuracies[TRAINED] > accuracies[INITIAL]
    measure(material, FEW, file, torch.device("cpu"))
    assert file.read() == rows


def test_it_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(["only-one"])
