"""Memory of processes and their children, from Linux's ``/proc``."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from scenarios.process_tree import family

_PROC = Path("/proc")
_SAMPLE_S = 0.2
_KIB = 1024
_AROUND = {"coordinator.superlink_process", "clients.supernode_process"}


class PeakMemory:
    """Samples processes and everything they started, until the block ends.

    What counts is the proportional set size: pages that several processes map, such as torch's libraries, count once
    in a sum over them. Mapped files count as far as they are in memory.

    Parameters
    ----------
    roots : callable
        Returns the processes to follow, by role. Asked again for each sample.
    """

    def __init__(self, roots: Callable[[], Mapping[str, int]]) -> None:
        self._roots = roots
        self._samples: list[tuple[float, dict[str, list[tuple[str, int]]]]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        self._thread.join()

    def peaks(self, until: float) -> tuple[dict[str, int], dict[str, int]]:
        """Most bytes up to a moment, in seconds since the epoch: what happens later does not count.

        Returns
        -------
        tuple of dict
            By role, all its processes together at one moment; and of the largest process of each role and program.
        """
        together: dict[str, int] = defaultdict(int)
        alone: dict[str, int] = defaultdict(int)
        for at, sample in self._samples:
            if at > until:
                break
            for role, processes in sample.items():
                together[role] = max(together[role], sum(size for _, size in processes))
                for program, size in processes:
                    alone[f"{role}: {program}"] = max(alone[f"{role}: {program}"], size)
        return dict(together), dict(alone)

    def _run(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            sample = {
                role: [(_program(one), resident_bytes(one)) for one in family(root)]
                for role, root in self._roots().items()
            }
            self._samples.append((time.time(), sample))


def resident_bytes(process: int) -> int:
    """Proportional set size of a process; 0 if it is gone."""
    try:
        lines = (_PROC / str(process) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("Pss:"))


def _program(process: int) -> str:
    """Name of what a Python process runs: ``flower-superlink``."""
    try:
        words = (_PROC / str(process) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    names = (Path(word.decode(errors="replace")).name for word in words[1:] if not word.startswith(b"-"))
    # What Flower's services are started with is not the program.
    return next((name for name in names if name not in _AROUND), "?")
