"""Measure what ciphertexts alone give away of the logistic map and RC4 with one key stream.

``python -m scenarios.studies.frequencies DATA OUT [COUNT ...]``. Held-out images are encrypted and attacked, so many of
them as COUNT says (300, 1,000, 3,000 and 10,000), with training images for the attacker
(``ppfed/attacks/values/frequencies.py``). OUT gets ``frequencies.jsonl``, a line for each count; those that are there
already are kept.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppfed.attacks.blocks import template
from ppfed.attacks.values import frequencies
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import UsageError
from ppfed.images.types import PlainImages
from ppfed.leakage.attackers import throwaway_key
from ppfed.leakage.metrics import resemblance
from ppfed.leakage.record import Resemblance
from scenarios.attacking import mixed, rows_without
from scenarios.material import Material, read_images
from scenarios.studies.command import run_study
from scenarios.studies.rows import RowsFile

ROWS_FILE = "frequencies.jsonl"
COUNTS = (300, 1000, 3000, 10_000)
_CIPHER = CipherSpec("logistic-rc4-v1", Scope.FIXED, colour_shuffle=False)
_SIZE, _OWN, _SHOWN, _PAIRS = 32, 20_000, 1000, 10


@dataclass(frozen=True)
class FrequenciesRow:
    """What was found.

    Attributes
    ----------
    ciphertexts, own : int
        So many the attacker had, and pictures of its own.
    masks, places : float
        Part of them that is right, 0 to 1.
    resemblance : Resemblance
        Of the first images.
    seconds : float
    """

    ciphertexts: int
    own: int
    masks: float
    places: float
    resemblance: Resemblance
    seconds: float


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the table."""
    if len(arguments) < 2 or not all(count.isdecimal() and int(count) for count in arguments[2:]):
        raise UsageError(
            "two folders are needed, and numbers may follow",
            hint="python -m scenarios.studies.frequencies DATA OUT [COUNT ...]",
        )
    out = Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    measured = RowsFile(out / ROWS_FILE, FrequenciesRow)
    material = read_images(Path(arguments[0]), _SIZE, _OWN, None)
    measure(material, tuple(int(count) for count in arguments[2:]) or COUNTS, measured)
    for row in measured.read():
        found = row.resemblance
        sys.stdout.write(
            f"{row.ciphertexts:6} ciphertexts  masks {row.masks:.1%}  places {row.places:.1%}  SSIM "
            f"{found.ssim.mean:.3f} \N{PLUS-MINUS SIGN} {found.ssim.spread:.3f}  right one of {found.candidates} "
            f"{found.reidentified:.1%}  {row.seconds:.0f} s\n"
        )
    return 0


def measure(material: Material, counts: tuple[int, ...], measured: RowsFile[FrequenciesRow]) -> None:
    """Attack, and append a row for each count that was not measured.

    Parameters
    ----------
    material : Material
    counts : tuple of int
        Of ciphertexts; more than there are held-out images stand for all of them.
    measured : RowsFile of FrequenciesRow
    """
    known = {row.ciphertexts for row in measured.read()}
    rows = mixed(len(material.held_out), len(material.held_out), 0)
    plain = material.held_out.pixels[rows]
    own = material.train.pixels[rows_without(material.train.pixels, plain)]
    hidden = make_cipher(_CIPHER, throwaway_key(0)).encrypt(PlainImages(plain)).pixels
    true = template.recover(_CIPHER.name, plain[:_PAIRS], hidden[:_PAIRS])
    for count in counts:
        count_had = min(count, len(hidden))
        if count_had in known:
            continue
        started = time.monotonic()
        found = frequencies.recover(hidden[:count_had], own)
        seconds = time.monotonic() - started
        shown = min(_SHOWN, len(plain))
        measured.append(
            FrequenciesRow(
                count_had,
                len(own),
                float(np.mean(found.mask == true.mask)),
                float(np.mean(found.source == true.source)),
                resemblance(found.restore(hidden[:shown]), plain[:shown]),
                seconds,
            )
        )
        known.add(count_had)


if __name__ == "__main__":
    run_study(main)
