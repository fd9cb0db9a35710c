"""Image sizes as a user writes them."""

from __future__ import annotations

import re

from ppfed.errors import UsageError

_SIZE = re.compile(r"(\d+)(?:\s*[xX\N{MULTIPLICATION SIGN}]\s*(\d+))?", re.ASCII)
_MAX_SIDE = 16_384


def parse_size(text: str) -> tuple[int, int]:
    """Read ``32`` as 32x32 and ``24x32`` as height 24, width 32.

    Raises
    ------
    UsageError
        If it is neither, or a side is not from 1 to 16384.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is not None:
        height = int(match[1])
        width = int(match[2] or match[1])
        if 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE:
            return height, width
    raise UsageError(
        f"{text!r} is not an image size.", hint=f"Give one side, 32, or height x width, 24x32; up to {_MAX_SIDE}."
    )
