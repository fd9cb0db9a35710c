"""What a benchmark measures: a figure beside what it is compared with, and the bounds it should keep.

A machine that is busy with something else slows both sides of a ratio alike, if they take turns. So nearly every figure
here is a ratio, the two sides are timed in turn, and the median over the turns counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from scipy.stats import linregress

_MIN_TURNS = 3


@dataclass(frozen=True)
class Bound:
    """A limit of a figure.

    Attributes
    ----------
    limit : float
        In the unit of the figure.
    at_most : bool
        Whether the figure should stay below it; above it otherwise.
    """

    limit: float
    at_most: bool = False

    def holds(self, value: float) -> bool:
        """Whether a figure keeps the bound; nan keeps none."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


@dataclass(frozen=True)
class Measurement:
    """One row of the benchmark's table.

    Attributes
    ----------
    section : str
        The part of the benchmark: ``cipher``, ``upload``.
    name : str
        What was measured: ``encrypt, image scope, shuffle, 32x32``.
    value : float
        Median over the turns.
    unit : str
        ``x`` for a ratio; ``%``, ``MB/s``, ``images/s``, ``MiB``.
    against : str
        What ``value`` is in proportion to; empty for an absolute figure.
    target : Bound or None
        What we want.
    floor : Bound or None
        What it never breaks unless something is wrong: ``ppfed bench`` fails then. Generous, for it is checked on busy
        machines.
    spread : (float, float) or None
        Smallest and largest over the turns.
    details : mapping of str to number or str
        Absolute figures behind the ratio, with their unit in the name: ``ours_s``, ``ours_gb_per_s``.
    unmeasured : str
        Why there is no figure; empty where there is one.
    """

    section: str
    name: str
    value: float
    unit: str = "x"
    against: str = ""
    target: Bound | None = None
    floor: Bound | None = None
    spread: tuple[float, float] | None = None
    details: dict[str, float | str] = field(default_factory=dict)
    unmeasured: str = ""

    @classmethod
    def left_out(cls, section: str, name: str, reason: str) -> Measurement:
        """Say that a figure cannot be measured here, and why: a row that keeps and breaks nothing."""
        return cls(section, name, float("nan"), unmeasured=reason)

    @property
    def broken(self) -> bool:
        """Whether the floor does not hold."""
        return self.floor is not None and not self.floor.holds(self.value)

    @property
    def missed(self) -> bool:
        """Whether the target does not hold."""
        return self.target is not None and not self.target.holds(self.value)


@dataclass(frozen=True)
class BenchSettings:
    """What a benchmark may spend, and where it runs.

    Attributes
    ----------
    quick : bool
        Whether a section should end within half a minute on two cores: smaller data and fewer turns, the same code.
    device : torch.device
        Where training is measured.
    """

    quick: bool
    device: torch.device


class Section(Protocol):
    """A part of the benchmark."""

    def __call__(self, settings: BenchSettings) -> Iterator[Measurement]:
        """Measure, and yield rows as they are there."""


@dataclass(frozen=True)
class Turns:
    """Seconds of two sides that were timed in turn.

    Attributes
    ----------
    ours, theirs : tuple of float
        Equally many; those with the same index belong together.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def speeds(self) -> list[float]:
        """How many times as fast as they we are, turn by turn: above 1 we are faster."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def speed(self) -> float:
        """Median of ``speeds``."""
        return statistics.median(self.speeds)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest of ``speeds``."""
        return min(self.speeds), max(self.speeds)

    @property
    def overheads(self) -> list[float]:
        """What we take longer than they, in percent, turn by turn."""
        return [100 * (ours / theirs - 1) for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def details(self) -> dict[str, float | str]:
        """Median seconds of both sides."""
        return {"ours_s": statistics.median(self.ours), "theirs_s": statistics.median(self.theirs)}


def in_turn(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    budget_s: float,
    device: torch.device | None = None,
    tidy: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Time two callables in turn, after one call of each that does not count.

    Parameters
    ----------
    ours, theirs : callable
        One call of each should take a few milliseconds at least.
    budget_s : float
        No turn begins after so many seconds, but for the first three.
    device : torch.device or None
        Waits for its queue before the clock is read.
    tidy : callable or None
        Called after each of them, while no clock runs.
    clock : callable
        In seconds: time that passes, or ``time.process_time``, which stands still while others have the processor.
    """
    mine: list[float] = []
    others: list[float] = []

    def timed(call: Callable[[], object]) -> float:
        spent = seconds(call, device, clock)
        if tidy is not None:
            tidy()
        return spent

    timed(ours)
    timed(theirs)
    started = time.perf_counter()
    while len(mine) < _MIN_TURNS or time.perf_counter() - started < budget_s:
        mine.append(timed(ours))
        others.append(timed(theirs))
    return Turns(tuple(mine), tuple(others))


def seconds(
    call: Callable[[], object], device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time one call; on a GPU, until its work is done."""
    _wait(device)
    started = clock()
    call()
    _wait(device)
    return clock() - started


def exponent(sizes: Sequence[float], spent: Sequence[float]) -> float:
    """Fit ``spent`` to a power of ``sizes``: 1 means that twice as much costs twice as much."""
    return float(linregress(np.log(sizes), np.log(spent)).slope)


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
