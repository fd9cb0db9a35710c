"""Pixel block mixing: each image of the training set gets blocks of others of its class.

Source: Xiang et al., EAAI 126:107180, 2023 (arXiv 2105.08876); docs/cipher.md says which choices are ours.
It has no key and cannot be undone, it needs labels, and only training images are mixed: queries stay plain. So it is no
cipher, in no registry, and no federation can be declared with it; scenarios run it to compare.
"""

from __future__ import annotations

import numpy as np

from ppfed.images.types import Int64Array, UInt8Array

SOURCES = 10
"""So many images of its class are sampled for each image."""
PROBABILITY = 0.5
"""Chance of a block to be replaced."""


def default_block(height: int, width: int) -> tuple[int, int]:
    """Scale the published blocks, 96x24 in images of 192x192, to other sizes: two rows of eight blocks.

    Parameters
    ----------
    height, width : int
        Of an image, in pixels.

    Returns
    -------
    (height, width) in pixels, at least 1
    """
    return max(1, height // 2), max(1, width // 8)


def mix_blocks(
    pixels: UInt8Array,
    labels: Int64Array,
    *,
    block: tuple[int, int],
    sources: int = SOURCES,
    probability: float = PROBABILITY,
    generator: np.random.Generator,
) -> UInt8Array:
    """Replace blocks of images by those at the same place of other images of the same class.

    Parameters
    ----------
    pixels : uint8 array, (N, H, W, C)
        Plain images; they stay as they are.
    labels : int64 array, (N,)
    block : (height, width)
        In pixels. Where blocks do not fill an image, the last of a row or column are smaller.
    sources : int
        Images drawn for each image, with replacement, from the others of its class, so that a class of any size will
        do: an image that is alone in its class stays as it is. Each replaced block comes from any of them.
    probability : float
        Chance of each block to be replaced.
    generator : numpy.random.Generator
        Its state says which blocks came from where: treat its seed as you would the images.

    Returns
    -------
    uint8 array, (N, H, W, C)

    Raises
    ------
    ValueError
        If there is not one label for each image, or a number is out of its range.
    """
    count, height, width, _ = pixels.shape
    if labels.shape != (count,):
        raise ValueError(f"{count} images need as many labels, not an array of shape {labels.shape}")
    if min(block) < 1 or sources < 1 or not 0 <= probability <= 1:
        raise ValueError(f"no mixing with blocks of {block}, {sources} sources and probability {probability}")
    rows, columns = -(-height // block[0]), -(-width // block[1])
    drawn = _others_of_class(labels, sources, generator)
    chosen = generator.integers(0, sources, (count, rows, columns))
    replaced = generator.random((count, rows, columns)) < probability
    images = np.arange(count)[:, None, None]
    origin = np.where(replaced, drawn[images, chosen], images)
    mixed = np.empty_like(pixels)
    # One gather of all images for each place of a block: an index for each pixel would take more memory than they do.
    for row, column in np.ndindex(rows, columns):
        down = slice(row * block[0], (row + 1) * block[0])
        across = slice(column * block[1], (column + 1) * block[1])
        mixed[:, down, across] = pixels[origin[:, row, column], down, across]
    return mixed


def _others_of_class(labels: Int64Array, sources: int, generator: np.random.Generator) -> Int64Array:
    """Draw for each image numbers of other images of its class, or its own if there is no other: (N, sources)."""
    drawn = np.empty((len(labels), sources), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        size = len(members)
        # One to size - 1 places further on, round the class: any other image, each as likely.
        steps = generator.integers(1, size, (size, sources)) if size > 1 else np.zeros((1, sources), dtype=np.int64)
        drawn[members] = members[(np.arange(size)[:, None] + steps) % size]
    return drawn
