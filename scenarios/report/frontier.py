"""Accuracy against leakage: every arm a point, and those that no other arm beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppfed.leakage.wording import part_words
from scenarios.declaration import Arm
from scenarios.report.cells import Column, Row, Table
from scenarios.report.curves import COLOURS, GRID, INK, svg_of, svg_style
from scenarios.report.leakage import BY_CANDIDATES, RESTORED, Leak, by_candidates, leaks, matched, number
from scenarios.report.outcome import Outcome
from scenarios.report.wording import accuracy, counted, listed, percent, quoted

_WIDTH_IN, _HEIGHT_IN = 5.4, 4.4
_INSIDE = {"left": 0.12, "right": 0.97, "bottom": 0.12, "top": 0.92}
_POINTS_PER_IN = 72
_LABEL_PT = 9
_OTHER, _BEST, _PLAIN = COLOURS[0], COLOURS[1], COLOURS[2]
_PLACES = tuple((x * far, y * far) for far in (9, 15, 22) for x in (1, 0, -1) for y in (1, -1, 0) if (x, y) != (0, 0))
"""Where a point's number may stand, in points from it, the best place first."""


@dataclass(frozen=True)
class Point:
    """An arm.

    Attributes
    ----------
    number : int
        In its figure, from 1.
    arm : Arm
    accuracy : float
        0 to 1.
    low, high : float
        Its 95 % interval.
    leak : Leak
    beaten_by : str
        An arm at least as accurate that leaks no more by SSIM, and better in one; empty if there is none.
    """

    number: int
    arm: Arm
    accuracy: float
    low: float
    high: float
    leak: Leak
    beaten_by: str


@dataclass(frozen=True)
class Frontier:
    """All arms with images of one size that send the same.

    Attributes
    ----------
    title : str
    points : tuple of Point
        The most accurate first.
    drawings : tuple of str
        SVG.
    """

    title: str
    points: tuple[Point, ...]
    drawings: tuple[str, ...]


def frontiers(outcome: Outcome) -> list[Frontier]:
    """Draw a figure for each image size and exchange: numbers of different ones do not compare.

    One arm alone is no figure.
    """
    found: list[Frontier] = []
    for (side, exchange), points in _grouped(outcome).items():
        if len(points) == 1:
            continue
        name = f"frontier{len(found)}"
        drawings = (
            _drawing(f"{name}a", points, "SSIM of the strongest attack without the key", lambda leak: leak.ssim, 1.0),
            _drawing(f"{name}b", points, _right_one(points), lambda leak: 100 * leak.reidentified, 100.0),
        )
        found.append(Frontier(f"{side} x {side} pixels, exchange {exchange}", tuple(points), drawings))
    return found


def tables(outcome: Outcome) -> list[Table]:
    """List the points of each figure."""
    found = []
    for (side, exchange), points in _grouped(outcome).items():
        compared = matched(one.leak for one in points)
        named = (
            Column("Arm"),
            Column("Point", True),
            Column("Accuracy, %", True),
            Column("SSIM", True),
            Column(RESTORED, True),
            *((Column(BY_CANDIDATES, True),) if compared else ()),
            Column("As accurate or more, and leaks no more by SSIM"),
        )
        rows = tuple(
            Row(
                (
                    one.arm.name,
                    str(one.number),
                    accuracy(outcome.accuracies[one.arm.name]),
                    number(one.leak.ssim),
                    f"{part_words(one.leak.reidentified)} of {one.leak.candidates:,}",
                    *((by_candidates(one.leak),) if compared else ()),
                    one.beaten_by or "no arm",
                )
            )
            for one in points
        )
        caption = f"Accuracy against leakage: {side} x {side} pixels, exchange {exchange}"
        found.append(Table(caption, named, rows))
    return found


