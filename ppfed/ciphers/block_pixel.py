"""Block scrambling with in-block pixel permutation, for networks that begin with a patch embedding.

Sources: arXiv 2204.07707 and 2308.07612; with a key per image: arXiv 2408.05737. docs/cipher.md says which choices are
ours.
"""

from __future__ import annotations

import numpy as np

from ppfed.ciphers.keystream import random_order
from ppfed.ciphers.shuffling import BlockShufflingCipher, ShuffleStream, scramble
from ppfed.ciphers.spec import BLOCK_PX
from ppfed.images.types import UInt8Array

_PIXELS = BLOCK_PX * BLOCK_PX


class BlockPixelCipher(BlockShufflingCipher):
    """Version 1: the same permutation of whole pixels inside every block, then the blocks are scrambled."""

    name = "block-pixel-v1"
    label = "block-pixel"
    uses = ("shuffle", "scramble")

    def _derive(self, nonces: UInt8Array, shape: tuple[int, int, int]) -> ShuffleStream:
        height, width, channels = shape
        count, blocks, values = len(nonces), height * width // _PIXELS, _PIXELS * channels
        pixels = random_order(self._keystreams["shuffle"].words(nonces, _PIXELS))
        inside = (pixels[..., None] * channels + np.arange(channels)).reshape(count, 1, values)
        order = random_order(self._keystreams["scramble"].words(nonces, blocks))
        return ShuffleStream(None, scramble(np.broadcast_to(inside, (count, blocks, values)), order))
