"""Reading what owners send, with chosen weights, on a few handwritten digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppfed.errors import UsageError
from scenarios.chosen_weights import (
    ONE_CLASS,
    RANDOM,
    ReadingBudget,
    main,
    measure_passes,
    measure_steps,
    read_passes,
    read_steps,
)
from scenarios.material import digits

CPU = torch.device("cpu")
FEW = ReadingBudget(base_maps=26, targets=40, batches=(8,), passes=((40, 40, 9),), part=0.5)


def test_every_setting_is_measured_once(tmp_path: Path) -> None:
    material, steps, passes = digits(16, 60, 150), tmp_path / "steps.jsonl", tmp_path / "passes.jsonl"
    for _ in range(2):
        measure_steps(material, FEW, steps, CPU)
        measure_passes(material, FEW, passes, CPU)
    rows = read_steps(steps)
    assert {(row.cipher, row.labels) for row in rows} == {
        (cipher, labels) for cipher in ("plain", "np-v1") for labels in (RANDOM, ONE_CLASS)
    }
    assert len(rows) == 2 + 2 * 3
    assert all(row.resemblance.ssim.mean > 0.9 for row in rows if row.cipher == "plain")
    (row,) = read_passes(passes)
    assert 0 < row.close[0] <= row.close[1] <= row.images


def test_it_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(["only-one"])
