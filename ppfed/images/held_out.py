"""Which images are held out where nobody divided them (docs/images.md)."""

from __future__ import annotations

import hmac

import numpy as np
import numpy.typing as npt

from ppfed.images.types import PlainImages
from ppfed.keys.master import MasterKey

_ONE_IN = 10
"""On average."""

_KEY_LABEL = "ppfed/v1/held-out"


def held_out_by_content(images: PlainImages, key: MasterKey) -> npt.NDArray[np.bool_]:
    """Say which images are held out where nobody divided them: about one in ten, by HMAC-SHA-256 of their pixels.

    An image that was trained on once is never held out later, whatever is added to its folder and however it is
    renamed, and copies of it are on its side; under the same key, at the same size and channels. What a plain digest
    would tell of an image to whoever sees where it went, the key hides.

    Parameters
    ----------
    images : PlainImages, N images
        As they are encrypted: resized.
    key : MasterKey

    Returns
    -------
    bool array, (N,)
    """
    secret = key.derive(_KEY_LABEL)
    rows = images.pixels.reshape(len(images), -1)
    digests = b"".join(hmac.digest(secret, row.data, "sha256")[:4] for row in rows)
    return np.frombuffer(digests, dtype=">u4") < 2**32 // _ONE_IN
