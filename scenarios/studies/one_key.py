"""Measure how many ciphertexts of one key stream it takes to restore them all, without key, pairs or training.

``python -m scenarios.studies.one_key DATA OUT [CIPHER ...]``. Held-out images are encrypted in fixed scope, so many of
them as ``COUNTS`` says are attacked, and what was found restores 1,000. The attacker has training images where
its attack compares with pictures. OUT gets ``one_key.jsonl``, a line for each cipher and count; those that are there
already are kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppfed.attacks.alone import PUZZLES, XOR_CONSTANTS, Solver, open_ways, puzzle
from ppfed.attacks.blocks import bit_planes, correlations
from ppfed.attacks.values import frequencies, same_mask
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope, cipher_info, cipher_names
from ppfed.errors import UsageError
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.leakage.attackers import throwaway_key, turned_by_eye
from ppfed.leakage.images import AuditImages
from ppfed.leakage.metrics import resemblance
from ppfed.leakage.record import AttackName, Resemblance
from scenarios.studies.command import run_study
from scenarios.studies.rows import RowsFile
from scenarios.studies.targets import reference_images

ROWS_FILE = "one_key.jsonl"
COUNTS = (2, 3, 5, 10, 30, 100, 300, 1000)
_OWN = 20_000


@dataclass(frozen=True)
class OneKeyRow:
    """What so many ciphertexts gave.

    Attributes
    ----------
    cipher : str
    attack : AttackName
    ciphertexts : int
        So many the attacker had.
    own : int
        Pictures of its own that it compared with; 0 where it needs none.
    resemblance : Resemblance
        Of restored images. Where it may be a mirror image, or turned, it is turned by eye, all images alike.
    seconds : float
        Until the attack knew what restores them.
    """

    cipher: str
    attack: AttackName
    ciphertexts: int
    own: int
    resemblance: Resemblance
    seconds: float


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the table."""
    unknown = [name for name in arguments[2:] if name not in cipher_names()]
    if len(arguments) < 2 or unknown:
        raise UsageError(
            f"there is no cipher {unknown[0]!r}" if unknown else "two folders are needed, and ciphers may follow",
            hint="python -m scenarios.studies.one_key DATA OUT [CIPHER ...]",
        )
    out = Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    measured = RowsFile(out / ROWS_FILE, OneKeyRow)
    images = reference_images(Path(arguments[0]), _OWN, 3)
    measure(images, one_key_ciphers(arguments[2:] or cipher_names()), COUNTS, measured)
    sys.stdout.write("".join(map(in_line, measured.read())))
    return 0


def one_key_ciphers(names: Sequence[str]) -> list[CipherSpec]:
    """List ciphers with one key stream for all images: each with colour shuffle, where it has that, and without."""
    return [
        cipher_info(name).spec(Scope.FIXED, colour_shuffle=shuffle)
        for name in names
        for shuffle in ((True, False) if cipher_info(name).colour_shuffle else (False,))
    ]


def measure(
    images: AuditImages, ciphers: Sequence[CipherSpec], counts: Sequence[int], measured: RowsFile[OneKeyRow]
) -> None:
    """Attack, and append a row for each cipher and count that was not measured.

    Parameters
    ----------
    images : AuditImages
    ciphers : sequence of CipherSpec
        Of fixed scope.
    counts : sequence of int
        Of ciphertexts; more than there are targets stand for all of them.
    measured : RowsFile of OneKeyRow
    """
    known = {(row.cipher, row.ciphertexts) for row in measured.read()}
    plain, own = images.targets.pixels, images.own.pixels
    for cipher in ciphers:
        hidden = make_cipher(cipher, throwaway_key(0)).encrypt(PlainImages(plain)).pixels
        for count in sorted({min(count, len(hidden)) for count in counts}):
            if (str(cipher), count) in known:
                continue
            attack, compares, recover = _attack(cipher)
            started = time.monotonic()
            restore = recover(hidden[:count], own)
            seconds = time.monotonic() - started
            restored = restore(hidden)
            if compares or cipher.name in PUZZLES:
                restored = turned_by_eye(restored, plain, open_ways(cipher.name), pooled=True)
            found = resemblance(restored, plain)
            measured.append(OneKeyRow(str(cipher), attack, count, len(own) if compares else 0, found, seconds))


def _attack(cipher: CipherSpec) -> tuple[AttackName, bool, Callable[[UInt8Array, UInt8Array], Solver]]:
    """Choose the attack on ciphertexts alone, and tell whether it compares them with pictures.

    What is called gets ciphertexts and the attacker's own pictures, and returns what restores other ciphertexts.
    """
    if cipher.name in XOR_CONSTANTS:
        return (
            AttackName.SAME_MASK,
            False,
            lambda hidden, _own: (
                same_mask.recover(
                    hidden, colour_shuffle=cipher.colour_shuffle, constants=XOR_CONSTANTS[cipher.name]
                ).restore
            ),
        )
    if cipher.name in PUZZLES:
        return (
            AttackName.JIGSAW,
            False,
            lambda hidden, _own: puzzle(cipher.name, hidden, pooled=True, generator=np.random.default_rng(0)).restore,
        )
    if cipher.name == "le-v1":
        return AttackName.BIT_PLANES, False, lambda hidden, _own: bit_planes.find_map(hidden).restore
    if cipher.name == "ele-v1":
        return AttackName.CORRELATIONS, True, lambda hidden, own: correlations.recover(hidden, own).restore
    return AttackName.FREQUENCIES, True, lambda hidden, own: frequencies.recover(hidden, own).restore


def in_line(row: OneKeyRow) -> str:
    """Set a row out."""
    found = row.resemblance
    return (
        f"{row.cipher:40} {row.ciphertexts:6,} ciphertexts  {row.attack:12}  SSIM {found.ssim.mean:.3f} "
        f"\N{PLUS-MINUS SIGN} {found.ssim.spread:.3f}  right one of {found.candidates} {found.reidentified:.1%}  "
        f"{row.seconds:.1f} s\n"
    )


if __name__ == "__main__":
    run_study(main)
