"""Small photographs that scikit-image ships: natural images without a download."""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage import data
from skimage.metrics import structural_similarity

from ppfed.images.types import UInt8Array

SIDE = 32


def tiles(reduced: int = 4) -> UInt8Array:
    """Cut three photographs, scaled down by ``reduced``, into tiles: uint8 (N, 32, 32, 3); N is 34 for 4, 146 for 2."""
    parts = []
    for load in (data.astronaut, data.coffee, data.chelsea):
        picture = Image.fromarray(load())
        small = np.asarray(picture.resize((picture.width // reduced, picture.height // reduced), Image.Resampling.BOX))
        rows, columns = small.shape[0] // SIDE, small.shape[1] // SIDE
        cut = small[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3)
        parts.append(cut.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3))
    return np.concatenate(parts)


def pieces(count: int, side: int = 32, scale: int = 4, seed: int = 0) -> UInt8Array:
    """Cut ``count`` colour pictures of ``side`` x ``side`` pixels out of pictures ``scale`` times as large."""
    generator = np.random.default_rng(seed)
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    cut = []
    for index in range(count):
        source, width = sources[index % len(sources)], side * scale
        y, x = (int(generator.integers(length - width + 1)) for length in source.shape[:2])
        piece = source[y : y + width, x : x + width].reshape(side, scale, side, scale, 3)
        cut.append(piece.mean(axis=(1, 3)).round().astype(np.uint8))
    return np.stack(cut)


def likeness(plain: UInt8Array, restored: UInt8Array) -> float:
    """Mean structural similarity of the grey images; of an image and its negative the better one."""
    weights = np.array([0.299, 0.587, 0.114])
    best = []
    for first, second in zip(plain @ weights, restored @ weights, strict=True):
        views = (second, 255 - second)
        best.append(max(structural_similarity(first, view, data_range=255) for view in views))
    return float(np.mean(best))
