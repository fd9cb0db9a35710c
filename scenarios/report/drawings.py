"""What the HTML page draws: accuracies with their intervals, and training curves by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.ticker import MaxNLocator

from scenarios.declaration import Arm, Mode
from scenarios.report import speed
from scenarios.report.curves import DASHES, SERIES, Axis, Line, line_of, panel
from scenarios.report.outcome import Outcome
from scenarios.report.wording import percent
from scenarios.results import CurveRow

_ACCURACY_TITLE = "accuracy on held-out images, %"
_TICKS = 5
_LOSS_SHOWN = 2.0
"""Losses are shown up to so many times that of guessing: above it training diverged."""


@dataclass(frozen=True)
class Bar:
    """One arm on the scale of all accuracies. Positions are in percent of the scale's length.

    Attributes
    ----------
    name, text : str
    low, high, mean : float
        The ends of the interval, and the mean.
    published : float or None
        None too where it lies off the scale.
    is_plain : bool
    """

    name: str
    text: str
    low: float
    high: float
    mean: float
    published: float | None
    is_plain: bool


@dataclass(frozen=True)
class Bars:
    """All arms, the most accurate first.

    Attributes
    ----------
    ticks : tuple of (float, str)
        Position and label.
    bars : tuple of Bar
    """

    ticks: tuple[tuple[float, str], ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Panels:
    """The curves of a few arms.

    Attributes
    ----------
    title : str
    legend : tuple of (str, str)
        Name and dashes of each line; the place is the colour's number.
    control : str
        The name of the arm that is drawn dotted for comparison; empty for none.
    drawings : tuple of str
        SVG.
    """

    title: str
    legend: tuple[tuple[str, str], ...]
    control: str
    drawings: tuple[str, ...]


def bars(outcome: Outcome) -> Bars | None:
    """Lay out all accuracies; None if there are none."""
    if not outcome.finished:
        return None
    ends = [end for found in outcome.accuracies.values() for end in found.interval]
    ends += [arm.published.accuracy / 100 for arm in outcome.finished if arm.published is not None]
    candidates = MaxNLocator(_TICKS).tick_values(100 * min(ends), 100 * max(ends))
    ticks = [float(tick) for tick in candidates if 0 <= tick <= 100]
    low, high = min(*ticks, 100 * min(ends)), max(*ticks, 100 * max(ends))

    def place(part: float) -> float:
        return round((100 * part - low) / (high - low) * 100, 2)

    rows = []
    for arm in outcome.ranked:
        found = outcome.accuracies[arm.name]
        published = None if arm.published is None else arm.published.accuracy / 100
        text = f"{percent(found.mean)} %"
        lower, upper = found.interval
        rows.append(
            Bar(
                arm.name,
                text if published is None else f"{text}, published {percent(published)} %",
                place(lower),
                place(upper),
                place(found.mean),
                None if published is None else place(published),
                arm.is_plain,
            )
        )
    return Bars(tuple((place(tick / 100), f"{tick:g}") for tick in ticks), tuple(rows))


def panels(outcome: Outcome) -> list[Panels]:
    """Draw accuracy and training loss of each group of arms."""
    arms = _arms_with_curves(outcome)
    if not arms:
        return []
    accuracy = {arm.name: line_of(outcome.results[arm.name], _accuracy) for arm in arms}
    loss = {arm.name: line_of(outcome.results[arm.name], lambda row: row.train_loss) for arm in arms}
    guessing = math.log(max(len(outcome.record.classes), 2))
    axes = (
        _axis(_ACCURACY_TITLE, list(accuracy.values()), 100.0),
        _axis("training loss (cross-entropy)", list(loss.values()), _LOSS_SHOWN * guessing),
    )
    return _by_group(outcome, arms, "panel", axes, (accuracy, loss))


def speed_panels(outcome: Outcome) -> list[Panels]:
    """Draw accuracy over time, and over computation, where arms differ in their passes."""
    arms = _arms_with_curves(outcome)
    if not arms or not speed.is_compared(outcome):
        return []
    lines = [
        {arm.name: line_of(outcome.results[arm.name], _accuracy, partial(place, arm, outcome.budget)) for arm in arms}
        for place in (speed.seconds_until, speed.computation_until)
    ]
    axes = [
        _axis(_ACCURACY_TITLE, list(found.values()), 100.0, along, 0.0)
        for found, along in zip(
            lines, ("seconds, measuring included", "computation, in passes over whole images"), strict=True
        )
    ]
    return _by_group(outcome, arms, "speed", axes, lines)


def _arms_with_curves(outcome: Outcome) -> list[Arm]:
    return [arm for arm in outcome.finished if any(result.curve for result in outcome.results[arm.name])]


def _by_group(
    outcome: Outcome, arms: Sequence[Arm], name: str, axes: Sequence[Axis], lines_of: Sequence[dict[str, Line]]
) -> list[Panels]:
    """Draw a panel on each axis for every group, with the arms' lines on that axis."""
    drawn: list[Panels] = []
    for group in dict.fromkeys(arm.group for arm in arms):
        members = [arm for arm in arms if arm.group == group]
        chunks = [members[start : start + SERIES] for start in range(0, len(members), SERIES)]
        for number, chunk in enumerate(chunks, 1):
            part = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
            control = _shared_control(outcome, chunk)
            drawn.append(
                Panels(
                    (group or "All arms") + part,
                    tuple((_legend(arm), dashes) for arm, dashes in zip(chunk, DASHES, strict=False)),
                    "" if control is None else control.name,
                    tuple(
                        panel(
                            f"{name}{len(drawn)}{letter}",
                            [lines[arm.name] for arm in chunk],
                            None if control is None else lines.get(control.name),
                            axis,
                            _description(axis, chunk, lines),
                        )
                        for letter, axis, lines in zip("ab", axes, lines_of, strict=True)
                    ),
                )
            )
    return drawn


def _accuracy(row: CurveRow) -> float | None:
    return None if row.accuracy is None else 100 * row.accuracy


def _shared_control(outcome: Outcome, arms: Sequence[Arm]) -> Arm | None:
    """Find the plain arm that most of the arms stand beside, if it is not drawn among them."""
    found = [control for arm in arms if (control := outcome.control(arm)) is not None]
    if not found:
        return None
    common = max(found, key=found.count)
    return None if common in arms else common


def _legend(arm: Arm) -> str:
    return f"{arm.name} (first owner)" if arm.mode is Mode.ALONE else arm.name


def _axis(
    title: str,
    lines: Sequence[Line],
    most: float,
    along: str = "passes over the images",
    first: float = 1.0,
) -> Axis:
    ends = [end for line in lines for end in (*line.low, *line.high)]
    last = max((line.places[-1] for line in lines if line.places), default=first)
    low, high = min([*ends, most]), min(max(ends, default=most), most)
    margin = max(high - low, 0.02 * most) * 0.05
    return Axis(title, along, first, max(last, first + 1), low - margin, high + margin)


def _description(axis: Axis, arms: Sequence[Arm], lines: dict[str, Line]) -> str:
    last = [f"{arm.name}: {lines[arm.name].mean[-1]:.2f}" for arm in arms if lines[arm.name].mean]
    return f"{axis.title} over {axis.along}, up to {axis.last:.0f}; at the end {', '.join(last) or 'no values'}"
