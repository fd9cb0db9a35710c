"""What an attacker recovered of the key stream of NP in fixed scope, and how much of it is right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ppfed.attacks.values.upright import ORDERS
from ppfed.images.types import UInt8Array

NP_CONSTANTS = (0x00, 0xFF)
"""What NP may XOR a value with."""
NP_TWICE_CONSTANTS = (0x00, 0xFF, 0x80, 0x7F)
"""What NP twice may XOR a value with."""

_PLACES = np.argsort(ORDERS, axis=1)


@dataclass(frozen=True, eq=False)
class RecoveredStream:
    """The choices of one key stream.

    Attributes
    ----------
    mask : uint8 array, (H, W, C)
        What plain values were XORed with, before the colours were permuted.
    permutation : uint8 array, (H, W), or None
        0 to 5 (docs/cipher.md); None where colours were not permuted.
    determined : bool array, (H, W), or None
        Where the evidence left one choice only; None from attacks that estimate.
    """

    mask: UInt8Array
    permutation: UInt8Array | None = None
    determined: npt.NDArray[np.bool_] | None = None

    @cached_property
    def on_ciphertext(self) -> UInt8Array:
        """The mask as it lies on the ciphertext's channels: (H, W, C)."""
        return _on_ciphertext(self.mask, self.permutation)

    def restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        """Decrypt with what was recovered: uint8 (N, H, W, C) to the same."""
        unmasked = ciphertexts ^ self.on_ciphertext
        if self.permutation is None:
            return unmasked
        return np.take_along_axis(unmasked, np.broadcast_to(_PLACES[self.permutation], unmasked.shape), axis=3)


def mask_bits_found(
    recovered: RecoveredStream, mask: UInt8Array, permutation: UInt8Array | None = None, *, either_sign: bool = False
) -> float:
    """Measure how many bits of the mask are right, channel by channel of the ciphertext.

    Parameters
    ----------
    recovered : RecoveredStream
    mask : uint8 array, (H, W, C) or (1, H, W, C)
        The true one: ``NPStream.mask``.
    permutation : uint8 array, (H, W) or (1, H, W), or None
        The true one.
    either_sign : bool
        Count up to one negative of everything, which ciphertexts alone cannot tell.

    Returns
    -------
    float
        0 to 1; 0.5 is chance.
    """
    height_width = recovered.mask.shape[:2]
    true_order = None if permutation is None else permutation.reshape(height_width)
    true = _on_ciphertext(mask.reshape(recovered.mask.shape), true_order)
    wrong = recovered.on_ciphertext ^ true
    # The top and the lowest bit say which of the four constants it is; with NP they are equal.
    part = 1 - float((wrong >> 7).mean() + (wrong & 1).mean()) / 2
    return max(part, 1 - part) if either_sign else part


def _on_ciphertext(mask: UInt8Array, permutation: UInt8Array | None) -> UInt8Array:
    return mask if permutation is None else np.take_along_axis(mask, ORDERS[permutation], axis=2)
