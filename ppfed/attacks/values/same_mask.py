"""Ciphertexts alone, one mask for all of them: neighbouring values vary together, and that gives the mask.

The mask can be read off the leading singular vector of the centred images, which follows lightness over the whole
image (docs/leakage.md has what that gets). This attack asks each pair of neighbours instead, over all images, which
relation of their masks makes them most alike, and puts the answers together (``synchronisation``). With colour shuffle,
the order of each pixel's colours follows in the same way from the colours that the unmasked pixels show.
"""

from __future__ import annotations

import numpy as np

from ppfed.attacks.values.stream import NP_CONSTANTS, RecoveredStream, mask_bits_found
from ppfed.attacks.values.synchronisation import FloatArray, Group, IndexArray, synchronise
from ppfed.attacks.values.upright import ORDERS, likely_reading
from ppfed.images.types import UInt8Array

__all__ = ["mask_bits_found", "recover"]

_ROUNDING = 0.5
"""Grey levels added to mean differences: equal values in all images are evidence, not certainty."""


def recover(
    ciphertexts: UInt8Array, *, colour_shuffle: bool = True, constants: tuple[int, ...] = NP_CONSTANTS
) -> RecoveredStream:
    """Recover the key stream that images share.

    Parameters
    ----------
    ciphertexts : uint8 array, (N, H, W, C)
        More images are better; where each has a key stream of its own, the result is at chance.
    colour_shuffle : bool
        Whether colours were permuted, too. If they were not, saying so keeps their order from being guessed.
    constants : tuple of int
        What values may have been XORed with: ``NP_CONSTANTS`` or ``NP_TWICE_CONSTANTS``.

    Returns
    -------
    RecoveredStream
        The sign of everything and the names of the colours are guesses that hold for all images at once.

    Raises
    ------
    ValueError
        If there are no images, or the constants are not a group in this order.
    """
    if not len(ciphertexts):
        raise ValueError("there are no ciphertexts")
    group = Group.of_xor((len(constants) - 1).bit_length())
    table = np.array(constants, dtype=np.uint8)
    if len(group) != len(table) or not np.array_equal(table[:, None] ^ table, table[group.product]):
        raise ValueError("constants must be such that constants[i] ^ constants[j] is constants[i ^ j]")
    shuffled = colour_shuffle and ciphertexts.shape[3] == 3
    mask = table[_masks(ciphertexts, group, table, shuffled)]
    if len(table) > 2:
        # Distances on the circle take colours for their opposites too easily; with the top bits known, ask again.
        signs = np.array(NP_CONSTANTS, dtype=np.uint8)
        parts = [slice(None)] if shuffled else [slice(channel, channel + 1) for channel in range(mask.shape[2])]
        mask = np.concatenate([_least_jumps(ciphertexts[..., part], mask[..., part], table) for part in parts], axis=2)
        mask = mask ^ signs[_masks(ciphertexts ^ mask, Group.of_xor(1), signs, shuffled)]
    unmasked = ciphertexts ^ mask
    # Of each pixel, the ciphertext channel that shows each plain channel.
    places: IndexArray = (
        ORDERS[_orders(unmasked)] if shuffled else np.broadcast_to(np.arange(mask.shape[2]), mask.shape)
    )
    reading = likely_reading(
        np.take_along_axis(unmasked, np.broadcast_to(places, unmasked.shape), axis=3),
        any_order=shuffled,
        together=True,
    )
    if reading.negative[0]:
        mask = 255 - mask
    if not shuffled:
        return RecoveredStream(mask)
    places = places[:, :, ORDERS[reading.order[0]]]
    permutation = (np.argsort(places, axis=2)[:, :, None] == ORDERS).all(axis=3).argmax(axis=2)
    return RecoveredStream(np.take_along_axis(mask, places, axis=2), permutation.astype(np.uint8))


def _masks(ciphertexts: UInt8Array, group: Group, table: UInt8Array, shuffled: bool) -> IndexArray:
    """Choose a constant for each ciphertext value: (H, W, C), up to one for all."""
    height, width, channels = ciphertexts.shape[1:]
    nodes = np.arange(height * width * channels).reshape(height, width, channels)
    steps = [(0, 0, one, other) for one in range(channels) for other in range(one + 1, channels)]
    for down, right in ((0, 1), (1, 0)):
        steps += [
            (down, right, one, other)
            for one in range(channels)
            for other in range(channels)
            if shuffled or one == other
        ]
    # A top bit inverted in both leaves distances on the circle as they are, but not those on the line.
    circular = len(table) > 2
    first, second, evidence = [], [], []
    for down, right, one, other in steps:
        here = (slice(0, height - down), slice(0, width - right), one)
        there = (slice(down, None), slice(right, None), other)
        values, others = ciphertexts[:, *here], ciphertexts[:, *there]
        first.append(nodes[here].reshape(-1))
        second.append(nodes[there].reshape(-1))
        far = np.stack([_distance(values, others ^ constant, circular).mean(axis=0) for constant in table], axis=-1)
        evidence.append(_log_likelihood(far, len(ciphertexts)).reshape(-1, len(table)))
    ends = np.concatenate(first), np.concatenate(second)
    chosen = synchronise(group, nodes.size, *ends, np.concatenate(evidence))
    return chosen.reshape(nodes.shape)


def _orders(unmasked: UInt8Array) -> IndexArray:
    """Choose an order of colours for each pixel: (H, W), up to one for all."""
    height, width = unmasked.shape[1:3]
    colour = unmasked.astype(np.float32)
    colour -= colour.mean(axis=3, keepdims=True)
    nodes = np.arange(height * width).reshape(height, width)
    first, second, evidence = [], [], []
    for down, right in ((0, 1), (1, 0), (1, 1)):
        here, there = (slice(0, height - down), slice(0, width - right)), (slice(down, None), slice(right, None))
        first.append(nodes[here].reshape(-1))
        second.append(nodes[there].reshape(-1))
        # Lightness is the same in all orders, so that it would only be noise.
        far = np.stack(
            [np.abs(colour[:, *here] - colour[:, *there][..., order]).mean(axis=(0, 3)) for order in ORDERS], axis=-1
        )
        evidence.append(2 * _log_likelihood(far, len(unmasked)).reshape(-1, len(ORDERS)))
    ends = np.concatenate(first), np.concatenate(second)
    chosen = synchronise(Group.of_orders(3), nodes.size, *ends, np.concatenate(evidence))
    return chosen.reshape(nodes.shape)


def _distance(values: UInt8Array, others: UInt8Array, circular: bool) -> UInt8Array:
    around = values - others
    other_way = others - values
    shorter: UInt8Array = np.minimum(around, other_way) if circular else np.where(values > others, around, other_way)
    return shorter


def _log_likelihood(mean_distance: FloatArray, images: int) -> FloatArray:
    """Log-likelihood of Laplace-distributed differences, each pair's scale being the likeliest."""
    result: FloatArray = -images * np.log(mean_distance + _ROUNDING)
    return result


def _least_jumps(ciphertexts: UInt8Array, mask: UInt8Array, table: UInt8Array) -> UInt8Array:
    """Settle what distances on the circle leave open: a wrong top bit makes jumps where values cross mid-grey."""
    # Constants come with their negatives, which have the same jumps.
    return min(
        (mask ^ constant for constant in table if constant < 0x80), key=lambda tried: _jumps(ciphertexts ^ tried)
    )


def _jumps(images: UInt8Array) -> float:
    values = images.astype(np.float32)
    return float(sum(np.abs(np.diff(values, axis=axis)).sum(dtype=np.float64) for axis in (1, 2)))
