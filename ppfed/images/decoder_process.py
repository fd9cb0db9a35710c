"""What runs in a process that decodes: paths of image files come in, pixels go out.

It is started by ``ppfed/images/decoders.py`` and knows nothing else: no key, no cipher, none of the caller's modules. A
message is the length of a JSON text (4 bytes, big-endian) and the text:

- to the process: ``[paths, size, channels]``, the last two as in `load_image`;
- from it, first of all: ``READY``;
- then, as answers: for each path ``[height, width, channels, notes]``, or the reason why the file cannot be used, or
  null where it was not read because it, or what came before it, is large. The pixels of all images follow, without
  anything between them.

When its input ends, it ends: also when the process that started it is killed.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from ppfed.images.decode import LARGE_PIXELS, load_group, load_image, quiet_decoders

LENGTH_BYTES = 4
READY = b"ready"
"""Says that it has loaded all that it needs."""
_BUFFER_BYTES = 1 << 20
"""Answers up to this size are written at once."""


def main() -> None:
    """Answer requests from standard input on standard output until the input ends."""
    with (
        quiet_decoders(),
        os.fdopen(os.dup(1), "wb", _BUFFER_BYTES) as answers,
        os.fdopen(os.dup(0), "rb") as requests,
    ):
        # A library that prints something must not end up between the pixels.
        os.dup2(2, 1)
        try:
            # What Pillow loads with the first image otherwise, which somebody would have to wait for.
            Image.preinit()
            answers.write(READY)
            answers.flush()
            serve(requests, answers)
            answers.flush()
        except BrokenPipeError:
            # Whoever asked is gone. At once: closing the file would try to write again.
            os._exit(1)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more.

    Parameters
    ----------
    requests, answers : binary files
    """
    while len(length := requests.read(LENGTH_BYTES)) == LENGTH_BYTES:
        paths, size, channels = json.loads(requests.read(int.from_bytes(length, "big")))
        load = partial(_load, size=size and tuple(size), channels=channels)
        results = load_group(map(Path, paths), load, lambda one: len(one.pixels))
        answers.write(framed([one.head if isinstance(one, _Loaded) else one for one in results]))
        for one in results:
            if isinstance(one, _Loaded):
                answers.write(one.pixels)
        answers.flush()


class _Loaded(NamedTuple):
    """What is answered of an image."""

    head: tuple[int, int, int, tuple[str, ...]]
    pixels: bytes


def _load(path: Path, *, size: tuple[int, int] | None, channels: int | None) -> _Loaded:
    loaded = load_image(path, size=size, channels=channels, most_pixels=LARGE_PIXELS)
    width, height = loaded.image.size
    return _Loaded((height, width, len(loaded.image.getbands()), loaded.notes), loaded.image.tobytes())


def framed(content: object) -> bytes:
    """Encode a message. File names that are not UTF-8 pass through JSON as lone surrogates."""
    text = json.dumps(content).encode("ascii")
    return len(text).to_bytes(LENGTH_BYTES, "big") + text
