"""Processes and what they started, from Linux's ``/proc``; elsewhere a process stands alone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

_PROC = Path("/proc")
_POLL_S = 0.05


def family(root: int) -> list[int]:
    """Return a process and all its descendants that are there now."""
    return _family(root, _children())


def wait_until_gone(processes: Collection[int], timeout_s: float) -> list[int]:
    """Wait until none of the processes is there, and return those that still are."""
    deadline = time.monotonic() + timeout_s
    while left := [one for one in processes if _is_there(one)]:
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return left


def _is_there(process: int) -> bool:
    try:
        state = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # What has ended and was not asked about writes nothing any more.
    return state != "Z"


def _children() -> dict[int, list[int]]:
    """Children of every process."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; the parent is the second field after it.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children[parent].append(int(stat.parent.name))
    return children


def _family(root: int, children: Mapping[int, list[int]]) -> list[int]:
    return [root, *(one for child in children.get(root, []) for one in _family(child, children))]
