"""float32 values in half the bytes: bfloat16, which NumPy and Flower do not know, as its bits in uint16.

bfloat16 has the range of float32 and 8 significant bits, so rounding moves a value by 1/256 of itself at most. That
suits differences and gradients: the error is small beside what they say. Whole weights rounded so would lose every
change of a weight by less than 1/256 of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_bfloat16(values: Tensor) -> npt.NDArray[np.uint16]:
    """Round float32 values to the nearest bfloat16, ties to even.

    Returns
    -------
    uint16 array of the same shape
        The bits. Values beyond bfloat16's largest, 3.39e38, become infinite; nan stays nan.
    """
    bits: npt.NDArray[np.uint16] = values.to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return bits


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> Tensor:
    """Undo ``to_bfloat16``, exactly.

    Parameters
    ----------
    bits : uint16 array

    Returns
    -------
    float32 tensor of the same shape, on the CPU
    """
    return torch.from_numpy(bits.copy()).view(torch.bfloat16).to(torch.float32)
