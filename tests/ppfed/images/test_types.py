"""Plain and encrypted images as types."""

from __future__ import annotations

import numpy as np
import pytest

from ppfed.ciphers.spec import CipherSpec
from ppfed.images.types import ID_BYTES, EncryptedImages, PlainImages

PIXELS = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
IDS = np.zeros((2, ID_BYTES), np.uint8)
FINGERPRINT = "0123456789abcdef"


@pytest.mark.parametrize(
    "pixels",
    [PIXELS.astype(np.int16), PIXELS[0], PIXELS[..., :2], PIXELS[:, :0], np.zeros((1, 2, 2, 4), np.uint8)],
    ids=["dtype", "one image", "two channels", "no rows", "alpha"],
)
def test_odd_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images"):
        PlainImages(pixels)
    with pytest.raises(ValueError, match="images"):
        EncryptedImages(pixels, IDS, CipherSpec(), FINGERPRINT)


def test_views_become_contiguous() -> None:
    assert PlainImages(PIXELS[:, ::-1]).pixels.flags.c_contiguous
    assert PlainImages(PIXELS).shape == (3, 4, 3)
    assert len(PlainImages(PIXELS)) == 2


@pytest.mark.parametrize("ids", [IDS[:1], IDS[:, :-1], IDS.astype(np.int64)], ids=["count", "length", "dtype"])
def test_ids_fit_the_images(ids: np.ndarray) -> None:
    with pytest.raises(ValueError, match="ids"):
        EncryptedImages(PIXELS, ids, CipherSpec(), FINGERPRINT)


@pytest.mark.parametrize("fingerprint", ["", "0123", FINGERPRINT.upper(), FINGERPRINT + "0", "g" * 16])
def test_a_fingerprint_has_its_form(fingerprint: str) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        EncryptedImages(PIXELS, IDS, CipherSpec(), fingerprint)


def test_rows_keep_what_belongs_to_them() -> None:
    ids = np.arange(2 * ID_BYTES, dtype=np.uint8).reshape(2, ID_BYTES)
    images = EncryptedImages(PIXELS, ids, CipherSpec(), FINGERPRINT)
    for rows in (slice(1, 2), np.array([1])):
        part = images[rows]
        assert np.array_equal(part.pixels, PIXELS[1:])
        assert np.array_equal(part.ids, ids[1:])
        assert (part.cipher, part.fingerprint) == (images.cipher, FINGERPRINT)


def test_neither_shows_pixels() -> None:
    images = np.full((1, 2, 2, 1), 217, np.uint8)
    assert "217" not in repr(PlainImages(images))
    assert "217" not in repr(EncryptedImages(images, IDS[:1], CipherSpec(), FINGERPRINT))
