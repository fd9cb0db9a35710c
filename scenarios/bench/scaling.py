"""How an owner's preparation grows with the number of its images and with their size: encrypting, hashing, storing."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ppfed.ciphers.negative_positive import NegativePositiveCipher
from ppfed.ciphers.spec import CipherSpec
from ppfed.images.source import Split
from ppfed.images.types import PlainImages
from ppfed.keys.master import KEY_BYTES, MasterKey
from ppfed.store import Shard, ShardStore, rows_per_shard
from scenarios.bench.measurement import BenchSettings, Bound, Measurement, exponent, seconds

SECTION = "scaling"
_SIDE = 32
_COUNTS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
_QUICK_COUNTS = (1_000, 4_000, 16_000)
_SIDES = (16, 32, 64, 128, 224)
_PIXELS = 1 << 22
"""In all images of a size together, so that sizes compare."""
_TURNS = 3


def measure(settings: BenchSettings) -> Iterator[Measurement]:
    """Fit exponents: 1 means that twice as much costs twice as much."""
    counts = _QUICK_COUNTS if settings.quick else _COUNTS
    spent = [_median(count, _SIDE) for count in counts]
    yield _fitted(f"images of {_SIDE}x{_SIDE}, {counts[0]:,} to {counts[-1]:,}", "images", counts, spent)
    each = [_median(_PIXELS // side**2, side) / (_PIXELS // side**2) for side in _SIDES]
    pixels = [side**2 for side in _SIDES]
    yield _fitted(f"sides of {_SIDES[0]} to {_SIDES[-1]} pixels, for each image", "pixels", pixels, each)


def _fitted(name: str, against: str, sizes: Sequence[int], spent: Sequence[float]) -> Measurement:
    return Measurement(
        SECTION,
        f"encrypt and store, {name}",
        exponent(sizes, spent),
        "",
        f"exponent of the time in the number of {against}",
        target=Bound(1.1, at_most=True),
        floor=Bound(1.5, at_most=True),
        details={f"seconds at {size:,} {against}": one for size, one in zip(sizes, spent, strict=True)},
    )


def _median(count: int, side: int) -> float:
    def prepare() -> None:
        with tempfile.TemporaryDirectory() as folder:
            _prepare(count, side, ShardStore(Path(folder)))

    prepare()
    return statistics.median(seconds(prepare) for _ in range(_TURNS))


def _prepare(count: int, side: int, store: ShardStore) -> None:
    """Encrypt so many black images shard by shard, as an owner does its own, and store them."""
    cipher = NegativePositiveCipher(MasterKey(os.urandom(KEY_BYTES)), CipherSpec())
    rows = rows_per_shard((side, side, 3))
    plain = PlainImages(np.zeros((min(rows, count), side, side, 3), dtype=np.uint8))
    for index, start in enumerate(range(0, count, rows)):
        images = cipher.encrypt(PlainImages(plain.pixels[: count - start]))
        store.write(Split.TRAIN, index, Shard(images, np.zeros(len(images), dtype=np.int64)))
