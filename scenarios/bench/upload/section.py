"""Pooled upload: MB/s against Flower alone and against a plain TLS socket, and the memory it takes."""

from __future__ import annotations

import datetime
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from coordinator.pki import ensure_certificates
from scenarios.bench.measurement import BenchSettings, Bound, Measurement, Turns
from scenarios.bench.upload.bare_flower import transfer
from scenarios.bench.upload.plain_tls import plain_tls_s
from scenarios.bench.upload.product import Uploaded, shards_of, upload

SECTION = "upload"
_MIB = 1 << 20
_QUICK_BYTES = 128 * _MIB
_FULL_BYTES = 512 * _MIB
_MEMORY_BYTES = 2048 * _MIB
_BARE_BYTES = 128 * _MIB
"""Of a message of Flower alone: the fastest of 64, 128 and 256 MiB here (docs/performance.md)."""

_TURNS = 2
_FOUR = 4


def measure(settings: BenchSettings) -> Iterator[Measurement]:
    """Upload synthetic encrypted images between real processes, in turn with Flower alone."""
    if settings.quick:
        yield from _rates(owners=1, size_bytes=_QUICK_BYTES, turns=1, floor=Bound(0.25))
        return
    yield from _rates(owners=1, size_bytes=_FULL_BYTES, turns=_TURNS, floor=Bound(0.4))
    yield from _rates(owners=_FOUR, size_bytes=_FULL_BYTES, turns=1, floor=Bound(0.4))
    with tempfile.TemporaryDirectory() as folder:
        yield from memory_rows(upload(Path(folder), 1, shards_of(_MEMORY_BYTES, 1)))


def _rates(owners: int, size_bytes: int, turns: int, floor: Bound) -> Iterator[Measurement]:
    ours: list[Uploaded] = []
    bare_mb_per_s: list[float] = []
    tls_mb_per_s: list[float] = []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "ours").mkdir()
            ours.append(upload(folder / "ours", owners, shards_of(size_bytes, owners)))
            messages = max(1, round(size_bytes / _BARE_BYTES / owners))
            alone = transfer(folder / "bare", owners, messages, _BARE_BYTES)
            bare_mb_per_s.append(alone.size_bytes / alone.seconds / 1e6)
            (folder / "pki").mkdir()
            certificates = ensure_certificates(folder / "pki", "localhost", datetime.datetime.now(datetime.UTC))
            tls_mb_per_s.append(size_bytes / plain_tls_s(size_bytes, certificates) / 1e6)
    rates = [one.size_bytes / one.seconds / 1e6 for one in ours]
    # Seconds for a megabyte, so that transfers of slightly different sizes compare.
    against_bare = Turns(tuple(1 / rate for rate in rates), tuple(1 / rate for rate in bare_mb_per_s))
    against_tls = Turns(against_bare.ours, tuple(1 / rate for rate in tls_mb_per_s))
    what = f"{owners} owner{'s' if owners > 1 else ''}, {size_bytes / _MIB:.0f} MiB"
    details: dict[str, float | str] = {
        "ours_mb_per_s": statistics.median(rates),
        "bare_flower_mb_per_s": statistics.median(bare_mb_per_s),
        "plain_tls_mb_per_s": statistics.median(tls_mb_per_s),
    }
    yield Measurement(
        SECTION,
        what,
        against_bare.speed,
        against="Flower alone",
        target=Bound(0.9),
        floor=floor,
        spread=against_bare.spread,
        details=details,
    )
    yield Measurement(SECTION, what, against_tls.speed, against="a plain TLS socket", spread=against_tls.spread)
    if turns == 1 and owners == 1:
        yield from memory_rows(ours[0])


def memory_rows(seen: Uploaded) -> Iterator[Measurement]:
    """Turn an upload's memory and its database into rows, in MiB."""
    what = f"{seen.size_bytes / _MIB:.0f} MiB"
    for role in ("coordinator", "owner"):
        sizes = [size for name, size in seen.peak_bytes.items() if name.startswith(role)]
        parts = {
            f"{name.replace(': ', ' ')} mib": size / _MIB
            for name, size in seen.process_bytes.items()
            if name.startswith(role)
        }
        yield Measurement(
            SECTION,
            f"memory of the {role}, {what}",
            max(sizes) / _MIB,
            "MiB",
            target=Bound(1024, at_most=True),
            floor=Bound(2048, at_most=True),
            details=dict(parts),
        )
    yield Measurement(
        SECTION,
        f"the SuperLink's database, {what}",
        seen.database_bytes / _MIB,
        "MiB",
        floor=Bound(1024, at_most=True),
    )
