from __future__ import annotations

import sys

import pytest
import torch

from scenarios.bench import augmentation
from scenarios.bench.measurement import Turns
from scenarios.bench.torchvision_import import import_torchvision


def test_both_ways_are_timed_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "_BATCHES", (8, 32))
    monkeypatch.setattr(augmentation, "_IMAGES", 32)
    threads = torch.get_num_threads()
    rows = list(augmentation.measure("training", 0.0))
    assert [row.name.rpartition(" ")[2] for row in rows] == ["8", "32"]
    assert all(row.value > 0 and not row.unmeasured for row in rows)
    assert rows[0].details["ours_images_per_s"] == pytest.approx(32 / float(rows[0].details["ours_s"]))
    assert torch.get_num_threads() == threads
    with augmentation.one_thread():
        assert torch.get_num_threads() == 1


def test_a_turn_of_ours_counts_for_one_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "_REPEATS", 4)
    monkeypatch.setattr(augmentation, "in_turn", lambda *_calls, budget_s: Turns(ours=(2.0,), theirs=(5.0,)))
    row = next(augmentation.measure("training", 0.0))
    assert row.value == pytest.approx(10.0)
    assert row.details["ours_s"] == pytest.approx(0.5)


def test_both_ways_move_pictures_alike() -> None:
    import_torchvision()
    # One bright pixel: where it went tells shift and flip. By 4 at most from (8, 5), or mirrored from (8, 10).
    images = torch.zeros(256, 16, 16, 3, dtype=torch.uint8)
    images[:, 8, 5] = 200
    places = {(y, x) for y in range(4, 13) for x in (*range(1, 10), *range(6, 15))}
    ours = torch.cat(list(augmentation.batched(images, 64)))
    theirs = torch.cat(list(augmentation.usual_way(images.permute(0, 3, 1, 2), 64))).permute(0, 2, 3, 1)
    for moved in (ours, theirs):
        assert moved.dtype == torch.uint8
        assert moved.shape == images.shape
        found = moved.eq(200).all(-1).nonzero()
        assert len(found) == 256
        seen = {(int(y), int(x)) for _, y, x in found}
        assert seen <= places
        # 256 draws of 126 places: half of them remain unseen with a chance below 1e-9.
        assert len(seen) > 63


def test_without_torchvision_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    rows = list(augmentation.measure("training", 0.0))
    assert [row.unmeasured for row in rows] == ["torchvision is not installed"] * 2
    assert not any(row.broken for row in rows)
