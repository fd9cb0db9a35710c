"""Run the sections of the benchmark, show their rows, and keep them as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ppfed.atomic import write_atomic
from ppfed.errors import PPFedError, UsageError
from scenarios.bench import cipher, encrypt_folder, scaling, training
from scenarios.bench.machine import machine
from scenarios.bench.measurement import BenchSettings, Bound, Measurement, Section
from scenarios.bench.rounds import section as rounds
from scenarios.bench.upload import section as upload

SECTIONS: Mapping[str, Section] = {
    "cipher": cipher.measure,
    "encrypt": encrypt_folder.measure,
    "training": training.measure,
    "upload": upload.measure,
    "rounds": rounds.measure,
    "scaling": scaling.measure,
}
"""By name, in the order in which they run."""


def choose(names: Sequence[str]) -> dict[str, Section]:
    """Look sections up; no names mean all of them.

    Raises
    ------
    UsageError
        If there is no such section.
    """
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        raise UsageError(
            f"the benchmark has no section {', '.join(unknown)}", hint=f"Choose from {', '.join(SECTIONS)}."
        )
    return {name: section for name, section in SECTIONS.items() if not names or name in names}


def measure(sections: Mapping[str, Section], settings: BenchSettings) -> Iterator[Measurement]:
    """Run sections one after another, and yield their rows as they are there."""
    for section in sections.values():
        yield from section(settings)


def table(rows: Sequence[Measurement]) -> Table:
    """Set rows out for a terminal."""
    drawn = Table("section", "what", "measured", "from … to", "against", "target", "")
    for index, row in enumerate(rows):
        drawn.add_row(
            row.section if index == 0 or rows[index - 1].section != row.section else "",
            row.name,
            figure(row),
            "" if row.spread is None else " … ".join(in_words(end, "") for end in row.spread),
            row.against or row.unmeasured,
            "" if row.target is None else str(row.target),
            verdict(row),
        )
    return drawn


def figure(row: Measurement) -> str:
    """Write a row's figure, or that there is none."""
    return "not measured" if row.unmeasured else in_words(row.value, row.unit)


def in_words(value: float, unit: str) -> str:
    """Write a figure with three digits and its unit."""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


def verdict(row: Measurement) -> str:
    """Say how a row stands to its bounds: broken, short of its target, or met; nothing where there is no target."""
    if row.broken:
        return "broken"
    if row.target is None:
        return ""
    return "missed" if row.missed else "met"


def write(path: Path, rows: Sequence[Measurement], settings: BenchSettings) -> None:
    """Write every row with its bounds and details, and what they were measured on, as JSON."""
    report = {
        "quick": settings.quick,
        "machine": machine(settings.device),
        "rows": [_row_to_json(row) for row in rows],
    }
    write_atomic(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check(rows: Sequence[Measurement]) -> None:
    """Compare every row with its floor.

    Raises
    ------
    PPFedError
        Names the rows that are broken. A target that is missed is no error.
    """
    broken = [row for row in rows if row.broken]
    if broken:
        raise PPFedError(
            f"{len(broken)} of {len(rows)} figures are worse than they ever should be: "
            + "; ".join(f"{row.section}: {row.name}: {in_words(row.value, row.unit)}, {row.floor}" for row in broken),
            hint="Run it again on an idle machine. If it stays so, a change has made something slow.",
        )


def _row_to_json(row: Measurement) -> dict[str, Any]:
    plain = asdict(row) | {"target": _bound(row.target), "floor": _bound(row.floor), "verdict": verdict(row)}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in plain.items()}


def _bound(bound: Bound | None) -> str | None:
    return None if bound is None else str(bound)
