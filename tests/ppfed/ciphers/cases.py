"""Keys and images that the tests of the ciphers share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ppfed.ciphers.registry import cipher_info
from ppfed.images.types import PlainImages
from ppfed.keys.master import MasterKey

KEY = MasterKey(bytes(range(32)))

secrets = st.binary(min_size=32, max_size=32)


def batches(name: str, most: int = 3) -> st.SearchStrategy[PlainImages]:
    """Draw a few images that the cipher can encrypt."""
    step = cipher_info(name).sides_px
    side = st.integers(1, 3 if step > 1 else 9).map(lambda number: step * number)
    shapes = st.tuples(st.integers(1, most), side, side, st.sampled_from([1, 3]))
    return shapes.flatmap(lambda shape: arrays(np.uint8, shape)).map(PlainImages)


def noise(*shape: int, seed: int = 0) -> PlainImages:
    return PlainImages(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
