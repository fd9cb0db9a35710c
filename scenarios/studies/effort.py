"""Measure what longer training gains an attacker: ``python -m scenarios.studies.effort DATA OUT``.

Networks are trained as in audits on the attacker's own pictures, under NP with fresh masks: of grey images, and with
colour shuffle, the default; and under NP twice with shuffle, which leaves least. ``gpu`` after the folders goes on with
the preset ``gpu`` of each attack. OUT gets ``effort.jsonl``, a line for each training; those that are there already are
kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ppfed.attacks.learned import inversion, learned_edges
from ppfed.ciphers.spec import CipherSpec
from ppfed.errors import UsageError
from ppfed.leakage.attackers import AuditPreset, Session, edges_of_session, inversion_of_session
from ppfed.leakage.images import AuditImages
from ppfed.leakage.metrics import resemblance
from ppfed.leakage.record import AttackName, Resemblance
from ppfed.training.loop import pick_device
from scenarios.studies.command import run_study
from scenarios.studies.rows import RowsFile
from scenarios.studies.targets import reference_images

ROWS_FILE = "effort.jsonl"
GREY, COLOUR, TWICE = "NP, grey images", "NP + shuffle", "NP twice + shuffle"
CIPHERS = {GREY: CipherSpec(colour_shuffle=False), COLOUR: CipherSpec(), TWICE: CipherSpec("np2-v1")}
_SHOWN = 200
"""Of the targets."""
_CHANNELS = {GREY: 1, COLOUR: 3, TWICE: 3}


@dataclass(frozen=True)
class Effort:
    """What is spent.

    Attributes
    ----------
    cipher : str
        Of ``CIPHERS``.
    attack : AttackName
        ``learned-edges`` or ``inversion``.
    preset : EdgesPreset or InversionPreset
    """

    cipher: str
    attack: AttackName
    preset: learned_edges.EdgesPreset | inversion.InversionPreset


def _edges(cipher: str, steps: int) -> Effort:
    """Spend half as many steps on patterns, as the preset does."""
    preset = replace(learned_edges.CPU, pattern_steps=steps // 2, steps=steps)
    return Effort(cipher, AttackName.LEARNED_EDGES, preset)


EFFORTS = (
    *(_edges(GREY, steps) for steps in (400, 1600, 6400)),
    *(_edges(cipher, steps) for cipher in (COLOUR, TWICE) for steps in (400, 1600, 4800)),
)
GPU = "gpu"
GPU_EFFORTS = tuple(
    Effort(cipher, attack, preset)
    for cipher in CIPHERS
    for attack, preset in ((AttackName.LEARNED_EDGES, learned_edges.GPU), (AttackName.INVERSION, inversion.GPU))
)


@dataclass(frozen=True)
class EffortRow:
    """What came of it.

    Attributes
    ----------
    cipher : str
    attack : AttackName
    pictures : int
        Of the attacker's own that were used.
    steps, batch_size : int
    widths : tuple of int
        Of the U-Net.
    device : str
    resemblance : Resemblance
        Of 200 images, which are looked up among 1,000.
    seconds : float
        Of training.
    """

    cipher: str
    attack: AttackName
    pictures: int
    steps: int
    batch_size: int
    widths: tuple[int, ...]
    device: str
    resemblance: Resemblance
    seconds: float


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the table."""
    if len(arguments) < 2 or arguments[2:] not in ([], [GPU]):
        raise UsageError("two folders are needed", hint=f"python -m scenarios.studies.effort DATA OUT [{GPU}]")
    out = Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    measured = RowsFile(out / ROWS_FILE, EffortRow)
    efforts = EFFORTS + (GPU_EFFORTS if arguments[2:] else ())
    measure(partial(reference_images, Path(arguments[0])), efforts, measured, pick_device())
    sys.stdout.write("".join(map(in_line, measured.read())))
    return 0


def measure(
    attacked: Callable[[int, int], AuditImages],
    efforts: Sequence[Effort],
    measured: RowsFile[EffortRow],
    device: torch.device,
) -> None:
    """Train, and append a row for each effort that was not measured.

    Parameters
    ----------
    attacked : callable
        Called with how many pictures the attacker has, and with the number of channels.
    efforts : sequence of Effort
    measured : RowsFile of EffortRow
    device : torch.device
    """
    known = {_known(row) for row in measured.read()}
    left = [effort for effort in efforts if _wanted(effort) not in known]
    for name, pictures in dict.fromkeys((effort.cipher, effort.preset.images) for effort in left):
        images = attacked(pictures, _CHANNELS[name])
        session = Session(CIPHERS[name], images, AuditPreset.CPU, device, seed=0)
        alike = [effort for effort in left if (effort.cipher, effort.preset.images) == (name, pictures)]
        _measure(session, alike, measured)


def _wanted(effort: Effort) -> tuple[object, ...]:
    preset = effort.preset
    return effort.cipher, effort.attack, preset.images, preset.steps, preset.batch_size, preset.widths


def _known(row: EffortRow) -> tuple[object, ...]:
    return row.cipher, row.attack, row.pictures, row.steps, row.batch_size, row.widths


def _measure(session: Session, efforts: Sequence[Effort], measured: RowsFile[EffortRow]) -> None:
    hidden, targets = session.encrypted.pixels[:_SHOWN], session.images.targets.pixels
    for effort in efforts:
        preset = effort.preset
        started = time.monotonic()
        trained: learned_edges.LearnedEdges | inversion.Inversion
        if isinstance(preset, learned_edges.EdgesPreset):
            trained = edges_of_session(session, preset, _silent)
        else:
            trained = inversion_of_session(session, preset, _silent)
        seconds = time.monotonic() - started
        found = resemblance(trained.restore(hidden), targets[:_SHOWN], candidates=targets)
        measured.append(
            EffortRow(
                effort.cipher,
                effort.attack,
                preset.images,
                preset.steps,
                preset.batch_size,
                preset.widths,
                session.device.type,
                found,
                seconds,
            )
        )


def _silent(_part: float) -> None:
    """Tell nobody."""


def in_line(row: EffortRow) -> str:
    """Set a row out."""
    found = row.resemblance
    return (
        f"{row.cipher:18} {row.attack:13} {row.pictures:6,} pictures  {row.steps:6,} steps of {row.batch_size:3}  maps "
        f"{'-'.join(map(str, row.widths)):14} SSIM {found.ssim.mean:.3f} \N{PLUS-MINUS SIGN} {found.ssim.spread:.3f}  "
        f"right one of {found.candidates} {found.reidentified:.1%}  {row.seconds:.0f} s on {row.device}\n"
    )


if __name__ == "__main__":
    run_study(main)
