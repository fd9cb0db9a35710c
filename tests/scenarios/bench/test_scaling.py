from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ppfed.images.source import Split
from ppfed.store import ShardStore
from scenarios.bench import scaling
from scenarios.bench.measurement import BenchSettings


def test_exponents_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Twice as many images take four times as long; an image's time is in proportion to its pixels.
    monkeypatch.setattr(
        scaling, "_median", lambda count, side: 1e-6 * count**2 if side == 32 and count in (10, 20, 40) else 1e-9
    )
    monkeypatch.setattr(scaling, "_QUICK_COUNTS", (10, 20, 40))
    by_images, by_pixels = scaling.measure(BenchSettings(quick=True, device=torch.device("cpu")))
    assert by_images.value == pytest.approx(2.0)
    assert by_images.missed
    assert by_images.broken
    # All sizes have as many pixels in all.
    assert by_pixels.value == pytest.approx(1.0, abs=0.01)
    assert not by_pixels.missed


def test_it_prepares_for_real(tmp_path: Path) -> None:
    store = ShardStore(tmp_path)
    scaling._prepare(50, 8, store)
    (shard,) = store.shards(Split.TRAIN)
    assert len(shard) == 50
    # Black images under fresh masks are noise of two values.
    assert set(np.unique(shard.images.pixels)) == {0, 255}
    assert scaling._median(50, 8) > 0
