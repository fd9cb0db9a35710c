"""bfloat16 in uint16: what torch calls bfloat16, and no further from the value than its 8 significant bits."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ppfed.wire.bfloat16 import from_bfloat16, to_bfloat16

float32 = arrays(np.float32, array_shapes(min_dims=0, max_dims=3, max_side=5), elements=st.floats(width=32))


@given(float32)
def test_it_is_what_torch_rounds_to(values: np.ndarray) -> None:
    bits = to_bfloat16(torch.tensor(values))
    assert (bits.dtype, bits.shape) == (np.uint16, values.shape)
    expected = torch.tensor(values).to(torch.bfloat16).to(torch.float32)
    back = from_bfloat16(bits)
    assert back.dtype == torch.float32
    assert torch.equal(torch.nan_to_num(back, nan=0.5), torch.nan_to_num(expected, nan=0.5))
    assert np.array_equal(np.isnan(back.numpy()), np.isnan(values))


# Below 2**-126 bfloat16 has fewer bits, and above 2**127 it may round up to infinity.
@given(st.floats(2.0**-126, 2.0**127, width=32), st.sampled_from([-1, 1]))
def test_rounding_moves_a_value_by_a_256th_at_most(value: float, sign: int) -> None:
    back = from_bfloat16(to_bfloat16(torch.tensor([sign * value]))).item()
    assert abs(back - sign * value) <= value / 256


def test_every_bfloat16_is_restored_to_the_bit() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = from_bfloat16(bits)
    number = ~torch.isnan(values).numpy()
    assert np.array_equal(to_bfloat16(values)[number], bits[number])


def test_what_is_not_contiguous_is_laid_out() -> None:
    values = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(from_bfloat16(to_bfloat16(values)), values)
