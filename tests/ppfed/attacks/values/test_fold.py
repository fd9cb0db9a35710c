"""The fold: what needs no key."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ppfed.attacks.values.fold import fold, fold_twice, keyless_view
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.keys.master import MasterKey

KEY = MasterKey(bytes(32))
batches = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


@given(arrays(np.uint8, array_shapes()))
def test_fold_is_the_smaller_of_a_value_and_its_negative(pixels: UInt8Array) -> None:
    folded = fold(pixels)
    assert folded.dtype == np.uint8
    assert folded.max() <= 127
    assert np.array_equal(folded, np.array([min(int(v), 255 - int(v)) for v in pixels.flat]).reshape(pixels.shape))
    assert np.array_equal(fold(255 - pixels), folded)
    assert np.array_equal(fold(folded), folded)


@given(batches, st.sampled_from(Scope), st.booleans())
def test_the_view_needs_no_key(pixels: UInt8Array, scope: Scope, shuffle: bool) -> None:
    """Whatever the mask, an attacker sees the same: what the plain image itself would show."""
    images = PlainImages(pixels)
    spec = CipherSpec(scope=scope, colour_shuffle=shuffle)
    views = [keyless_view(make_cipher(spec, key).encrypt(images)) for key in (KEY, MasterKey(b"\x01" * 32))]
    assert np.array_equal(*views)
    if shuffle and pixels.shape[3] == 3:
        mean = (2 * fold(pixels).astype(int)).sum(axis=3, keepdims=True) / 3
        # Rounding to a whole grey level moves by half a level at most.
        assert np.abs(views[0] - mean).max() <= 0.5
    else:
        assert np.array_equal(views[0], 2 * fold(pixels))


def test_folding_twice_loses_what_np_twice_hides_and_nothing_else() -> None:
    values = np.arange(256, dtype=np.uint8)
    folded = fold_twice(values)
    assert len(np.unique(folded)) == 64
    for constant in (0x00, 0xFF, 0x80, 0x7F):
        assert np.array_equal(fold_twice(values ^ np.uint8(constant)), folded)
