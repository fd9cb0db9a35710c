"""How much of the machine this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Count the processor cores that this process may use: a container or a batch system may give it fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
