"""Undo learnable encryption (LE) from ciphertexts alone: what one shuffle of 4-bit values leaves shows in statistics.

LE treats every block of every image alike (fixed scope) or every block of one image (image scope). Pooled over blocks:
upper halves of pixel values are correlated and lower halves are not; the sign of a correlation tells what was reversed;
what the blocks around predict tells where in the block a value lies; and what the upper halves around a pixel predict
between two levels is its lower half. The cipher is Tanaka's (ICCE-TW 2018, arXiv 1804.00490); the steps are ours.

ELE (Madono et al., 2020) has a key for each block, so that only images remain to pool over; it is not attacked here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import convolve
from scipy.optimize import linear_sum_assignment

from ppfed.attacks.blocks.cutting import cut, join
from ppfed.ciphers.spec import BLOCK_PX
from ppfed.images.types import UInt8Array

IndexArray = npt.NDArray[np.intp]
FloatArray = npt.NDArray[np.float64]

_AROUND = np.array([[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]]) / 12
"""How the neighbours of a pixel predict it."""

_SMOOTH = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
"""How a pixel and its neighbours, known to 4 bits, tell where between two levels it lies."""

_PASSES = 12
"""Refinements at most; they mostly settle in fewer than four."""


@dataclass(frozen=True)
class NibbleMap:
    """Where the 4-bit values of a plain block are in an encrypted one.

    4-bit values are numbered as in docs/cipher.md: the lower halves of all values of a block, then the upper halves.

    Attributes
    ----------
    place : intp array, (2 V,)
        Plain 4-bit value j is at ``place[j]`` of the encrypted block.
    reversal : uint8 array, (2 V,)
        15 where it is reversed there, else 0.
    """

    place: IndexArray
    reversal: UInt8Array

    def restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        """Undo the map in every block: uint8 (N, H, W, C) to the same."""
        plain = nibbles(ciphertexts)[..., self.place] ^ self.reversal
        low, high = np.split(plain, 2, axis=-1)
        blocks: UInt8Array = low | (high << np.uint8(4))
        shape = (*blocks.shape[:2], BLOCK_PX, BLOCK_PX, ciphertexts.shape[3])
        return join(blocks.reshape(shape), ciphertexts.shape[1] // BLOCK_PX)


def nibbles(pixels: UInt8Array) -> UInt8Array:
    """Split images (N, H, W, C) into the 4-bit values of their blocks: uint8 (N, B, 2 V), lower halves first."""
    blocks = cut(pixels, BLOCK_PX)
    values = blocks.reshape(*blocks.shape[:2], -1)
    return np.concatenate([values & np.uint8(15), values >> np.uint8(4)], axis=2)


def restore_le(ciphertexts: UInt8Array, *, pooled: bool = True) -> UInt8Array:
    """Restore images encrypted with LE, without key or pairs.

    Parameters
    ----------
    ciphertexts : uint8 array, (N, H, W, C)
        Photographs; H and W are multiples of 4 and hold at least 3 blocks each way.
    pooled : bool
        One key stream served all images (fixed scope). Otherwise each image is worked on alone.

    Returns
    -------
    uint8 array, (N, H, W, C)
        Up to one negative, and with red and blue perhaps exchanged.
    """
    if pooled:
        return find_map(ciphertexts).restore(ciphertexts)
    alone = [ciphertexts[index : index + 1] for index in range(len(ciphertexts))]
    return np.concatenate([find_map(image).restore(image) for image in alone])


def find_map(ciphertexts: UInt8Array) -> NibbleMap:
    """Find the map of LE from images that it served, (N, H, W, C) with sides of at least 3 blocks."""
    _, height, width, channels = ciphertexts.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    seen = nibbles(ciphertexts).astype(np.float64) - 7.5
    lower, upper, sign = _halves(seen)
    high = seen[..., upper] * sign
    spots = _places(high, rows, columns, channels)
    high = high[..., spots]
    order, low_sign = _lower_halves(high, seen[..., lower], rows, channels)
    place = np.concatenate([lower[order], upper[spots]])
    signs = np.concatenate([low_sign, sign[spots]])
    return NibbleMap(place, np.where(signs < 0, 15, 0).astype(np.uint8))


def _halves(seen: FloatArray) -> tuple[IndexArray, IndexArray, FloatArray]:
    """Tell lower from upper halves by how much they go with all others, and the upper ones' signs."""
    flat = seen.reshape(-1, seen.shape[-1])
    spread = flat.std(axis=0) + 1e-9
    correlation = _covariance(flat, flat) / (spread[:, None] * spread)
    np.fill_diagonal(correlation, 0)
    order = (correlation**2).sum(axis=0).argsort()
    half = len(order) // 2
    lower, upper = np.sort(order[:half]), np.sort(order[half:])
    leading = np.linalg.eigh(correlation[np.ix_(upper, upper)])[1][:, -1]
    return lower, upper, np.where(leading < 0, -1.0, 1.0)


