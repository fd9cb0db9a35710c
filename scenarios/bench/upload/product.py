"""A pooled upload as ppfed does it: coordinator and owners are processes of their own, on the loopback interface."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

from coordinator.state import StateFolder
from ppfed.store import SHARD_BYTES, rows_per_shard
from scenarios.bench.processes import federation
from scenarios.bench.upload.memory import PeakMemory

_SHAPE = (32, 32, 3)
_IMAGE_BYTES = 32 * 32 * 3


@dataclass(frozen=True)
class Uploaded:
    """What was seen of an upload.

    Attributes
    ----------
    seconds : float
        From the moment the coordinator asks the first owner until the last shard is on its disk.
    size_bytes : int
        Of pixels.
    peak_bytes : dict of str to int
        Most memory in use at once, by role: ``coordinator``, ``owner-0``; all processes of the role together.
    process_bytes : dict of str to int
        The largest of each program, by role and name: ``coordinator: flower-superlink``.
    database_bytes : int
        Largest that the SuperLink's database became.
    """

    seconds: float
    size_bytes: int
    peak_bytes: dict[str, int]
    process_bytes: dict[str, int]
    database_bytes: int


def upload(folder: Path, owners: int, shards: int) -> Uploaded:
    """Upload so many full shards from each owner, and stop the federation before it trains.

    Raises
    ------
    ServiceError
        If a process fails, or it takes longer than ten minutes.
    """
    options = ("--name", "upload", "--exchange", "images", "--rounds", "1", "--base-maps", "1")
    images = shards * rows_per_shard(_SHAPE)
    with federation(folder, options, owners, images) as running:
        database_bytes = 0

        def uploaded() -> bool:
            nonlocal database_bytes
            files = running.state.folder.glob("flower/superlink.sqlite*")
            database_bytes = max(database_bytes, sum(_size(path) for path in files))
            return "intake ended" in _events(running.state)

        with PeakMemory(lambda: {role: child.pid for role, child in running.processes.children.items()}) as memory:
            running.wait("all images", uploaded)
        events = _events(running.state)
    began, ended = events["intake began"], events["intake ended"]
    return Uploaded(ended - began, owners * images * _IMAGE_BYTES, *memory.peaks(ended), database_bytes)


def shards_of(size_bytes: int, owners: int) -> int:
    """How many full shards each owner needs for so many bytes in all."""
    return max(1, round(size_bytes / SHARD_BYTES / owners))


def _events(state: StateFolder) -> dict[str, float]:
    """When each kind of event last stood in the coordinator's audit trail, in seconds since the epoch."""
    path = state.folder / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["event"]: datetime.datetime.fromisoformat(line["at"]).timestamp() for line in lines}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
