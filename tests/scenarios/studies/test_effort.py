"""More effort is measured once for each training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppfed.attacks.learned import inversion, learned_edges
from ppfed.errors import UsageError
from ppfed.images.types import PlainImages
from ppfed.leakage.images import AuditImages
from ppfed.leakage.record import AttackName
from scenarios.material import digits
from scenarios.studies import effort
from scenarios.studies.effort import COLOUR, GREY, ROWS_FILE, TWICE, Effort, EffortRow, main, measure
from scenarios.studies.rows import RowsFile
from scenarios.studies.targets import targets_of

CPU = torch.device("cpu")
FEW = tuple(
    Effort(cipher, attack, preset)
    for cipher in (GREY, COLOUR, TWICE)
    for attack, preset in (
        (AttackName.LEARNED_EDGES, replace(learned_edges.QUICK, images=20, pattern_steps=2, steps=2)),
        (AttackName.LEARNED_EDGES, replace(learned_edges.QUICK, images=30, pattern_steps=2, steps=4)),
        (AttackName.INVERSION, replace(inversion.QUICK, images=30, steps=2)),
    )
)


def attacked_digits(pictures: int, channels: int) -> AuditImages:
    """Give as few as there are, in grey and in what passes for colour."""
    images = targets_of(digits(16, min(pictures, 60), 40), np.arange(40))
    targets, own = (PlainImages(some.pixels[..., :channels].copy()) for some in (images.targets, images.own))
    return replace(images, targets=targets, own=own)


def test_every_effort_is_measured_once(tmp_path: Path) -> None:
    measured = RowsFile(tmp_path / ROWS_FILE, EffortRow)
    measure(attacked_digits, FEW[:1], measured, CPU)
    for _ in range(2):
        measure(attacked_digits, FEW, measured, CPU)
    rows = measured.read()
    assert len(rows) == len(FEW)
    assert {(row.cipher, row.attack, row.pictures, row.steps) for row in rows} == {
        (one.cipher, one.attack, one.preset.images, one.preset.steps) for one in FEW
    }
    assert all(row.resemblance.candidates == row.resemblance.images == 40 for row in rows)


def test_the_gpu_presets_are_among_what_is_asked_for_with_gpu() -> None:
    presets = [one.preset for one in effort.GPU_EFFORTS]
    assert presets == [learned_edges.GPU, inversion.GPU] * 3


@pytest.mark.parametrize("arguments", [["only-one"], ["data", "out", "cuda"], ["data", "out", "gpu", "gpu"]])
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(arguments)
