"""Which images lie in memory, and how much of it there is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ppfed.errors import UsageError
from ppfed.images.source import Split
from ppfed.store import Shard, ShardStore
from ppfed.training import placement as data_placement
from ppfed.training.loop import ImageTensors
from ppfed.training.placement import _container_bytes, _host_bytes, free_bytes, place_images
from ppfed.training.settings import DataPlacement
from ppfed.training.streaming import StoredImages

CPU = torch.device("cpu")
SHAPE = (8, 8, 3)
SIZE = 30 * (8 * 8 * 3 + 8)
"""Of 30 images with their labels."""


@pytest.fixture
def stores(tmp_path: Path, make_shard: Callable[..., Shard]) -> list[ShardStore]:
    """Of two owners: 12 and 9 images to train on, 9 held out."""
    anna, bert = ShardStore(tmp_path / "anna"), ShardStore(tmp_path / "bert")
    anna.write(Split.TRAIN, 0, make_shard(12, 1))
    bert.write(Split.TRAIN, 0, make_shard(9, 2))
    bert.write(Split.HELD_OUT, 0, make_shard(9, 3))
    return [anna, bert]


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(("free", "chosen"), [(2 * SIZE, "resident"), (2 * SIZE - 1, "streamed"), (0, "streamed")])
def test_half_of_the_free_memory_is_the_limit(
    stores: list[ShardStore], monkeypatch: pytest.MonkeyPatch, free: int, chosen: str, processes: int
) -> None:
    # Processes without a GPU share the memory.
    monkeypatch.setattr(data_placement, "free_bytes", lambda _device: free * processes)
    placed = place_images(stores, SHAPE, CPU, processes=processes)
    assert (placed.placement, placed.size_bytes, placed.free_bytes) == (chosen, SIZE, free)


@pytest.mark.parametrize(("asked", "kind"), [("resident", ImageTensors), ("streamed", StoredImages)])
@pytest.mark.parametrize("free", [0, 2**40])
def test_what_is_asked_for_is_done(
    stores: list[ShardStore], monkeypatch: pytest.MonkeyPatch, asked: str, kind: type, free: int
) -> None:
    monkeypatch.setattr(data_placement, "free_bytes", lambda _device: free)
    placed = place_images(stores, SHAPE, CPU, DataPlacement(asked))
    assert placed.placement == asked
    assert isinstance(placed.train, kind)
    assert isinstance(placed.held_out, kind)
    assert (len(placed.train), len(placed.held_out)) == (21, 9)
    for split, source in ((Split.TRAIN, placed.train), (Split.HELD_OUT, placed.held_out)):
        shards = [shard for store in stores for shard in store.shards(split)]
        expected = torch.cat([torch.from_numpy(shard.images.pixels.copy()) for shard in shards])
        ((images, labels),) = source.batches([torch.arange(len(source))])
        assert torch.equal(images, expected)
        assert labels.tolist() == [label for shard in shards for label in shard.labels.tolist()]


def test_a_placement_is_read_by_name() -> None:
    assert DataPlacement.named("streamed") is DataPlacement.STREAMED
    with pytest.raises(UsageError, match="no data placement 'cloud'") as caught:
        DataPlacement.named("cloud")
    assert "auto, resident, streamed" in caught.value.hint


def test_free_memory_is_no_more_than_there_is() -> None:
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_bytes(CPU) <= there


def test_free_memory_is_that_of_the_system_within_the_limit_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_placement, "_host_bytes", lambda: 500)
    for left, free in ((100, 100), (900, 500)):
        monkeypatch.setattr(data_placement, "_container_bytes", lambda left=left: left)
        assert free_bytes(CPU) == free


def test_the_system_says_what_is_available(tmp_path: Path) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert _host_bytes(tmp_path) == whole
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable:   300 kB\n")
    assert _host_bytes(tmp_path) == 300 * 1024


@pytest.mark.parametrize(
    ("groups", "left"),
    [
        # A container sees its own group as the root.
        ({"": ("1000", 400)}, 600),
        # A service on a machine: the narrowest of its group and those around it.
        ({"a.slice/b.service": ("1000", 400), "a.slice": ("900", 500)}, 400),
        ({"a.slice/b.service": ("max", 400), "a.slice": ("max", 500)}, sys.maxsize),
        ({"a.slice/b.service": ("1000", 1400)}, 0),
        ({}, sys.maxsize),
    ],
)
def test_a_container_may_leave_less(tmp_path: Path, groups: dict[str, tuple[str, int]], left: int) -> None:
    assert _container_bytes(tmp_path) == sys.maxsize
    (tmp_path / "proc/self").mkdir(parents=True)
    own = next(iter(groups), "")
    (tmp_path / "proc/self/cgroup").write_text(f"1:name=systemd:/x\n0::/{own}\n")
    for group, (limit, anonymous) in groups.items():
        folder = tmp_path / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        # What the page cache holds is given back when it is needed.
        (folder / "memory.stat").write_text(f"anon {anonymous}\nfile 123456\n")
    assert _container_bytes(tmp_path) == left
