"""Block scrambling for encryption-then-compression (EtC). Source: Kurihara et al., 2015."""

from __future__ import annotations

import numpy as np

from ppfed.ciphers.keystream import IndexArray, random_order
from ppfed.ciphers.negative_positive import COLOUR_PERMUTATIONS
from ppfed.ciphers.shuffling import BlockShufflingCipher, ShuffleStream, scramble
from ppfed.ciphers.spec import BLOCK_PX
from ppfed.images.types import UInt8Array

_PIXELS = BLOCK_PX * BLOCK_PX


def _placements() -> IndexArray:
    """List for each way to turn and mirror a block where its new pixels come from.

    Returns
    -------
    intp array, (16, 16)
        Row: the number of quarter turns, counter-clockwise, plus 4 if then mirrored left to right, plus 8 if then
        turned upside down.
    """
    block = np.arange(_PIXELS, dtype=np.intp).reshape(BLOCK_PX, BLOCK_PX)
    rows = []
    for code in range(16):
        turned = np.rot90(block, code % 4)
        turned = turned[:, ::-1] if code & 4 else turned
        turned = turned[::-1] if code & 8 else turned
        rows.append(turned.reshape(-1))
    return np.stack(rows)


_PLACEMENTS = _placements()


class EtCCipher(BlockShufflingCipher):
    """The EtC cipher, version 1: blocks are turned, mirrored, negated and recoloured, then scrambled."""

    name = "etc-v1"
    label = "etc"
    uses = ("turn", "negate", "colour", "scramble")

    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> ShuffleStream:
        height, width, channels = shape
        count, blocks, values = len(nonces), height * width // _PIXELS, _PIXELS * channels
        mask = np.repeat(self._keystreams["negate"].masks(nonces, blocks), values, axis=1)
        placement = _PLACEMENTS[self._keystreams["turn"].bytes(nonces, blocks) & 15]
        source = placement[..., None] * channels
        if channels == 3:
            colours = COLOUR_PERMUTATIONS[self._keystreams["colour"].below(nonces, blocks, len(COLOUR_PERMUTATIONS))]
            source = source + colours[:, :, None, :]
        order = random_order(self._keystreams["scramble"].words(nonces, blocks))
        return ShuffleStream(mask, scramble(source.reshape(count, blocks, values), order))
