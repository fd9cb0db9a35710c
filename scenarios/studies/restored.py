"""Measure what a coordinator gains that restores encrypted images before it trains.

``python -m scenarios.studies.restored DATA OUT [CIPHER ...] [small] [--images N] [--seed N] [--jobs N]``. Images are
encrypted with a fresh key stream each, under one throwaway key, and restored one by one with neither key nor training
(``ppfed/attacks/alone.py``). The same classifier is then trained on the plain images, which is the control, on the
ciphertexts, with the adaptation network and the input features that suit them, and on what was restored, and classifies
held-out images of the same kind. Labels are known, as they are to a coordinator. A restored picture may be negative,
recoloured, turned or mirrored: nobody puts that right here. OUT gets ``restored.jsonl``, a line for each training, and
``restored``, what was made of the images, which are as good as plain: keep them to yourself. What is there already is
kept, so that it can be stopped and gone on with. ``small`` spends about an eighth, ``--images`` says how many are
trained on, and ``--jobs`` in how many processes images are restored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from ppfed.attacks.alone import PUZZLES, open_ways
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, cipher_info
from ppfed.errors import UsageError
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.leakage.attackers import throwaway_ids, throwaway_key, turned_by_eye
from ppfed.leakage.metrics import resemblance, ssim_each
from ppfed.leakage.record import Resemblance
from ppfed.networks.config import NetworkConfig
from ppfed.training.loop import ImageTensors, evaluate, pick_device
from scenarios.material import Material, read_images
from scenarios.studies.command import run_study
from scenarios.studies.networks import described, described_for_ciphertexts, train
from scenarios.studies.restoring import require_solver, restorable, restore
from scenarios.studies.rows import RowsFile

PLAIN = "plain"
ROWS_FILE, RESTORED_FOLDER = "restored.jsonl", "restored"
_SIZE = 32
_USAGE = "python -m scenarios.studies.restored DATA OUT [CIPHER ...] [small] [--images N] [--seed N] [--jobs N]"


class Kind(StrEnum):
    """What a network is trained on, and classifies."""

    PLAIN = "plain"
    AS_SENT = "as sent"
    RESTORED = "restored"


@dataclass(frozen=True)
class RestoredBudget:
    """What each training gets.

    Attributes
    ----------
    images, held_out : int
        Trained on and classified; all of them are restored.
    epochs, base_maps : int
    """

    images: int = 4000
    held_out: int = 1000
    epochs: int = 20
    base_maps: int = 16


SMALL, SMALL_BUDGET = "small", RestoredBudget(images=1000, held_out=500, base_maps=8)


@dataclass(frozen=True)
class RestoredRow:
    """What came of one training.

    Attributes
    ----------
    cipher : str
        ``plain`` for none.
    kind : Kind
    budget : RestoredBudget
    seed : int
        Of key, ids, searches and training.
    accuracy : float
        On held-out images of the same kind, 0 to 1.
    ssim : float
        Of held-out images, as the network is shown them, to the originals: the mean.
    shown : Resemblance
        The same, and more; of an image and its negative the better one counts.
    by_eye : Resemblance or None
        The same, each turned, mirrored and recoloured as the original wants it; of solved puzzles only.
    restoring_s : float
        Processor time to restore all images.
    """

    cipher: str
    kind: Kind
    budget: RestoredBudget
    seed: int
    accuracy: float
    ssim: float
    shown: Resemblance
    by_eye: Resemblance | None = None
    restoring_s: float = 0.0


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the table."""
    given = _parsed(arguments)
    chosen = dict.fromkeys(name for name in given.names if name != SMALL)
    ciphers = [cipher_info(name).spec() for name in chosen] or list(restorable().values())
    for cipher in ciphers:
        require_solver(cipher)
    budget = SMALL_BUDGET if SMALL in given.names else RestoredBudget()
    if given.images is not None:
        budget = replace(budget, images=given.images)
    given.out.mkdir(parents=True, exist_ok=True)
    material = read_images(given.data, _SIZE, budget.images, budget.held_out)
    measured = RowsFile(given.out / ROWS_FILE, RestoredRow)
    measure(
        ciphers,
        material,
        budget,
        given.out / RESTORED_FOLDER,
        measured,
        pick_device(),
        seed=given.seed,
        jobs=given.jobs,
    )
    sys.stdout.write("".join(map(in_line, measured.read())))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=_USAGE)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m scenarios.studies.restored", usage=_USAGE, allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--images", type=_positive)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=_positive, default=1)
    return parser.parse_intermixed_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def measure(
    ciphers: Sequence[CipherSpec],
    material: Material,
    budget: RestoredBudget,
    folder: Path,
    measured: RowsFile[RestoredRow],
    device: torch.device,
    *,
    seed: int,
    jobs: int,
) -> None:
    """Train, and append a row for each cipher and kind that was not measured; plain images are one for all ciphers.

    Parameters
    ----------
    ciphers : sequence of CipherSpec
        Of image scope.
    material : Material
        Of it all images are taken.
    budget : RestoredBudget
    folder : Path
        For what is restored; its parent must exist.
    measured : RowsFile of RestoredRow
    device : torch.device
        That trains; what restores is the processor.
    seed : int
        Of key, ids, searches and training.
    jobs : int
        Processes that restore side by side.

    Raises
    ------
    UsageError
        If a cipher's images cannot be restored one by one.
    """
    for cipher in ciphers:
        require_solver(cipher)
    known = {(row.cipher, row.kind) for row in measured.read() if (row.budget, row.seed) == (budget, seed)}
    plain = np.concatenate([material.train.pixels, material.held_out.pixels])
    network = described(material, budget.base_maps, mirrored_views=True)
    study = _Study(material, budget, device, seed)
    if (PLAIN, Kind.PLAIN) not in known:
        measured.append(study.row(PLAIN, Kind.PLAIN, network, plain))
    for cipher in ciphers:
        hidden = make_cipher(cipher, throwaway_key(seed)).encrypt(PlainImages(plain), throwaway_ids(seed, len(plain)))
        if (str(cipher), Kind.AS_SENT) not in known:
            suited = described_for_ciphertexts(material, budget.base_maps, cipher, mirrored_views=True)
            measured.append(study.row(str(cipher), Kind.AS_SENT, suited, hidden.pixels))
        if (str(cipher), Kind.RESTORED) not in known:
            found = restore(cipher, hidden.pixels, folder, seed=seed, jobs=jobs)
            row = study.row(str(cipher), Kind.RESTORED, network, found.pixels)
            if cipher.name in PUZZLES:
                row = replace(row, by_eye=study.by_eye(cipher, found.pixels))
            measured.append(replace(row, restoring_s=found.seconds))


