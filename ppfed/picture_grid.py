"""Pictures in rows and columns with words around them: the one drawing behind contact sheets and leakage cards.

Everything is laid out in pixels, and text is measured before it is placed, so nothing overlaps whatever its length.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ppfed.atomic import write_atomic
from ppfed.errors import PPFedError, UsageError
from ppfed.images.types import UInt8Array

_CELL_PX = 128
"""Small images are enlarged to at least this."""
_LARGEST_PX = 256
_GAP_PX = 16
_BAND_GAP_PX = 26
_MARGIN_PX = 24
_LABEL_PX = 110
_LABEL_LINES = 4
_WIDEST_PX = 1280
"""Columns that do not fit go into a further band below."""
_NARROWEST_PX = 640
"""Words under the pictures need it."""
_GAUGE_PX = 5
_DPI = 100
_MODE = 0o600
"""Plain images are shown."""

_TITLE_PT, _TEXT_PT, _NOTE_PT = 12.0, 9.0, 8.0
_LEADING = 1.35
_INK, _FAINT, _ACCENT, _RULE = "#1b1f24", "#5b6570", "#b3261e", "#dfe3e8"


@dataclass(frozen=True)
class Column:
    """What stands over a column.

    Attributes
    ----------
    title : str
    notes : tuple of str
        Lines under it.
    gauge : float or None
        A bar under the notes, filled from 0 to 1; None draws none.
    strong : bool
        Draw the eye to it.
    """

    title: str
    notes: tuple[str, ...] = ()
    gauge: float | None = None
    strong: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    """One row.

    Attributes
    ----------
    pictures : sequence of uint8 array, (H, W, 1 or 3)
        One for each column.
    label : str
        Stands before it. Where no row has one, no room is left for it.
    """

    pictures: Sequence[UInt8Array]
    label: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Words under the pictures.

    Attributes
    ----------
    text : str
    strong : bool
    """

    text: str
    strong: bool = False


@dataclass(frozen=True)
class _Style:
    """How text looks."""

    size_pt: float
    weight: str = "normal"
    colour: str = _INK

    @property
    def line_px(self) -> float:
        return self.size_pt * _DPI / 72 * _LEADING


_TITLE = _Style(_TITLE_PT, "bold")
_TEXT = _Style(_TEXT_PT)
_STRONG = _Style(_TEXT_PT, "bold")
_ALARM = _Style(_TEXT_PT, "bold", _ACCENT)
_NOTE = _Style(_NOTE_PT, colour=_FAINT)


