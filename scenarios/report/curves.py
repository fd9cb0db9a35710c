"""Training curves as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scenarios.results import CurveRow, Result

SERIES = 6
"""Lines in one panel: as many as there are colours and dashes that a reader can tell apart."""

DASHES = ("", "6 2", "2 2", "8 2 2 2", "4 1", "1 1")
"""``stroke-dasharray`` of each line, for readers who do not see the colours apart, and for print."""

_WIDTH_IN, _HEIGHT_IN = 4.8, 3.3
_POINTS_PER_IN = 72
_FONT_PT = 11
_MOST_POINTS = 100
_DECIMALS = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"#([mp][0-9a-f]{10})\b")
_FONT_FAMILY = re.compile(r"font-family: [^;]*;? ?")
INK, GRID = "#0000fe", "#0000fd"
COLOURS = tuple(f"#0000f{place}" for place in range(SERIES))
"""Colours that stand for those of the page, which differ between light and dark."""

_VARIABLES = {INK: "--ink", GRID: "--grid"} | {colour: f"--series-{place}" for place, colour in enumerate(COLOURS)}


@dataclass(frozen=True)
class Line:
    """One arm over its passes, or over what they took.

    Attributes
    ----------
    places : tuple of float
        Along the horizontal axis.
    mean, low, high : tuple of float
        Over seeds.
    """

    places: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Axis:
    """Limits that all panels share, so that they can be compared.

    Attributes
    ----------
    title, along : str
        What stands upright, and what along the horizontal axis.
    first, last : float
        Along it.
    low, high : float
    """

    title: str
    along: str
    first: float
    last: float
    low: float
    high: float


def line_of(
    results: Sequence[Result],
    value: Callable[[CurveRow], float | None],
    place: Callable[[Result, int], float] = lambda _result, passes: passes,
) -> Line:
    """Summarize an arm's curves; passes at which some seed has no value are left out.

    Of more than a hundred passes every k-th is kept, and the last.

    Parameters
    ----------
    results : sequence of Result
        One for each seed.
    value : callable
    place : callable
        Where a result's pass stands along the horizontal axis; the mean over seeds counts.
    """
    rows = [
        {row.passes: found for row in result.curve if (found := value(row)) is not None and math.isfinite(found)}
        for result in results
    ]
    passes = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    step = -(-len(passes) // _MOST_POINTS) or 1
    passes = sorted({*passes[::step], *passes[-1:]})
    values = [[row[one] for row in rows] for one in passes]
    return Line(
        tuple(statistics.fmean(place(result, one) for result in results) for one in passes),
        tuple(statistics.fmean(found) for found in values),
        tuple(min(found) for found in values),
        tuple(max(found) for found in values),
    )


def panel(name: str, lines: Sequence[Line], control: Line | None, axis: Axis, description: str) -> str:
    """Draw a panel.

    Parameters
    ----------
    name : str
        Unique in the page; letters and digits.
    lines : sequence of Line
        At most ``SERIES``; each takes the colour and dashes of its place.
    control : Line or None
        Drawn thin, in the colour of the text.
    axis : Axis
    description : str
        For readers who do not see the panel.

    Returns
    -------
    str
        An ``svg`` element. Colours are the page's variables ``--series-0`` and so on, ``--ink`` and ``--grid``.
    """
    with svg_style():
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_POINTS_PER_IN, layout="constrained")
        axes = figure.subplots()
        if control is not None:
            axes.plot(control.places, control.mean, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
        for place, line in enumerate(lines):
            _draw(axes, line, place)
        _dress(axes, axis)
        return svg_of(figure, name, description)


def svg_style() -> AbstractContextManager[None]:
    """Return the context in which a figure is drawn and becomes SVG."""
    return mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "ppfed", "font.size": _FONT_PT, "lines.scale_dashes": False}
    )


def svg_of(figure: Figure, name: str, description: str) -> str:
    """Make a figure an element of an HTML page; parameters as in ``panel``."""
    text = io.StringIO()
    figure.savefig(
        text,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    return _inline(text.getvalue(), name, description)


def _draw(axes: Axes, line: Line, place: int) -> None:
    colour = COLOURS[place]
    dashes = tuple(float(length) for length in DASHES[place].split())
    style = (0, dashes) if dashes else "solid"
    axes.plot(
        line.places,
        line.mean,
        color=colour,
        linewidth=1.8,
        linestyle=style,
        marker="o" if len(line.places) == 1 else "",
    )
    if any(low < high for low, high in zip(line.low, line.high, strict=True)):
        axes.fill_between(line.places, line.low, line.high, color=colour, alpha=0.18, linewidth=0)


def _dress(axes: Axes, axis: Axis) -> None:
    axes.set_xlim(axis.first, axis.last)
    axes.set_ylim(axis.low, axis.high)
    axes.set_title(axis.title, loc="left", fontsize=_FONT_PT, color=INK)
    axes.set_xlabel(axis.along, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(colors=INK, length=3)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _inline(text: str, name: str, description: str) -> str:
    """Make matplotlib's file an element of an HTML page."""
    root = ElementTree.fromstring(text)  # noqa: S314 - matplotlib wrote it a moment ago
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith("}style")]:
            parent.remove(child)  # it would hold for the whole page
    used = set(_REFERENCE.findall(text))
    for element in root.iter():
        element.tag = _local(element.tag)
        element.text, element.tail = (element.text or "").strip() or None, None
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key != "id":
                element.set(key, _tidy(value, name))
            elif value in used:
                element.set(key, f"{name}-{value}")
    # Without a size of its own it takes the width that the page gives it.
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": description})
    return ElementTree.tostring(root, encoding="unicode")


def _local(qualified: str) -> str:
    """Drop the namespace of a name: HTML knows where SVG begins."""
    return qualified.rpartition("}")[2]


def _tidy(value: str, name: str) -> str:
    """Shorten numbers, leave fonts to the page, and point references at this panel's own definitions."""
    value = _REFERENCE.sub(rf"#{name}-\1", value)
    value = _FONT_FAMILY.sub("", value)
    value = _DECIMALS.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    for stand_in, variable in _VARIABLES.items():
        value = value.replace(stand_in, f"var({variable})")
    return " ".join(value.split())