def _places(high: FloatArray, rows: int, columns: int, channels: int) -> IndexArray:
    """Find where upper halves lie: entry v of the result is the column of ``high`` (N, B, V) that holds value v."""
    field = high.reshape(len(high), rows, columns, -1)
    mean = field.mean(axis=3)
    offset = field - mean[..., None]
    # What a value has over its block's mean grows with its column as the blocks around grow from left to right.
    across, down = (mean[:, 1:-1, 2:] - mean[:, 1:-1, :-2]).ravel(), (mean[:, 2:, 1:-1] - mean[:, :-2, 1:-1]).ravel()
    slope = np.stack([across - across.mean(), down - down.mean()], axis=1)
    inside = offset[:, 1:-1, 1:-1].reshape(len(slope), -1)
    inside = inside - inside.mean(axis=0)
    lean = np.linalg.lstsq(slope, inside, rcond=None)[0]
    guesses = [
        _lattice(lean[0], lean[1], channel, channels) for channel in _channels(inside - slope @ lean, field, channels)
    ]
    settled = [_refine(high, guess, rows, channels) for guess in guesses]
    return min(settled, key=lambda found: found[1])[0]


def _channels(rest: FloatArray, field: FloatArray, channels: int) -> list[IndexArray]:
    """Guess which channel each upper half is of, in up to three ways.

    Of what position does not explain, most is colour, which runs from red over green to blue. Blocks count less the
    more they vary, for what varies in those is texture. Blue varies more over photographs than red does.
    """
    half = rest.shape[1]
    if channels == 1:
        return [np.zeros(half, dtype=np.intp)]
    energy = (rest * rest).sum(axis=1, keepdims=True) + 5
    weighted = rest / energy
    axes = np.linalg.eigh(weighted.T @ weighted)[1][:, :-4:-1]
    found = []
    for axis in axes.T:
        channel = np.empty(half, dtype=np.intp)
        channel[axis.argsort()] = np.arange(half) * channels // half
        if field[..., channel == 0].var() > field[..., channel == channels - 1].var():
            channel = channels - 1 - channel
        found.append(channel)
    return found


def _lattice(x: FloatArray, y: FloatArray, channel: IndexArray, channels: int) -> IndexArray:
    """Give each value of each channel its own place on the lattice of 4x4."""
    spots = np.empty(len(x), dtype=np.intp)
    down, across = np.divmod(np.arange(BLOCK_PX * BLOCK_PX), BLOCK_PX)
    for number in range(channels):
        members = np.flatnonzero(channel == number)
        costs = np.zeros((len(members), len(down)))
        for lean, place in ((x[members], across), (y[members], down)):
            scaled = (lean - lean.mean()) / (lean.std() + 1e-9) * place.std()
            costs += (scaled[:, None] - (place - place.mean())) ** 2
        member, place = linear_sum_assignment(costs)
        spots[place * channels + number] = members[member]
    return spots


def _refine(high: FloatArray, spots: IndexArray, rows: int, channels: int) -> tuple[IndexArray, float]:
    """Move each value to where its neighbours predict it best, until nothing moves; return the mean squared error too.

    As the best of all assignments may run in circles, the one with the least error is kept.
    """
    columns = high.reshape(-1, high.shape[-1])
    best, least = spots, np.inf
    for _ in range(_PASSES):
        predicted = _values(_filtered(high[..., spots], _AROUND, rows, channels))
        error = columns.var(axis=0)[:, None] + predicted.var(axis=0) - 2 * _covariance(columns, predicted)
        error += (columns.mean(axis=0)[:, None] - predicted.mean(axis=0)) ** 2
        now = float(error[spots, np.arange(len(spots))].mean())
        if now >= least:
            break
        best, least = spots, now
        column, place = linear_sum_assignment(error)
        spots = np.empty_like(spots)
        spots[place] = column
    return best, least


def _lower_halves(high: FloatArray, low: FloatArray, rows: int, channels: int) -> tuple[IndexArray, FloatArray]:
    """Find the lower half of each value: it goes with what neighbours predict beyond the upper half."""
    beyond = _filtered(high, _SMOOTH, rows, channels) - high
    order, sign = _matched(beyond, low)
    for _ in range(_PASSES):
        known = 16 * high + low[..., order] * sign
        beyond = np.clip(_filtered(known, _AROUND, rows, channels) - 16 * high, -16, 16)
        again, sign = _matched(beyond, low)
        if np.array_equal(again, order):
            break
        order = again
    return order, sign


def _matched(wanted: FloatArray, given: FloatArray) -> tuple[IndexArray, FloatArray]:
    """Pair columns by the size of their correlation; returns which is given for each wanted one, and the sign."""
    first, second = _values(wanted), _values(given)
    correlation = _covariance(first, second) / (first.std(axis=0)[:, None] * second.std(axis=0) + 1e-9)
    row, column = linear_sum_assignment(-np.abs(correlation))
    return column, np.where(correlation[row, column] < 0, -1.0, 1.0)


def _filtered(values: FloatArray, kernel: FloatArray, rows: int, channels: int) -> FloatArray:
    """Lay the values of blocks (N, B, V) out as pictures, filter these, and cut them into blocks again."""
    count, number, _ = values.shape
    blocks = values.reshape(count, number, BLOCK_PX, BLOCK_PX, channels)
    return cut(convolve(join(blocks, rows), kernel[None, :, :, None], mode="nearest"), BLOCK_PX).reshape(values.shape)


def _values(field: FloatArray) -> FloatArray:
    return field.reshape(-1, field.shape[-1])


def _covariance(first: FloatArray, second: FloatArray) -> FloatArray:
    result: FloatArray = (first - first.mean(axis=0)).T @ (second - second.mean(axis=0)) / len(first)
    return result
