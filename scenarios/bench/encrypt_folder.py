"""``ppfed encrypt`` from end to end, beside a bare Pillow loop that decodes, resizes and stores without encrypting."""

from __future__ import annotations

import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec
from ppfed.cores import cores
from ppfed.images.encrypted_folder import encrypt_folder
from ppfed.images.open import open_source
from ppfed.images.types import UInt8Array
from ppfed.keys.master import KEY_BYTES, MasterKey
from scenarios.bench.measurement import BenchSettings, Bound, Measurement, Turns, in_turn

SECTION = "encrypt"
_CLASSES = 4
_DISTINCT = 8
"""Photographs that are made; files repeat them."""
_QUALITY = 90
_MEMORY = Path("/dev/shm")  # noqa: S108 -- a folder with a random name is made in it
_FREE_BYTES = 1 << 29
"""More than the sources and one turn's files take."""


@dataclass(frozen=True)
class _Kind:
    """What a folder holds.

    Attributes
    ----------
    name : str
    count : int
        JPEG files.
    height, width : int
        Of each.
    side : int
        What they are stretched to.
    """

    name: str
    count: int
    height: int
    width: int
    side: int


_KINDS = (_Kind("32x32", 8_000, 32, 32, 32), _Kind("500x375 to 224x224", 400, 375, 500, 224))
"""The second as in ImageNet."""
_QUICK_PART = 8


def measure(settings: BenchSettings) -> Iterator[Measurement]:
    """Measure on one core beside the bare loop, and on two beside one.

    It works in memory where the system has a folder there, so that no disk decides; on a disk, making the files costs
    both sides the same.
    """
    for kind in _KINDS:
        names = [f"{kind.name}, one core", f"{kind.name}, two cores"]
        if not hasattr(os, "sched_setaffinity"):
            yield from (
                Measurement.left_out(SECTION, name, "this system does not let a process choose its cores")
                for name in names
            )
            continue
        small = replace(kind, count=kind.count // (_QUICK_PART if settings.quick else 1))
        in_memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _FREE_BYTES
        with tempfile.TemporaryDirectory(dir=_MEMORY if in_memory else None) as name:
            work = _Work(Path(name), small, 0.5 if settings.quick else 10.0, "memory" if in_memory else "disk")
            yield work.beside_bare_loop(names[0])
            if cores() < 2:
                yield Measurement.left_out(SECTION, names[1], "there is one core")
            else:
                yield work.two_cores(names[1])


class _Work:
    """Measures one kind of folder."""

    def __init__(self, root: Path, kind: _Kind, budget_s: float, where: str) -> None:
        self._kind, self._budget_s, self._where = kind, budget_s, where
        self._source, self._out = root / "source", root / "out"
        make_folder(self._source, kind.count, kind.height, kind.width)
        self._key = MasterKey(os.urandom(KEY_BYTES))

    def beside_bare_loop(self, name: str) -> Measurement:
        """Encrypt on one core, and run the bare loop there; the core's time counts.

        Of a core that is busy with something else, two threads may get more than the bare loop's one.
        """
        bare = partial(bare_loop, self._source, self._out, self._kind.side)
        turns = self._in_turn(partial(on_cores, 1, self._encrypt), partial(on_cores, 1, bare), time.process_time)
        return self._row(name, turns, "Pillow: decode, resize, store uncompressed", Bound(0.7), Bound(0.2))

    def two_cores(self, name: str) -> Measurement:
        """Encrypt on two cores, and on one."""
        turns = self._in_turn(
            partial(on_cores, 2, self._encrypt), partial(on_cores, 1, self._encrypt), time.perf_counter
        )
        # Another program on the second core takes all that there is to win.
        return self._row(name, turns, "itself on one core", Bound(1.8), Bound(0.4))

    def _encrypt(self) -> None:
        """Do what ``ppfed encrypt`` does once it has read its options."""
        side = self._kind.side
        encrypt_folder(open_source(self._source), make_cipher(CipherSpec(), self._key), self._out, size=(side, side))

    def _in_turn(self, ours: Callable[[], object], theirs: Callable[[], object], clock: Callable[[], float]) -> Turns:
        return in_turn(ours, theirs, budget_s=self._budget_s, tidy=partial(shutil.rmtree, self._out), clock=clock)

    def _row(self, name: str, turns: Turns, against: str, target: Bound, floor: Bound) -> Measurement:
        rates: dict[str, float | str] = {
            "ours_images_per_s": self._kind.count / statistics.median(turns.ours),
            "theirs_images_per_s": self._kind.count / statistics.median(turns.theirs),
            "folder": self._where,
        }
        return Measurement(
            SECTION,
            name,
            turns.speed,
            against=against,
            target=target,
            floor=floor,
            spread=turns.spread,
            details=turns.details | rates,
        )


def on_cores(count: int, call: Callable[[], object]) -> None:
    """Call something on the first ``count`` of this thread's cores; threads that it starts stay there."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[:count])
    try:
        call()
    finally:
        os.sched_setaffinity(0, usable)


def bare_loop(source: Path, out: Path, side: int) -> None:
    """Decode, stretch and store images as a short script does: no check, no thread, uncompressed PNG."""
    for folder in sorted(source.iterdir()):
        (out / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir()):
            with Image.open(path) as image:
                stretched = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            stretched.save(out / folder.name / f"{path.stem}.png", compress_level=0)


def make_folder(folder: Path, count: int, height: int, width: int) -> None:
    """Fill class folders with synthetic photographs as JPEG files."""
    encoded = []
    for seed in range(min(_DISTINCT, count)):
        buffer = io.BytesIO()
        Image.fromarray(synthetic_photograph(height, width, seed)).save(buffer, "JPEG", quality=_QUALITY)
        encoded.append(buffer.getvalue())
    for number in range(count):
        path = folder / f"class-{number % _CLASSES}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[number % len(encoded)])


def synthetic_photograph(height: int, width: int, seed: int) -> UInt8Array:
    """Make a picture that is as costly to decode as a photograph: amplitudes fall with frequency, colours go together.

    Returns
    -------
    uint8 array, (H, W, 3)
    """
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no constant part
    grey, *colours = (np.fft.rfft2(generator.standard_normal((height, width))) / frequency for _ in range(4))
    layers = np.stack([np.fft.irfft2(grey + 0.3 * colour, (height, width)) for colour in colours], axis=-1)
    photograph: UInt8Array = np.clip(128 + 50 * layers / layers.std(), 0, 255).astype(np.uint8)
    return photograph
