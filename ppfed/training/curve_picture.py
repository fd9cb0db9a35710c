"""The training curve of a model, drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ppfed.training.curve import CurvePoint


def curve_png(curve: Sequence[CurvePoint], title: str) -> bytes:
    """Draw accuracy above loss, round by round.

    Returns
    -------
    bytes
        A PNG file.
    """
    figure = Figure(figsize=(7.0, 6.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    rounds = [point.round for point in curve]
    _line(upper, rounds, [point.accuracy for point in curve], "held out", "C2")
    _line(lower, rounds, [point.train_loss for point in curve], "training", "C0")
    _line(lower, rounds, [point.held_out_loss for point in curve], "held out", "C2")
    upper.set_ylim(0, 1)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    upper.set_ylabel("accuracy")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("loss (cross-entropy)")
    lower.set_xlabel("round")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if lower.lines:
        lower.legend(frameon=False)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    upper.set_title(title, fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _line(axes: Axes, rounds: Sequence[int], values: Sequence[float | None], label: str, colour: str) -> None:
    drawn = [math.nan if value is None else value for value in values]
    if any(math.isfinite(value) for value in drawn):
        axes.plot(rounds, drawn, color=colour, label=label, marker="o" if len(rounds) <= 40 else "", markersize=3)
