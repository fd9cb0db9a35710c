from __future__ import annotations

import numpy as np
import pytest
import torch

from scenarios.bench import cipher
from scenarios.bench.measurement import BenchSettings


def test_the_section_measures_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cipher, "_SHAPES", {"8x8": (8, 40)})
    rows = list(cipher.measure(BenchSettings(quick=True, device=torch.device("cpu"))))
    assert len(rows) == 2 * 4 + 3
    assert len({(row.name, row.against) for row in rows}) == len(rows)
    assert all(row.value > 0 for row in rows)


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_usual_way_is_the_same_kind_of_cipher(shuffle: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    folded = np.minimum(pixels, 255 - pixels)
    encrypted = cipher.usual_way(pixels, shuffle=shuffle)
    again = np.minimum(encrypted, 255 - encrypted)
    assert not np.array_equal(encrypted, pixels)
    assert np.array_equal(np.sort(again, axis=-1), np.sort(folded, axis=-1))
    assert np.array_equal(again, folded) is not shuffle
