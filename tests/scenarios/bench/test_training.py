from __future__ import annotations

import pytest
import torch

from scenarios.bench import training
from scenarios.bench.measurement import BenchSettings


def test_the_section_measures_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_sizes", lambda _settings: (training._Size(4, 8, 2),))
    monkeypatch.setattr(training, "_MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(training, "_SIDE", 16)
    rows = {row.name.partition(",")[0]: row for row in training.measure(BenchSettings(True, torch.device("cpu")))}
    assert list(rows) == ["augmentation on one thread", "our loop", "augmentation", "encrypted", "matrix rate"]
    assert rows["our loop"].details["ours_images_per_s"] > 0
    assert rows["augmentation"].value > 0
    # By hand: a product and a sum for each weight at each position, forward and twice backward. In parts of the first
    # stage with its four 3x3 convolutions at 16x16 positions: 2 for the stem, which sees 32 maps; 8/9 for each further
    # stage, whose first convolution sees half the maps, with 1/72 for its shortcut; 0.49 for the adaptation network, of
    # which nobody asks for the gradient of the image.
    first_stage = 3 * 2 * 16 * 16 * 4 * (3 * 3 * 4 * 4) / 1e9
    by_hand = (1 + 2 + 3 * (7 / 8 + 1 / 72) + 0.49) * first_stage
    assert rows["matrix rate"].details["step_gflop_per_image"] == pytest.approx(by_hand, rel=0.01)
