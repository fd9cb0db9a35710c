from __future__ import annotations

import numpy as np
import pytest
import torch

from ppfed.store import PixelFile
from scenarios.bench import roofline, training
from scenarios.bench.measurement import BenchSettings


def test_the_section_measures_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_sizes", lambda _settings: (training._Size(4, 8, 2),))
    monkeypatch.setattr(roofline, "_MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(roofline, "_TRIAD_BYTES", 3 << 16)
    monkeypatch.setattr(training, "_SIDE", 16)
    reads: list[int] = []
    original = PixelFile.read

    def read(file: PixelFile, rows: np.ndarray, *rest: np.ndarray) -> None:
        reads.append(len(rows))
        original(file, rows, *rest)

    monkeypatch.setattr(PixelFile, "read", read)
    rows = {row.name.partition(",")[0]: row for row in training.measure(BenchSettings(True, torch.device("cpu")))}
    assert list(rows) == [
        "augmentation on one thread",
        "our loop",
        "images streamed from disk",
        "batches from disk without a step",
        "augmentation",
        "encrypted",
        "matrix rate",
        "roof of a step",
        "roof operation by operation",
        "loss",
        "convolutions",
        "ReLU and shortcuts",
        "batch norm",
        "matrix products",
        "optimizer",
    ]
    assert rows["our loop"].details["ours_images_per_s"] > 0
    assert rows["augmentation"].value > 0
    # 16 images in a turn with steps, 64 times as many without: one turn each that does not count, and three at least.
    assert sum(reads) % 16 == 0
    assert sum(reads) >= 4 * 16 * (1 + 64)
    # By hand: a product and a sum for each weight at each position, forward and twice backward. In parts of the first
    # stage with its four 3x3 convolutions at 16x16 positions: 2 for the stem, which sees 32 maps; 8/9 for each further
    # stage, whose first convolution sees half the maps, with 1/72 for its shortcut; 0.49 for the adaptation network, of
    # which nobody asks for the gradient of the image.
    first_stage = 3 * 2 * 16 * 16 * 4 * (3 * 3 * 4 * 4) / 1e9
    by_hand = (1 + 2 + 3 * (7 / 8 + 1 / 72) + 0.49) * first_stage
    assert rows["matrix rate"].details["step_gflop_per_image"] == pytest.approx(by_hand, rel=0.01)
    assert rows["roof of a step"].details["gflop_per_image"] == pytest.approx(by_hand, rel=0.01)


def test_a_bare_step_trains_through_what_was_compiled() -> None:
    size = training._Size(2, 4, 1)
    step = training._Step(size, torch.device("cpu"), 0.1)
    network, batch = step._network(), step._batch()
    before = network.resnet.fc.weight.detach().clone()
    compiled = torch.compile(network, backend="eager")
    training._bare_step(network, torch.device("cpu"), compiled)(batch.images, batch.labels)
    assert not torch.equal(network.resnet.fc.weight, before)


def test_bfloat16_is_compared_with_float32() -> None:
    (row,) = training._Step(training._Size(2, 4, 1), torch.device("cpu"), 0.1).bfloat16()
    assert row.name.startswith("bfloat16")
    assert row.spread is not None
    assert row.spread[0] <= row.value <= row.spread[1]
