"""What records lack is known."""

from __future__ import annotations

from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.federation import Exchange
from ppfed.leakage.record import AttackName, LeakageRecord
from ppfed.leakage.reference import reference
from scenarios.studies.reference import lacking


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
