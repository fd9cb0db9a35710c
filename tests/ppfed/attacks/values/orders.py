"""How much of a recovered colour shuffle is right."""

from __future__ import annotations

from ppfed.attacks.values.stream import RecoveredStream
from ppfed.attacks.values.upright import ORDERS
from ppfed.images.types import UInt8Array


def orders_found(recovered: RecoveredStream, permutation: UInt8Array, *, any_names: bool = False) -> float:
    """Measure how many pixels' permutations are right.

    Parameters
    ----------
    recovered : RecoveredStream
        With a permutation.
    permutation : uint8 array, (H, W) or (1, H, W)
        The true one.
    any_names : bool
        Count up to one order of the colours of everything, which ciphertexts alone can only guess.

    Returns
    -------
    float
        0 to 1; 1/6 is chance, a little more with ``any_names``.
    """
    assert recovered.permutation is not None
    names = ORDERS if any_names else ORDERS[:1]
    # The plain channel that each ciphertext channel is said to show, and its name.
    found, true = ORDERS[recovered.permutation], ORDERS[permutation.reshape(recovered.permutation.shape)]
    return max(float((name[found] == true).all(axis=2).mean()) for name in names)
