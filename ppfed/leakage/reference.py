"""What attackers got of each cipher in ppfed's own measurements, for those who have not measured their own images.

``python -m scenarios.studies.reference`` measures and writes ``reference.json``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import resources

from pydantic import TypeAdapter

from ppfed.ciphers.spec import CipherSpec
from ppfed.federation import Exchange
from ppfed.leakage.record import LeakageRecord
from ppfed.leakage.wording import sentence

REFERENCE_FILE = "reference.json"
RECORDS = TypeAdapter(tuple[LeakageRecord, ...])
_SMALL = {
    Exchange.UPDATES: "one local step over few images",
    Exchange.GRADIENTS: "a gradient over few images",
}


@cache
def references() -> tuple[LeakageRecord, ...]:
    """Return all records."""
    return RECORDS.validate_json(resources.files(__package__).joinpath(REFERENCE_FILE).read_bytes())


def reference(spec: CipherSpec, exchange: Exchange = Exchange.IMAGES, channels: int = 3) -> LeakageRecord | None:
    """Return what was measured of what owners send of images under a cipher; None where nothing was.

    Parameters
    ----------
    spec : CipherSpec
    exchange : Exchange
    channels : 1 or 3
        Of the images. Grey ones have no colours, so that it does not matter whether they would be shuffled.
    """
    if channels == 1:
        spec = replace(spec, colour_shuffle=False)
    return next(
        (
            one
            for one in references()
            if one.cipher is not None
            and one.cipher.spec == spec
            and (one.exchange, one.channels) == (exchange, channels)
        ),
        None,
    )


def quoted(spec: CipherSpec, exchange: Exchange, channels: int = 3) -> str:
    """Quote what ppfed measured of a cipher, on images that are not the owner's.

    In exchanges that send no image, that is what comes out of one small batch; where that was not measured, what can be
    made of the encrypted images that come out of it: no more than that leaks (docs/leakage.md). Where grey images were
    not measured, it is what was measured of coloured ones.
    """
    if exchange is not Exchange.IMAGES and (sent := reference(spec, exchange, channels)) is not None:
        return (
            f"no image is sent, but {_SMALL[exchange]} gives its images away, measured on {sent.data}: {sentence(sent)}"
        )
    measured = reference(spec, channels=channels) or reference(spec)
    text = (
        "not measured for this cipher; 'ppfed audit leakage' does, on your own images"
        if measured is None
        else f"measured on {measured.data}{_coloured(measured, channels)}: {sentence(measured)}"
    )
    if exchange is Exchange.IMAGES:
        return text
    return (
        f"no image is sent, but a coordinator that chooses the weights reads encrypted images off {_SMALL[exchange]} "
        f"(docs/leakage.md). Of encrypted images: {text}"
    )


def _coloured(measured: LeakageRecord, channels: int) -> str:
    return "" if measured.channels == channels else ", in colour, and not on grey images as yours"