def sentences(outcome: Outcome) -> list[str]:
    """Name the arms that no other beats in both."""
    found = []
    for (side, exchange), points in _grouped(outcome).items():
        best = [one for one in points if not one.beaten_by]
        if len(points) > 1:
            shown = [
                f"{quoted(one.arm.name)} ({percent(one.accuracy)}\N{NO-BREAK SPACE}%, SSIM {number(one.leak.ssim)})"
                for one in best
            ]
            found.append(
                f"Of {counted(len(points), 'arm')} with measured leakage ({side} x {side} pixels, exchange {exchange}) "
                f"no other is at least as accurate and leaks no more than {listed(shown)}."
            )
    return found


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Choose the points that no other dominates.

    Parameters
    ----------
    points : sequence of (accuracy, leakage)

    Returns
    -------
    list of int
        Their places, by rising leakage.
    """
    best = [place for place, point in enumerate(points) if not any(_dominates(other, point) for other in points)]
    return sorted(best, key=lambda place: (points[place][1], points[place][0]))


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def _grouped(outcome: Outcome) -> dict[tuple[int, str], list[Point]]:
    every = leaks(outcome)
    groups: dict[tuple[int, str], list[Arm]] = {}
    for arm in outcome.ranked:
        if arm.name in every:
            groups.setdefault((arm.size or outcome.budget.size, every[arm.name].exchange), []).append(arm)
    return {key: _points(outcome, arms, every) for key, arms in sorted(groups.items(), key=lambda one: one[0][0])}


def _points(outcome: Outcome, arms: Sequence[Arm], every: dict[str, Leak]) -> list[Point]:
    places = {arm.name: (outcome.accuracies[arm.name].mean, every[arm.name].ssim) for arm in arms}
    points = []
    for position, arm in enumerate(arms, 1):
        beating = (name for name, place in places.items() if _dominates(place, places[arm.name]))
        low, high = outcome.accuracies[arm.name].interval
        mean = outcome.accuracies[arm.name].mean
        points.append(Point(position, arm, mean, low, high, every[arm.name], next(beating, "")))
    return points


def _right_one(points: Sequence[Point]) -> str:
    candidates = {point.leak.candidates for point in points}
    among = f" of {candidates.pop():,}" if len(candidates) == 1 else ""
    return f"right one{among} found by what is restored without the key, %"


def _drawing(name: str, points: Sequence[Point], title: str, leakage: Callable[[Leak], float], most: float) -> str:
    places = [(point.accuracy, leakage(point.leak)) for point in points]
    best = frontier(places)
    with svg_style():
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_POINTS_PER_IN)
        axes = figure.subplots()
        figure.subplots_adjust(**_INSIDE)
        low, high = min(point.low for point in points), max(point.high for point in points)
        margin = max(high - low, 0.02) * 0.06
        axes.set_ylim(100 * max(low - margin, -0.02), 100 * (high + margin))
        axes.set_xlim(min([0.0, *(x for _, x in places)]) - 0.04 * most, 1.04 * most)
        _steps(axes, [places[place] for place in best])
        for place, (point, (mean, x)) in enumerate(zip(points, places, strict=True)):
            colour = _PLAIN if point.arm.is_plain else _BEST if place in best else _OTHER
            axes.plot((x, x), (100 * point.low, 100 * point.high), color=colour, linewidth=1.0, alpha=0.45)
            axes.plot(x, 100 * mean, marker="o", markersize=7 if place in best else 5, color=colour, linestyle="")
        _label(axes, points, [(x, 100 * mean) for mean, x in places])
        axes.set_title("accuracy on held-out images, %", loc="left", fontsize=_LABEL_PT + 2, color=INK)
        axes.set_xlabel(title, color=INK)
        axes.tick_params(colors=INK, length=3)
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        return svg_of(figure, name, _description(title, points, places))


def _steps(axes: Axes, best: Sequence[tuple[float, float]]) -> None:
    """Join the best: with so much leakage, the accuracy of the best point to the left can be had."""
    axes.step([x for _, x in best], [100 * mean for mean, _ in best], where="post", color=_BEST, linewidth=1.4)


def _label(axes: Axes, points: Sequence[Point], places: Sequence[tuple[float, float]]) -> None:
    """Write each point's number beside it, where it hides no point and no other number."""
    dots = [tuple(axes.transData.transform(place)) for place in places]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for point, dot, place in zip(points, dots, places, strict=True):
        text = str(point.number)
        width, height = 0.62 * _LABEL_PT * len(text), 0.9 * _LABEL_PT

        def box(
            shift: tuple[float, float],
            dot: tuple[float, ...] = dot,
            width: float = width,
            height: float = height,
        ) -> tuple[float, float, float, float]:
            x, y = dot[0] + shift[0], dot[1] + shift[1]
            return x - width / 2, y - height / 2, x + width / 2, y + height / 2

        shift = min(_PLACES, key=lambda one: sum(_overlap(box(one), other) for other in taken))
        taken.append(box(shift))
        axes.annotate(
            text, place, shift, textcoords="offset points", ha="center", va="center", fontsize=_LABEL_PT, color=INK
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _description(title: str, points: Sequence[Point], places: Sequence[tuple[float, float]]) -> str:
    shown = [
        f"{point.number} {point.arm.name}: {100 * mean:.1f} % at {x:.3g}"
        for point, (mean, x) in zip(points, places, strict=True)
    ]
    return f"accuracy against {title}; {'; '.join(shown)}"
