"""Reading what owners send, with chosen weights, on a few handwritten digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import UsageError
from ppfed.leakage.attackers import AuditPreset
from scenarios.material import digits
from scenarios.studies.chosen_weights import (
    ONE_CLASS,
    RANDOM,
    PassRow,
    ReadingBudget,
    StepBudget,
    StepRow,
    WholePass,
    main,
    measure_passes,
    measure_steps,
)
from scenarios.studies.rows import RowsFile

CPU = torch.device("cpu")
DEFAULT = CipherSpec()
FEW = ReadingBudget(
    steps=(
        StepBudget(26, (8,), (None, DEFAULT), (RANDOM, ONE_CLASS), AuditPreset.QUICK),
        StepBudget(14, (1,), (None,), (RANDOM,), AuditPreset.QUICK),
    ),
    targets=40,
    base_maps=26,
    passes=(WholePass(None, 40, 40, 9), WholePass(DEFAULT, 40, 40, 9)),
    part=0.5,
)


def test_every_setting_is_measured_once(tmp_path: Path) -> None:
    material = digits(16, 60, 150)
    steps, passes = RowsFile(tmp_path / "steps.jsonl", StepRow), RowsFile(tmp_path / "passes.jsonl", PassRow)
    for _ in range(2):
        measure_steps(material, FEW, steps, CPU)
        measure_passes(material, FEW, passes, CPU)
    rows = steps.read()
    wide = [row for row in rows if row.base_maps == 26]
    assert {(row.cipher, row.labels) for row in wide} == {
        (cipher, labels) for cipher in ("plain", str(DEFAULT)) for labels in (RANDOM, ONE_CLASS)
    }
    assert len(wide) == 2 + 2 * 3
    (narrow,) = (row for row in rows if row.base_maps == 14)
    assert (narrow.cipher, narrow.labels, narrow.batch) == ("plain", RANDOM, 1)
    assert all(row.resemblance.ssim.mean > 0.9 for row in rows if row.cipher == "plain")
    plain, encrypted = passes.read()
    assert (plain.cipher, encrypted.cipher) == ("plain", str(DEFAULT))
    assert all(0 < row.close[0] <= row.close[1] <= row.images for row in (plain, encrypted))
    # What is read is what the network is shown, the sorted folds; the solver makes pictures of those.
    assert plain.restored is None
    assert encrypted.restored is not None
    assert encrypted.restored.images == encrypted.close[1]


def test_it_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(["only-one"])
