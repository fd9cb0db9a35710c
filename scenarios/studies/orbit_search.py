"""Measure candidates for a better cipher: ``python -m scenarios.studies.orbit_search DATA OUT [NAME ...]``.

For each orbit (``scenarios/studies/orbits.py``): the accuracy of a small classifier that is trained on its
representatives, and what two attackers restore of them, one with a classical solver and one with a U-Net that it trains
on images of its own. All have the same budget. OUT gets ``orbits.jsonl``, a line for each; those that are there already
are kept, so that it can be stopped and gone on with, or run for some at a time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ppfed.attacks.learned.inversion import CPU, train_inversion
from ppfed.errors import UsageError
from ppfed.images.types import UInt8Array
from ppfed.leakage.metrics import resemblance
from ppfed.training.loop import ImageTensors, evaluate, pick_device
from scenarios.attacking import mixed, rows_without
from scenarios.material import Material, read_images
from scenarios.studies.command import run_study
from scenarios.studies.networks import described, train
from scenarios.studies.orbits import ORBITS, Orbit
from scenarios.studies.rows import RowsFile

ROWS_FILE = "orbits.jsonl"
_SIZE = 32


@dataclass(frozen=True)
class SearchBudget:
    """What each candidate gets.

    Attributes
    ----------
    images : int
        That the classifier is trained on.
    epochs, base_maps : int
        Of its training.
    attacker_images : int
        Other images, which the U-Net is trained on.
    attack_steps : int
        Of the U-Net's training: batches of 128.
    targets : int
        Held-out images that are attacked.
    solved : int
        How many of them the solver, which is slower, is run on.
    """

    images: int = 10_000
    epochs: int = 10
    base_maps: int = 16
    attacker_images: int = 20_000
    attack_steps: int = 400
    targets: int = 1000
    solved: int = 200


@dataclass(frozen=True)
class Leak:
    """What an attacker restored.

    Attributes
    ----------
    ssim, ssim_spread : float
        Mean and standard deviation of the grey images' SSIM.
    found : float
        How often the right one of all targets is the nearest, 0 to 1.
    """

    ssim: float
    ssim_spread: float
    found: float


@dataclass(frozen=True)
class OrbitRow:
    """What was measured of an orbit.

    Attributes
    ----------
    name : str
    accuracy : float
        Of the classifier, on all held-out images, 0 to 1.
    network : Leak
        What the U-Net restored.
    solver : Leak or None
        What the classical solver restored; None where there is none.
    """

    name: str
    accuracy: float
    network: Leak
    solver: Leak | None


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the table."""
    names = [orbit.name for orbit in ORBITS]
    if len(arguments) < 2 or not set(arguments[2:]) <= set(names):
        raise UsageError(
            "two folders are needed, and names of orbits if you want some of them",
            hint="python -m scenarios.studies.orbit_search DATA OUT [NAME ...]; names are "
            + ", ".join(map(repr, names)),
        )
    out = Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    wanted = arguments[2:] or names
    measured = RowsFile(out / ROWS_FILE, OrbitRow)
    known = {row.name for row in measured.read()}
    left = [orbit for orbit in ORBITS if orbit.name in wanted and orbit.name not in known]
    if left:
        budget = SearchBudget()
        material = read_images(Path(arguments[0]), _SIZE, budget.images, None, attacker_images=budget.attacker_images)
        for orbit in left:
            row = measure(orbit, material, budget, pick_device(), seed=0)
            measured.append(row)
            sys.stdout.write(in_table([row]))
            sys.stdout.flush()
    sys.stdout.write(in_table(list(read_rows(out / ROWS_FILE).values())))
    return 0


def read_rows(path: Path) -> dict[str, OrbitRow]:
    """Read what was measured, by name, in the order of ``ORBITS``."""
    rows = {row.name: row for row in RowsFile(path, OrbitRow).read()}
    return {orbit.name: rows[orbit.name] for orbit in ORBITS if orbit.name in rows}


def measure(orbit: Orbit, material: Material, budget: SearchBudget, device: torch.device, seed: int) -> OrbitRow:
    """Train a classifier on an orbit, and attack it.

    Parameters
    ----------
    orbit : Orbit
    material : Material
        With an attacker's images.
    budget : SearchBudget
    device : torch.device
    seed : int

    Raises
    ------
    ValueError
        If there are no images for the attacker.
    """
    if material.attacker is None:
        raise ValueError("the attacker needs images of its own")
    targets = material.held_out.pixels[mixed(len(material.held_out), budget.targets, seed)]
    own = material.attacker.pixels[rows_without(material.attacker.pixels, targets)]
    hidden = orbit.keep(targets)
    inversion = train_inversion(
        own,
        lambda plain, _epoch: orbit.keep(plain),
        replace(CPU, steps=budget.attack_steps),
        device=device,
        seed=seed,
    )
    return OrbitRow(
        orbit.name,
        _accuracy(orbit, material, budget, device, seed),
        _leak(inversion.restore(hidden), targets),
        None if orbit.solve is None else _leak(orbit.solve(hidden[: budget.solved]), targets),
    )


def _accuracy(orbit: Orbit, material: Material, budget: SearchBudget, device: torch.device, seed: int) -> float:
    data = ImageTensors.from_numpy(orbit.keep(material.train.pixels), material.train_labels, device)
    network = train(described(material, budget.base_maps, mirrored_views=True), data, budget.epochs, seed, device)
    held_out = ImageTensors.from_numpy(orbit.keep(material.held_out.pixels), material.held_out_labels, device)
    return evaluate(network, held_out).accuracy


def _leak(restored: UInt8Array, targets: UInt8Array) -> Leak:
    found = resemblance(np.ascontiguousarray(restored), targets[: len(restored)], candidates=targets)
    return Leak(found.ssim.mean, found.ssim.spread, found.reidentified)


def in_table(rows: list[OrbitRow]) -> str:
    """Set rows out in Markdown."""
    lines = [
        "| what fresh keys leave | accuracy | U-Net: SSIM | right one | solver: SSIM | right one |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.name} | {100 * row.accuracy:.1f} | {_in_cells(row.network)} | {_in_cells(row.solver)} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _in_cells(leak: Leak | None) -> str:
    return "- | -" if leak is None else f"{leak.ssim:.3f} ± {leak.ssim_spread:.3f} | {100 * leak.found:.1f} %"


if __name__ == "__main__":
    run_study(main)
