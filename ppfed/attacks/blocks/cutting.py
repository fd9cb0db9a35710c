"""Cut images into square blocks and join them again, for attacks on block ciphers. No key is needed for that."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

ScalarT = TypeVar("ScalarT", bound=np.generic)


def cut(pixels: npt.NDArray[ScalarT], block_px: int) -> npt.NDArray[ScalarT]:
    """Cut images into blocks.

    Parameters
    ----------
    pixels : array, (N, H, W, C)
    block_px : int
        Side of a block, in pixels; divides H and W.

    Returns
    -------
    array of the same type, (N, B, block_px, block_px, C)
        Blocks row by row.

    Raises
    ------
    ValueError
        If the sides are not multiples of ``block_px``.
    """
    count, height, width, channels = pixels.shape
    if height % block_px or width % block_px:
        raise ValueError(f"images of {height}x{width} pixels cannot be cut into blocks of {block_px}x{block_px}")
    rows, columns = height // block_px, width // block_px
    apart = pixels.reshape(count, rows, block_px, columns, block_px, channels).transpose(0, 1, 3, 2, 4, 5)
    return apart.reshape(count, rows * columns, block_px, block_px, channels)


def join(blocks: npt.NDArray[ScalarT], rows: int) -> npt.NDArray[ScalarT]:
    """Join blocks that `cut` made: (N, B, P, P, C) to (N, H, W, C), with ``rows`` rows of blocks."""
    count, number, side, _, channels = blocks.shape
    columns = number // rows
    apart = blocks.reshape(count, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return apart.reshape(count, rows * side, columns * side, channels)