def draw_grid(
    columns: Sequence[Column], rows: Sequence[Row], paragraphs: Sequence[Paragraph], *, title: str = ""
) -> Figure:
    """Draw pictures, one pixel of a picture as a square of whole pixels of the figure.

    Columns that are too many for one width are dealt out over bands; each repeats the first column, to compare with.

    Parameters
    ----------
    columns : sequence of Column
    rows : sequence of Row
    paragraphs : sequence of Paragraph
    title : str

    Raises
    ------
    ValueError
        If a row has not one picture for each column.
    """
    if any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} pictures")
    grown = [[_grown(picture) for picture in row.pictures] for row in rows]
    cell = max(picture.shape[1] for pictures in grown for picture in pictures)
    pitch = cell + _GAP_PX
    label = _LABEL_PX if any(row.label for row in rows) else 0
    bands = _bands(len(columns), max(2, (_WIDEST_PX - 2 * _MARGIN_PX - label + _GAP_PX) // pitch))
    width = max(_NARROWEST_PX, 2 * _MARGIN_PX + label + max(map(len, bands)) * pitch - _GAP_PX)

    sheet = _Sheet(width)
    if title:
        sheet.write(_MARGIN_PX, title, _TITLE, width - 2 * _MARGIN_PX)
        sheet.down(_GAP_PX)
    for number, band in enumerate(bands):
        sheet.down(_BAND_GAP_PX if number else 0)
        lefts = [_MARGIN_PX + label + place * pitch for place in range(len(band))]
        sheet.heads([columns[index] for index in band], lefts, cell)
        for row, pictures in zip(rows, grown, strict=True):
            sheet.down(_GAP_PX / 2)
            sheet.row(row.label, [pictures[index] for index in band], lefts)
            sheet.down(_GAP_PX / 2)
    sheet.down(_GAP_PX)
    for paragraph in paragraphs:
        sheet.write(_MARGIN_PX, paragraph.text, _STRONG if paragraph.strong else _TEXT, width - 2 * _MARGIN_PX)
        sheet.down(_GAP_PX / 4)
    return sheet.finish()


def require_writable(path: Path) -> None:
    """Find out whether a file can be made at a path before work goes into it; nothing is left there.

    Raises
    ------
    UsageError
        If it is a folder, or there is no folder for it.
    PPFedError
        If the folder takes no files.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", hint="Name the file that is to be made in it.")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}.", hint="Make the folder first.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG that only its owner may read, for it shows plain images.

    Raises
    ------
    PPFedError
        If it cannot be written.
    """
    buffer = io.BytesIO()
    # The program's name and version that matplotlib adds would make equal pictures differ between machines.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    try:
        write_atomic(path, buffer.getvalue(), mode=_MODE)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> PPFedError:
    return PPFedError(f"{path} cannot be written: {error.strerror}.", hint="Choose another place.")


class _Sheet:
    """A figure that grows downwards: what is drawn is kept until its height is known."""

    def __init__(self, width: float) -> None:
        self._width = round(width)
        self._top = float(_MARGIN_PX)
        self._figure = Figure(figsize=(self._width / _DPI, 1), dpi=_DPI, facecolor="white")
        self._renderer = FigureCanvasAgg(self._figure).get_renderer()  # type: ignore[no-untyped-call]
        self._kept: list[Callable[[float], None]] = []

    def down(self, by: float) -> None:
        """Leave room."""
        self._top += by

    def write(self, left: float, text: str, style: _Style, room: float, most: int | None = None) -> None:
        """Write text in lines no wider than ``room`` and go below it; lines after the first ``most`` are left out."""
        for line in self._lines(text, style, room)[:most]:
            self._put(left, self._top, line, style)
            self._top += style.line_px

    def heads(self, columns: Sequence[Column], lefts: Sequence[float], room: float) -> None:
        """Write what stands over columns, titles and notes each on one level."""
        start = self._top
        titles = [self._lines(column.title, _ALARM if column.strong else _STRONG, room) for column in columns]
        notes = [[line for note in column.notes for line in self._lines(note, _NOTE, room)] for column in columns]
        below_titles = start + max(map(len, titles)) * _STRONG.line_px
        below_notes = below_titles + max(map(len, notes)) * _NOTE.line_px
        for column, left, title, note in zip(columns, lefts, titles, notes, strict=True):
            # Titles stand on their notes.
            self._top = below_titles - len(title) * _STRONG.line_px
            for line in title:
                self.write(left, line, _ALARM if column.strong else _STRONG, room)
            for line in note:
                self.write(left, line, _NOTE, room)
            if column.gauge is not None:
                self._gauge(left, below_notes + 3, room, column)
        self._top = below_notes + (_GAUGE_PX + 6 if any(column.gauge is not None for column in columns) else 2)

    def row(self, label: str, pictures: Sequence[UInt8Array], lefts: Sequence[float]) -> None:
        """Draw pictures side by side, with a label before them."""
        lines = self._lines(label, _TEXT, _LABEL_PX - _GAP_PX)[:_LABEL_LINES] if label else []
        start, height = self._top, max(len(lines) * _TEXT.line_px, *(len(picture) for picture in pictures))
        for number, line in enumerate(lines):
            middle = start + height / 2 + (number - len(lines) / 2) * _TEXT.line_px
            self._put(_MARGIN_PX, middle, line, _TEXT)
        for picture, left in zip(pictures, lefts, strict=True):
            self._show(picture, left, start)
        self._top = start + height

    def finish(self) -> Figure:
        """Draw what was kept."""
        height = round(self._top + _MARGIN_PX)
        self._figure.set_size_inches(self._width / _DPI, height / _DPI)
        for draw in self._kept:
            draw(height)
        return self._figure

    def _put(self, left: float, top: float, text: str, style: _Style) -> None:
        def draw(height: float) -> None:
            self._figure.text(left / self._width, 1 - top / height, text, va="top", **_font(style))

        self._kept.append(draw)

    def _show(self, picture: UInt8Array, left: float, top: float) -> None:
        def draw(height: float) -> None:
            down, right = picture.shape[:2]
            axes = self._figure.add_axes(
                (left / self._width, 1 - (top + down) / height, right / self._width, down / height)
            )
            shown = picture if picture.shape[2] == 3 else picture[:, :, 0]
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
            axes.set_axis_off()

        top = round(top)
        self._top = top
        self._kept.append(draw)

    def _gauge(self, left: float, top: float, room: float, column: Column) -> None:
        def draw(height: float) -> None:
            parts = ((1.0, _RULE), (min(max(column.gauge or 0.0, 0.0), 1.0), _ACCENT if column.strong else _FAINT))
            for part, colour in parts:
                corner = (left / self._width, 1 - (top + _GAUGE_PX) / height)
                bar = Rectangle(corner, part * room / self._width, _GAUGE_PX / height, facecolor=colour, linewidth=0)
                bar.set_transform(self._figure.transFigure)
                self._figure.add_artist(bar)

        self._kept.append(draw)

    def _lines(self, text: str, style: _Style, room: float) -> list[str]:
        """Break text into lines no wider than ``room``, at spaces where that is possible (not at no-break spaces)."""
        lines = [""]
        for word in text.split(" "):
            joined = f"{lines[-1]} {word}".lstrip()
            if self._fits(joined, style, room):
                lines[-1] = joined
                continue
            rest = word
            if lines[-1]:
                lines.append("")
            while not self._fits(rest, style, room) and len(rest) > 1:
                length = next(
                    end for end in range(len(rest) - 1, 0, -1) if end == 1 or self._fits(rest[:end], style, room)
                )
                lines[-1], rest = rest[:length], rest[length:]
                lines.append("")
            lines[-1] = rest
        return lines

    def _fits(self, text: str, style: _Style, room: float) -> bool:
        probe = self._figure.text(0, 0, text, **_font(style))
        extent = probe.get_window_extent(self._renderer)
        probe.remove()
        return bool(extent.width <= room)


def _font(style: _Style) -> dict[str, Any]:
    # Names of classes may hold dollar signs, which are no mathematics; and the font is the one that comes along.
    return {
        "fontsize": style.size_pt,
        "fontweight": style.weight,
        "color": style.colour,
        "fontfamily": "DejaVu Sans",
        "parse_math": False,
    }


def _bands(columns: int, most: int) -> list[list[int]]:
    """Deal columns out evenly; every band after the first begins with column 0."""
    if columns <= most:
        return [list(range(columns))]
    others = list(range(1, columns))
    count = -(-len(others) // (most - 1))
    base, extra = divmod(len(others), count)
    bands, start = [], 0
    for number in range(count):
        stop = start + base + (number < extra)
        bands.append([0, *others[start:stop]])
        start = stop
    return bands


def _grown(pixels: UInt8Array) -> UInt8Array:
    """Bring an image to a fit size by repeating or dropping pixels: averaging would make ciphertext look smooth."""
    step = -(-max(pixels.shape[:2]) // _LARGEST_PX)
    pixels = pixels[::step, ::step]
    factor = -(-_CELL_PX // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
