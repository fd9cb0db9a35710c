"""What records lack is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info
from ppfed.errors import UsageError
from ppfed.federation import Exchange
from ppfed.leakage.record import AttackName, LeakageRecord
from ppfed.leakage.reference import reference
from scenarios.studies.reference import lacking, lacks_candidates, main


def known(spec: CipherSpec, exchange: Exchange = Exchange.IMAGES) -> LeakageRecord:
    found = reference(spec, exchange)
    assert found is not None
    return found


def test_attacks_that_were_not_run_are_lacking() -> None:
    record = known(CipherSpec())
    fewer = record.model_copy(update={"attacks": tuple(one for one in record.attacks if one.attack != "unfold")})
    assert set(lacking(fewer)) - set(lacking(record)) == {AttackName.UNFOLD}


def test_nothing_is_trained_where_everything_is_restored() -> None:
    assert lacking(known(CipherSpec(scope=Scope.FIXED))) == []


def test_what_is_sent_instead_of_images_lacks_none() -> None:
    assert lacking(known(CipherSpec(), Exchange.UPDATES)) == []


def test_candidates_that_were_not_compared_are_lacking() -> None:
    record = known(CipherSpec())
    assert not lacks_candidates(record)
    assert lacks_candidates(record.model_copy(update={"by_candidates": None}))
    # No way is known, and no image is sent.
    assert not lacks_candidates(known(cipher_info("logistic-rc4-v1").spec()))
    assert not lacks_candidates(known(CipherSpec(), Exchange.UPDATES))


@pytest.mark.parametrize(
    "names", [["np-v9"], ["missing", "np-v9"], ["candidates", "np-v9"], ["np-v1", "missing"], ["np-v1", "candidates"]]
)
def test_an_unknown_cipher_is_named_before_anything_is_written(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match="there is no cipher"):
        main([str(tmp_path), str(tmp_path / "out"), *names])
    assert not (tmp_path / "out").exists()


def test_a_study_says_in_a_line_what_it_needs() -> None:
    command = [sys.executable, "-m", "scenarios.studies.reference", "only-one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "two folders are needed" in done.stderr
    assert "Traceback" not in done.stderr
