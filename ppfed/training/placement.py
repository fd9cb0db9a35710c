"""Where images that are trained on lie: in the memory of the device, or on disk, from where batches stream."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ppfed.images.source import Split
from ppfed.store import ShardStore, read_shard
from ppfed.training.loop import BatchSource, ImageTensors
from ppfed.training.settings import DataPlacement
from ppfed.training.streaming import StoredImages

_MOST = 0.5
"""Part of the free memory that images may take; the rest is for the network, its activations, and others."""


@dataclass(frozen=True)
class PlacedImages:
    """Images where training and measuring read them.

    Attributes
    ----------
    train, held_out : BatchSource
    placement : DataPlacement
        What was chosen: ``resident`` or ``streamed``.
    size_bytes : int
        What all of them take in memory.
    free_bytes : int
        What was free for them on the device.
    """

    train: BatchSource
    held_out: BatchSource
    placement: DataPlacement
    size_bytes: int
    free_bytes: int


def place_images(
    stores: Sequence[ShardStore],
    shape: tuple[int, int, int],
    device: torch.device,
    placement: DataPlacement = DataPlacement.AUTO,
    processes: int = 1,
) -> PlacedImages:
    """Open stored images for training, in the order of stores and shards.

    Parameters
    ----------
    stores : sequence of ShardStore
    shape : (height, width, channels)
        Of every image.
    device : torch.device
    placement : DataPlacement
    processes : int
        How many open the same images at the same time; without a GPU they share this machine's memory.
    """
    paths = {split: [path for store in stores for path in store.paths(split)] for split in Split}
    stored = {split: StoredImages(paths[split], shape, device) for split in Split}
    size_bytes = sum(one.size_bytes for one in stored.values())
    free = free_bytes(device) // (1 if device.type == "cuda" else processes)
    if placement is DataPlacement.AUTO:
        placement = DataPlacement.RESIDENT if size_bytes <= _MOST * free else DataPlacement.STREAMED
    sources: dict[Split, BatchSource] = dict(stored)
    if placement is DataPlacement.RESIDENT:
        for split in Split:
            sources[split] = ImageTensors.from_shards([read_shard(path) for path in paths[split]], shape, device)
    return PlacedImages(sources[Split.TRAIN], sources[Split.HELD_OUT], placement, size_bytes, free)


def free_bytes(device: torch.device) -> int:
    """Measure the memory of a device that nobody uses.

    On a GPU, what the driver says. Elsewhere what the system can hand out without swapping, but no more than the limit
    of a container leaves (control groups, version 2); where the system does not say, all memory of the machine.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_host_bytes(), _container_bytes())


def _host_bytes(root: Path = Path("/")) -> int:
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes(root: Path = Path("/")) -> int:
    """Return what the limits of this process's control group, and of those around it, leave; page cache gives way."""
    left = sys.maxsize
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
        for part in [] if group is None else [Path(group), *Path(group).parents]:
            left = min(left, _left_in(root / "sys/fs/cgroup" / part))
    return left


def _left_in(group: Path) -> int:
    try:
        limit = (group / "memory.max").read_text().strip()
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return sys.maxsize
    return sys.maxsize if limit == "max" else max(0, int(limit) - int(used["anon"]))
