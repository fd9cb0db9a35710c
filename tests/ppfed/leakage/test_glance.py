"""What an owner is told before anything leaves."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info, cipher_names
from ppfed.federation import Exchange
from ppfed.leakage.glance import glance
from ppfed.leakage.reference import quoted, references

from ..photographs import pieces


def test_one_mask_for_all_is_shown_to_be_no_mask(tmp_path: Path) -> None:
    seen = glance(pieces(60), CipherSpec("np-v1", Scope.FIXED, True), tmp_path / "seen.png")
    assert "exactly" in seen.sentence
    assert seen.picture is not None
    assert stat.S_IMODE(seen.picture.stat().st_mode) == 0o600


def test_fresh_masks_are_attacked_one_by_one(tmp_path: Path) -> None:
    seen = glance(pieces(40), CipherSpec("np-v1", Scope.IMAGE, True), tmp_path / "seen.png")
    assert "SSIM 0." in seen.sentence
    assert seen.picture is not None


@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_image_is_no_reason_to_stop(tmp_path: Path, count: int) -> None:
    seen = glance(pieces(count), CipherSpec(), tmp_path / "seen.png")
    assert seen.picture is None
    assert seen.sentence == quoted(CipherSpec(), Exchange.IMAGES)


def test_large_images_are_looked_at_in_small_numbers(tmp_path: Path) -> None:
    smooth = np.repeat(np.repeat(pieces(6, side=16), 14, axis=1), 14, axis=2)
    assert glance(smooth, cipher_info("le-v1").spec(Scope.FIXED), tmp_path / "seen.png").picture is not None
    # Their puzzles do not fit into memory.
    assert glance(smooth, cipher_info("etc-v1").spec(Scope.FIXED), tmp_path / "other.png").picture is None


def test_a_cipher_that_is_not_attacked_at_a_glance_is_quoted(tmp_path: Path) -> None:
    spec = cipher_info("logistic-rc4-v1").spec()
    seen = glance(pieces(20), spec, tmp_path / "seen.png")
    assert seen.picture is None
    assert seen.sentence == quoted(spec, Exchange.IMAGES)


def test_the_default_cipher_was_measured() -> None:
    measured = {str(record.cipher.spec) for record in references() if record.cipher is not None}
    assert str(CipherSpec()) in measured
    assert measured <= {
        str(cipher_info(name).spec(scope, colour_shuffle=shuffle))
        for name in cipher_names()
        for scope in Scope
        for shuffle in ((True, False) if cipher_info(name).colour_shuffle else (False,))
    }


def test_grey_images_are_quoted_as_grey() -> None:
    grey = quoted(CipherSpec(), Exchange.IMAGES, 1)
    assert grey == quoted(CipherSpec(colour_shuffle=False), Exchange.IMAGES, 1)
    assert "grey: " in grey
    assert grey not in (
        quoted(CipherSpec(), Exchange.IMAGES),
        quoted(CipherSpec(colour_shuffle=False), Exchange.IMAGES),
    )
    # What was not measured of grey images is quoted as what it is.
    assert "in colour, and not on grey images" in quoted(cipher_info("le-v1").spec(), Exchange.IMAGES, 1)
    assert "in colour, and not on grey images" not in quoted(cipher_info("le-v1").spec(), Exchange.IMAGES, 3)


def test_exchanges_that_send_no_image_say_so() -> None:
    assert "measured on" in quoted(CipherSpec(), Exchange.UPDATES)
    assert "2 images" in quoted(CipherSpec(), Exchange.GRADIENTS)
    for name in cipher_names():
        for exchange in (Exchange.UPDATES, Exchange.GRADIENTS):
            assert "no image is sent, but" in quoted(cipher_info(name).spec(), exchange)
    assert "no image is sent" not in quoted(CipherSpec(), Exchange.IMAGES)