@dataclass(frozen=True, eq=False)
class _Study:
    """Trains on images in the material's order, training images first, and measures on the rest."""

    material: Material
    budget: RestoredBudget
    device: torch.device
    seed: int

    def row(self, cipher: str, kind: Kind, network: NetworkConfig, pixels: UInt8Array) -> RestoredRow:
        count, originals = len(self.material.train), self.material.held_out.pixels
        own = ImageTensors.from_numpy(pixels[:count], self.material.train_labels, self.device)
        held_out = ImageTensors.from_numpy(pixels[count:], self.material.held_out_labels, self.device)
        trained = train(network, own, self.budget.epochs, self.seed, self.device)
        return RestoredRow(
            cipher,
            kind,
            self.budget,
            self.seed,
            evaluate(trained, held_out).accuracy,
            float(np.mean(ssim_each(pixels[count:], originals))),
            resemblance(pixels[count:], originals),
        )

    def by_eye(self, cipher: CipherSpec, pixels: UInt8Array) -> Resemblance:
        originals = self.material.held_out.pixels
        restored = pixels[len(self.material.train) :]
        return resemblance(turned_by_eye(restored, originals, open_ways(cipher.name), pooled=False), originals)


def in_line(row: RestoredRow) -> str:
    """Set a row out."""
    likeness = f"SSIM as it is {row.ssim:.3f}, or negative {row.shown.ssim.mean:.3f}"
    if row.by_eye is not None:
        likeness += f", turned by eye {row.by_eye.ssim.mean:.3f}"
    restoring = f"  {row.restoring_s:.0f} s to restore" if row.kind is Kind.RESTORED else ""
    return (
        f"{row.cipher:38} {row.kind:8}  seed {row.seed}  {row.budget.images:6} images  "
        f"accuracy {row.accuracy:.1%} of {row.budget.held_out}  {likeness}{restoring}\n"
    )


if __name__ == "__main__":
    run_study(main)
