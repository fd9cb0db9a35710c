"""Do seldom what a training step asks for often."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")


def at_most_every(interval_s: float, action: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Make a callable that runs ``action`` when first called, and then again where so many seconds have gone by.

    Calls in between do nothing, and are not made up for.
    """
    next_s = time.monotonic()

    def now_and_then(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + interval_s
            action(*args, **kwargs)

    return now_and_then
