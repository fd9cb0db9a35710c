"""A few plain images with their ciphertexts under one key stream: mask and shuffle are read off (arXiv 2004.13263).

A ciphertext value shows which plain channels it can come from, and with which mask. Of the 48 appearances of a pixel
(384 with NP twice), those stay that explain all pairs. One image of the attacker's choice leaves one.
"""

from __future__ import annotations

import numpy as np

from ppfed.attacks.values.stream import NP_CONSTANTS, RecoveredStream
from ppfed.attacks.values.upright import ORDERS
from ppfed.images.types import UInt8Array


def chosen_image(height: int, width: int, channels: int = 3) -> UInt8Array:
    """Make the image to have encrypted: every pixel has the colour (1, 2, 3), whose 48 appearances all differ.

    Returns
    -------
    uint8 array, (1, height, width, channels)
    """
    colour = np.arange(1, channels + 1, dtype=np.uint8)
    return np.broadcast_to(colour, (1, height, width, channels)).copy()


def recover(
    plain: UInt8Array, encrypted: UInt8Array, *, colour_shuffle: bool, constants: tuple[int, ...] = NP_CONSTANTS
) -> RecoveredStream:
    """Recover a key stream from pairs.

    Where several choices explain the pairs (a grey pixel looks the same in all orders), that is taken whose permutation
    has the least number; where none does (each image had a key stream of its own), that which explains most values.

    Parameters
    ----------
    plain, encrypted : uint8 array, (K, H, W, C)
        K is 1 or more.
    colour_shuffle : bool
        Whether colours were permuted, too.
    constants : tuple of int
        What values may have been XORed with.

    Returns
    -------
    RecoveredStream
        ``determined`` says where exactly one choice explains all pairs.

    Raises
    ------
    ValueError
        If there are no pairs, or their shapes differ.
    """
    if plain.shape != encrypted.shape or not len(plain):
        raise ValueError(f"{plain.shape} plain and {encrypted.shape} encrypted values are not pairs")
    channels = plain.shape[3]
    orders = ORDERS if colour_shuffle and channels == 3 else np.arange(channels)[None]
    table = np.array(constants, dtype=np.uint8)
    # (H, W, new channel, old channel, constant): pairs that this would explain.
    difference = encrypted[..., :, None] ^ plain[..., None, :]
    explained = np.stack([(difference == constant).sum(axis=0) for constant in table], axis=-1)
    best = explained.max(axis=-1)
    score = sum(best[:, :, new, orders[:, new]] for new in range(channels))
    choice = np.asarray(score).argmax(axis=2)
    # Two constants never explain one value, so that choices differ in their permutations only.
    determined = (np.asarray(score) == channels * len(plain)).sum(axis=2) == 1
    # Old channel j went to the new channel where the order lists it.
    places = np.argsort(orders, axis=1)[choice]
    likeliest = table[explained.argmax(axis=-1)]
    # likeliest[..., places[j], j] for each old channel j.
    mask = np.take_along_axis(likeliest, places[:, :, None, :], axis=2)[:, :, 0]
    return RecoveredStream(mask, choice.astype(np.uint8) if len(orders) > 1 else None, determined)
