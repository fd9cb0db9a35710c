"""The drawing behind contact sheets and leakage cards."""

from __future__ import annotations

import stat
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from ppfed.errors import PPFedError, UsageError
from ppfed.images.types import UInt8Array
from ppfed.picture_grid import Column, Paragraph, Row, draw_grid, require_writable, write_figure

WORDS = "A coordinator that trains a network on pictures of its own restores these images. " * 3


def picture(height: int, width: int, channels: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def grid(columns: int, rows: int, shape: tuple[int, int, int], label: str = "") -> Figure:
    heads = [
        Column(f"Column {number} of some length", ("SSIM 0.47", "right one of 1,000: 47 %"), gauge=0.1 * number)
        for number in range(columns)
    ]
    pictures = [Row([picture(*shape, seed=column) for column in range(columns)], label) for _ in range(rows)]
    return draw_grid(heads, pictures, [Paragraph(WORDS, strong=True), Paragraph(WORDS)], title="A long title " * 8)


def boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Where everything lies, in pixels, as it is drawn."""
    figure.canvas.draw()
    return [
        *((text.get_text(), text.get_window_extent()) for text in figure.texts),
        *(("picture", axes.get_window_extent()) for axes in figure.axes),
    ]


@pytest.mark.parametrize("label", ["", "a class with a very long name and_one_word_that_does_not_fit_at_all"], ids=len)
@pytest.mark.parametrize(
    ("columns", "shape"),
    [(2, (8, 8, 1)), (4, (32, 32, 3)), (7, (32, 32, 3)), (12, (32, 32, 3)), (12, (224, 224, 3)), (5, (30, 400, 3))],
    ids=str,
)
def test_nothing_overlaps_and_nothing_sticks_out(columns: int, shape: tuple[int, int, int], label: str) -> None:
    figure = grid(columns, 2, shape, label)
    width, height = figure.get_size_inches() * figure.dpi
    for name, box in boxes(figure):
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name
    for (name, box), (other, beside) in combinations(boxes(figure), 2):
        overlap = Bbox.intersection(box, beside)
        # Boxes of lines that follow each other may touch: letters end before them.
        assert overlap is None or min(overlap.width, overlap.height) <= 1, (name, other)


def test_wide_grids_are_dealt_out_and_repeat_the_first_column() -> None:
    figure = grid(12, 1, (32, 32, 3))
    assert figure.get_size_inches()[0] * figure.dpi <= 1280
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    small = [view[::4, ::4] for view in drawn]
    numbers = [next(seed for seed in range(12) if np.array_equal(picture(32, 32, 3, seed), view)) for view in small]
    assert numbers == [0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("shape", [(4, 5, 3), (224, 224, 1), (700, 300, 3), (32, 32, 1)], ids=str)
def test_pixels_stay_pixels(shape: tuple[int, int, int]) -> None:
    (axes,) = draw_grid([Column("one")], [Row([picture(*shape)])], []).axes
    view = np.asarray(axes.images[0].get_array())
    extent = axes.get_window_extent()
    assert (round(extent.height), round(extent.width)) == view.shape[:2]
    assert 96 <= max(view.shape[:2]) <= 256
    step = -(-max(shape[:2]) // 256)
    factor = len(view) // len(range(0, shape[0], step))
    shown = view[::factor, ::factor].reshape(len(view) // factor, view.shape[1] // factor, shape[2])
    assert np.array_equal(shown, picture(*shape)[::step, ::step])


def test_the_file_shows_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    shown = [picture(32, 32, 3, seed) for seed in range(4)]
    figure = draw_grid([Column("one", ("SSIM",), gauge=0.5)], [Row([one]) for one in shown], [], title="title")
    write_figure(path, figure)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    for one, axes in zip(shown, figure.axes, strict=True):
        box = axes.get_window_extent()
        # Whole pixels, or an edge would be drawn blurred or a line twice; doubles are exact to far less.
        assert (box.x0, box.y1) == pytest.approx((round(box.x0), round(box.y1)), abs=1e-6)
        top, left = pixels.shape[0] - round(box.y1), round(box.x0)
        assert np.array_equal(pixels[top : top + 128, left : left + 128], one.repeat(4, axis=0).repeat(4, axis=1))
    with pytest.raises(PPFedError, match="cannot be written"):
        write_figure(tmp_path / "nowhere" / "grid.png", figure)


def test_text_is_taken_literally() -> None:
    figure = draw_grid([Column("$x^2$")], [Row([picture(8, 8, 3)], "$a_{")], [Paragraph("5 $ and 6 $")])
    assert [text.get_text() for text in figure.texts] == ["$x^2$", "$a_{", "5 $ and 6 $"]
    assert not any(text.get_parse_math() for text in figure.texts)
    figure.canvas.draw()


def test_every_row_needs_all_pictures() -> None:
    with pytest.raises(ValueError, match="2 pictures"):
        draw_grid([Column("one"), Column("two")], [Row([picture(8, 8, 3)])], [])


def test_whether_a_place_can_be_written_is_known_before(tmp_path: Path) -> None:
    require_writable(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.png").write_bytes(b"kept")
    require_writable(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"kept"
    with pytest.raises(UsageError, match="is a folder"):
        require_writable(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        require_writable(tmp_path / "nowhere" / "a.png")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="root may write to all folders but such a one")
def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(PPFedError, match=r"/proc/a\.png cannot be written"):
        require_writable(Path("/proc/a.png"))
