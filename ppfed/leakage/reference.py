"""What attackers got of each cipher in ppfed's own measurements, for those who have not measured their own images.

``python -m scenarios.reference`` measures and writes ``reference.json``.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from pydantic import TypeAdapter

from ppfed.ciphers.spec import CipherSpec
from ppfed.federation import Exchange
from ppfed.leakage.record import LeakageRecord
from ppfed.leakage.wording import sentence

REFERENCE_FILE = "reference.json"
RECORDS = TypeAdapter(tuple[LeakageRecord, ...])


@cache
def references() -> tuple[LeakageRecord, ...]:
    """Return all records."""
    return RECORDS.validate_json(resources.files(__package__).joinpath(REFERENCE_FILE).read_bytes())


def reference(spec: CipherSpec) -> LeakageRecord | None:
    """Return what was measured of encrypted images under a cipher; None where nothing was."""
    return next((one for one in references() if one.cipher is not None and one.cipher.spec == spec), None)


def quoted(spec: CipherSpec, exchange: Exchange) -> str:
    """Quote what ppfed measured of a cipher, on images that are not the owner's.

    In exchanges that send no image, what is quoted is what can be made of the encrypted images that may come out of
    what is sent: no more than that leaks, and how much of it does is another question (docs/leakage.md).
    """
    measured = reference(spec)
    text = (
        "not measured for this cipher; 'ppfed audit leakage' does, on your own images"
        if measured is None
        else f"measured on {measured.data}: {sentence(measured)}"
    )
    if exchange is Exchange.IMAGES:
        return text
    return f"no image is sent. Should encrypted images come out of what is sent, then of those: {text}"
