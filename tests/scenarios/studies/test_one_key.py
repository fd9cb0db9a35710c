"""The study of one key stream measures each cipher and number of ciphertexts once, and finds what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppfed.ciphers.spec import Scope, cipher_names
from ppfed.errors import UsageError
from ppfed.leakage.images import AuditImages
from ppfed.leakage.record import AttackName
from scenarios.material import digits
from scenarios.studies.one_key import ROWS_FILE, OneKeyRow, main, measure, one_key_ciphers
from scenarios.studies.rows import RowsFile
from scenarios.studies.targets import targets_of


def attacked_digits() -> AuditImages:
    return targets_of(digits(16, 200, 60), np.arange(60))


def test_every_cipher_has_its_attack() -> None:
    ciphers = one_key_ciphers(cipher_names())
    assert {cipher.name for cipher in ciphers} == set(cipher_names())
    assert all(cipher.scope is Scope.FIXED for cipher in ciphers)
    assert len(ciphers) == len(set(ciphers))


def test_rows_are_added_for_what_is_missing(tmp_path: Path) -> None:
    images = attacked_digits()
    measured = RowsFile(tmp_path / ROWS_FILE, OneKeyRow)
    measure(images, one_key_ciphers(["np-v1"])[:1], (20,), measured)
    # There are no more than 60, so that the last two are one.
    measure(images, one_key_ciphers(["np-v1"])[:1], (20, 60, 1000), measured)
    rows = measured.read()
    assert [row.ciphertexts for row in rows] == [20, 60]
    assert {(row.cipher, row.attack, row.own) for row in rows} == {
        (str(one_key_ciphers(["np-v1"])[0]), AttackName.SAME_MASK, 0)
    }
    assert all(row.resemblance.images == 60 for row in rows)
    assert rows[-1].resemblance.ssim.mean > 0.95


def test_ciphers_that_are_compared_with_pictures_say_with_how_many(tmp_path: Path) -> None:
    images = attacked_digits()
    measured = RowsFile(tmp_path / ROWS_FILE, OneKeyRow)
    names = ["le-v1", "block-pixel-v1", "etc-v1", "ele-v1", "logistic-rc4-v1"]
    measure(images, one_key_ciphers(names), (60,), measured)
    rows = measured.read()
    assert [(row.attack, row.own > 0) for row in rows] == [
        (AttackName.BIT_PLANES, False),
        (AttackName.JIGSAW, False),
        (AttackName.JIGSAW, False),
        (AttackName.CORRELATIONS, True),
        (AttackName.FREQUENCIES, True),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["only-one"], "two folders"), (["data", "out", "many"], "no cipher 'many'")]
)
def test_bad_arguments_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main(arguments)
