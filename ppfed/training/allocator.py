"""Keep memory from one training step to the next.

A step on a processor makes and frees hundreds of megabytes. The GNU C library gives large blocks back to the system at
once, most of all in Flower's processes, which are told to (``ppfed/services.py``), and the system clears every page
anew for the next step: a tenth to a half of a step's time (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Of ``mallopt``, from glibc's malloc.h."""
_DEFAULT_MMAP_MAX = 1 << 16
_HIGHEST_THRESHOLD = 32 << 20
"""Where glibc's own threshold ends up in a process that frees larger and larger blocks."""

_lock = threading.Lock()
_users: list[object] = []
"""Who wants it at the moment: the settings are the process's."""


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Have this process keep what it frees; at the end everything that is free goes back to the system.

    Does nothing for other devices, whose memory torch keeps anyway, and for other C libraries.

    Parameters
    ----------
    device : torch.device
        Where the work is done.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    library, user = ctypes.CDLL(None), object()
    with _lock:
        _users.append(user)
        # Nothing is given back from the heap's end, and all blocks lie in the heap, however large.
        library.mallopt(_M_TRIM_THRESHOLD, -1)
        library.mallopt(_M_MMAP_MAX, 0)
    try:
        yield
    finally:
        with _lock:
            _users.remove(user)
            if not _users:
                asked = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
                # A number in another notation, or none, is no reason to end a training.
                threshold = int(asked) if asked.isdecimal() else _HIGHEST_THRESHOLD
                library.mallopt(_M_MMAP_THRESHOLD, threshold)
                library.mallopt(_M_TRIM_THRESHOLD, 2 * threshold)
                library.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
                library.malloc_trim(0)
