"""Measure what is found in gradients by whoever trains as agreed.

``python -m scenarios.studies.gradient_search DATA OUT``. Gradients of plain images, the control, are searched for the
images (``ppfed/attacks/sent/gradient_inversion.py``), as preset ``cpu`` does, over one image and over batches of 8 and
32, with both ways of batch norm, and with the weights that training begins and ends with. OUT gets ``gradients.jsonl``,
a line for each; those that are there already are kept.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from ppfed.attacks.sent import gradient_inversion
from ppfed.errors import UsageError
from ppfed.federation import Exchange
from ppfed.leakage.attackers import AuditPreset
from ppfed.leakage.audit import AuditRun
from ppfed.leakage.record import AttackName, Resemblance
from ppfed.leakage.sent import GradientSearch, OwnerStep, audit_sent
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.training.loop import ImageTensors, evaluate, pick_device
from ppfed.training.settings import BatchNormMode
from scenarios.attacking import mixed
from scenarios.material import Material, read_images
from scenarios.studies.command import run_study
from scenarios.studies.networks import described, train
from scenarios.studies.rows import RowsFile
from scenarios.studies.targets import targets_of

ROWS_FILE = "gradients.jsonl"
_SIZE = 32
INITIAL, TRAINED = "initial", "trained"


@dataclass(frozen=True)
class SearchBudget:
    """What is spent.

    Attributes
    ----------
    images, epochs, base_maps : int
        Of the training whose weights are attacked besides the initial ones.
    targets : int
        Held-out images among which the right one has to be found.
    batches : tuple of int
    search : GradientSearch
    """

    images: int = 10_000
    epochs: int = 5
    base_maps: int = 16
    targets: int = 1000
    batches: tuple[int, ...] = (1, 8, 32)
    search: GradientSearch = field(default_factory=lambda: GradientSearch(gradient_inversion.CPU, images=8, largest=32))


@dataclass(frozen=True)
class SearchRow:
    """What was found.

    Attributes
    ----------
    weights : str
        ``initial`` or ``trained``.
    accuracy : float
        Of the network with these weights on all held-out images, 0 to 1.
    batch_norm : BatchNormMode
    batch : int
        Images that a gradient is the mean over.
    resemblance : Resemblance
        Of what was found to the images.
    seconds : float
    """

    weights: str
    accuracy: float
    batch_norm: BatchNormMode
    batch: int
    resemblance: Resemblance
    seconds: float


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the table."""
    if len(arguments) != 2:
        raise UsageError("two folders are needed", hint="python -m scenarios.studies.gradient_search DATA OUT")
    out = Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    budget = SearchBudget()
    material = read_images(Path(arguments[0]), _SIZE, budget.images, None)
    measured = RowsFile(out / ROWS_FILE, SearchRow)
    measure(material, budget, measured, pick_device())
    for row in measured.read():
        sys.stdout.write(
            f"{row.weights:8} {row.batch_norm:7} {row.batch:3}  SSIM {row.resemblance.ssim.mean:.3f} "
            f"\N{PLUS-MINUS SIGN} {row.resemblance.ssim.spread:.3f}  {row.resemblance.psnr_db.mean:.1f} dB  "
            f"right one {row.resemblance.reidentified:.1%}\n"
        )
    return 0


def measure(material: Material, budget: SearchBudget, measured: RowsFile[SearchRow], device: torch.device) -> None:
    """Search gradients, and append a row for each setting that was not measured.

    Parameters
    ----------
    material : Material
    budget : SearchBudget
    measured : RowsFile of SearchRow
    device : torch.device
    """
    known = {(row.weights, row.batch_norm, row.batch) for row in measured.read()}
    images = targets_of(material, mixed(len(material.held_out), budget.targets, 0))
    held_out = ImageTensors.from_numpy(material.held_out.pixels, material.held_out_labels, device)
    for weights in (INITIAL, TRAINED):
        left = [pair for pair in product(BatchNormMode, budget.batches) if (weights, *pair) not in known]
        if not left:
            continue
        network = _network(material, budget, device, trained=weights == TRAINED)
        accuracy = evaluate(network, held_out).accuracy
        for batch_norm, batch in left:
            found = audit_sent(
                None,
                images,
                OwnerStep(network, Exchange.GRADIENTS, batch_norm),
                (batch,),
                AuditRun(AuditPreset.CPU, device, seed=0),
                attacks=(AttackName.GRADIENTS,),
                search=budget.search,
            )
            (outcome,) = found.record.attacks
            measured.append(SearchRow(weights, accuracy, batch_norm, batch, outcome.resemblance, outcome.seconds))


def _network(material: Material, budget: SearchBudget, device: torch.device, *, trained: bool) -> ImageClassifier:
    config = described(material, budget.base_maps)
    if not trained:
        return build_network(config, seed=0).to(device)
    data = ImageTensors.from_numpy(material.train.pixels, material.train_labels, device)
    return train(config, data, budget.epochs, 0, device)


if __name__ == "__main__":
    run_study(main)
