"""Sizes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfed.errors import UsageError
from ppfed.images.size import parse_size

sides = st.integers(1, 16_384)


@given(sides, sides, st.sampled_from(["x", "X", "\N{MULTIPLICATION SIGN}", " x "]))
def test_height_and_width(height: int, width: int, times: str) -> None:
    assert parse_size(f"{height}{times}{width}") == (height, width)
    assert parse_size(f" {height} ") == (height, height)


@pytest.mark.parametrize("text", ["", "0", "-3", "32x", "x32", "32x32x3", "3.5", "a", "16385", "0x8", "٣٢", "32,32"])
def test_anything_else(text: str) -> None:
    with pytest.raises(UsageError, match="not an image size"):
        parse_size(text)
