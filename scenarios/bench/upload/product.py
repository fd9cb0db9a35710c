"""A pooled upload as ppfed does it: coordinator and owners are processes of their own, on the loopback interface."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ppfed.errors import ServiceError
from ppfed.services import free_port
from ppfed.store import SHARD_BYTES, rows_per_shard
from scenarios.bench.upload.memory import PeakMemory
from scenarios.bench.upload.owner import FINGERPRINT

_SIDE = 32
_WAIT_S = 600.0
_POLL_S = 0.2
_COORDINATOR = "coordinator"


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
    state = folder / _COORDINATOR
    children: dict[str, subprocess.Popen[bytes]] = {}
    log = folder / "coordinator.log"
    try:
        children[_COORDINATOR] = _start(
            log,
            *(_ppfed(), "coordinator", "start", "--state", str(state), "--name", "upload", "--exchange", "images"),
            *("--owners", str(owners), "--quorum", str(owners), "--classes", "10", "--size", str(_SIDE)),
            *("--fingerprint", FINGERPRINT, "--rounds", "1", "--base-maps", "1", "--device", "cpu"),
            *("--address", f"localhost:{free_port()}"),
        )
        _wait(lambda: "is open at" in log.read_text(errors="replace"), children, folder)
        for number in range(owners):
            name = f"owner-{number}"
            invite = folder / f"{name}.invite"
            _run(_ppfed(), "coordinator", "invite", name, "--state", str(state), "--out", str(invite))
            children[name] = _start(
                folder / f"{name}.log",
                *(sys.executable, "-m", "scenarios.bench.upload.owner"),
                *(str(invite), str(folder / name), str(shards), str(number)),
            )
        database_bytes = 0

        def uploaded() -> bool:
            nonlocal database_bytes
            files = state.glob("flower/superlink.sqlite*")
            database_bytes = max(database_bytes, sum(_size(path) for path in files))
            return "intake ended" in _events(state)

        with PeakMemory(lambda: {role: child.pid for role, child in children.items()}) as memory:
            _wait(uploaded, children, folder)
        events = _events(state)
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait(30)
    began, ended = events["intake began"], events["intake ended"]
    size_bytes = owners * shards * rows_per_shard((_SIDE, _SIDE, 3)) * _SIDE * _SIDE * 3
    return Uploaded(ended - began, size_bytes, *memory.peaks(ended), database_bytes)


def shards_of(size_bytes: int, owners: int) -> int:
    """How many full shards each owner needs for so many bytes in all."""
    return max(1, round(size_bytes / SHARD_BYTES / owners))


def _ppfed() -> str:
    return str(Path(sys.executable).parent / "ppfed")


def _environment() -> dict[str, str]:
    # All processes share this machine's cores: more threads each would only wait for one another.
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _start(log: Path, *command: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def _run(*command: str) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=_WAIT_S)
    if done.returncode != 0:
        raise ServiceError(f"'{' '.join(command[:3])}' failed:\n{done.stderr.strip()}")


def _wait(ready: Callable[[], bool], children: dict[str, subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not ready():
        ended = [name for name, child in children.items() if child.poll() is not None]
        if ended or time.monotonic() > deadline:
            name = ended[0] if ended else _COORDINATOR
            text = (folder / f"{name}.log").read_text(errors="replace")
            raise ServiceError(f"the upload came to nothing; {name} said:\n{text.strip()}")
        time.sleep(_POLL_S)


def _events(state: Path) -> dict[str, float]:
    """When each kind of event last stood in the coordinator's audit trail, in seconds since the epoch."""
    path = state / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["event"]: datetime.datetime.fromisoformat(line["at"]).timestamp() for line in lines}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
