"""Measure what chosen weights read off a ResNet-18: ``python -m scenarios.studies.chosen_weights DATA OUT``.

At the product's width images are told apart by brightness (``ppfed/attacks/sent/bins.py``): over one step, of images
drawn at random and of images of one class; and over a whole pass of many steps, with the learning rates and the
augmentation of a federation's default. At a quarter of that width they are told apart by label alone
(``ppfed/attacks/sent/chosen_weights.py``), over one step. OUT gets ``steps.jsonl`` and ``passes.jsonl``, a line for
each setting; those that are there already are kept.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from ppfed.attacks.sent.bins import bins_of_brightest, network_with_bins, windows_of_pass
from ppfed.attacks.sent.gradient_inversion import moments_of_update
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import UsageError
from ppfed.federation import Exchange
from ppfed.images.types import UInt8Array
from ppfed.leakage.attackers import AuditPreset
from ppfed.leakage.audit import AuditRun
from ppfed.leakage.record import AttackName, Resemblance
from ppfed.leakage.sent import OwnerStep, audit_sent
from ppfed.networks.classifier import build_network
from ppfed.networks.config import InputFeatures, best_features
from ppfed.networks.state import network_state
from ppfed.training.augment import Augmentation
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig, pick_device
from ppfed.training.settings import TrainingSettings
from scenarios.attacking import mixed
from scenarios.material import Material, read_images
from scenarios.studies.command import run_study
from scenarios.studies.networks import described
from scenarios.studies.rows import RowsFile
from scenarios.studies.targets import targets_of

STEPS_FILE, PASSES_FILE = "steps.jsonl", "passes.jsonl"
_SIZE = 32
_OWN = 2000
RANDOM, ONE_CLASS = "random", "one class"
_CLASS = 3
CLOSE = (3.0, 8.0)
"""Mean error in grey levels up to which a window is counted as read."""
_FIXED = CipherSpec(scope=Scope.FIXED, colour_shuffle=False)


@dataclass(frozen=True)
class StepBudget:
    """What is measured of networks of one width.

    Attributes
    ----------
    base_maps : int
    batches : tuple of int
    ciphers : tuple of CipherSpec or None
        None for plain images.
    labels : tuple of str
        ``RANDOM`` and ``ONE_CLASS``.
    preset : AuditPreset
        Says how many images are read.
    """

    base_maps: int
    batches: tuple[int, ...]
    ciphers: tuple[CipherSpec | None, ...]
    labels: tuple[str, ...]
    preset: AuditPreset


@dataclass(frozen=True)
class ReadingBudget:
    """What is measured.

    Attributes
    ----------
    steps : tuple of StepBudget
    targets : int
        Held-out images among which the right one has to be found.
    base_maps : int
        Of the network in passes.
    passes : tuple of (images, batch size, pass)
        The pass is one of the ten of a default training, counted from 0.
    part : float
        Of a pass's images, so many are above the lowest threshold of each measure.
    """

    steps: tuple[StepBudget, ...] = (
        StepBudget(64, (8, 32, 128), (None, CipherSpec()), (RANDOM, ONE_CLASS), AuditPreset.QUICK),
        StepBudget(16, (1, 2, 8, 32), (None, CipherSpec(), _FIXED), (RANDOM,), AuditPreset.CPU),
    )
    targets: int = 1000
    base_maps: int = 64
    passes: tuple[tuple[int, int, int], ...] = ((512, 128, 9), (1024, 128, 2))
    part: float = 0.15


@dataclass(frozen=True)
class StepRow:
    """What was read off one step.

    Attributes
    ----------
    base_maps : int
    cipher : str
        ``plain`` for none.
    labels : str
        ``random`` or ``one class``.
    batch : int
    setting : str
        As in ``AttackOutcome``.
    resemblance : Resemblance
    """

    base_maps: int
    cipher: str
    labels: str
    batch: int
    setting: str
    resemblance: Resemblance


@dataclass(frozen=True)
class PassRow:
    """What was read off a pass.

    Attributes
    ----------
    images, batch, number : int
        Of the owner, of a step, and which pass.
    learning_rate : float
        Of its first step.
    windows : int
        That the attacker ends up with; some show two images one over the other.
    close : tuple of int
        Images of the owner, as augmented, of which 24x24 pixels were read with a mean error below ``CLOSE``.
    """

    images: int
    batch: int
    number: int
    learning_rate: float
    windows: int
    close: tuple[int, ...]


def main(arguments: list[str]) -> int:
    """Measure what is not yet there, and print the tables."""
    if len(arguments) != 2:
        raise UsageError("two folders are needed", hint="python -m scenarios.studies.chosen_weights DATA OUT")
    out = Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    material = read_images(Path(arguments[0]), _SIZE, _OWN, None)
    budget, device = ReadingBudget(), pick_device()
    steps, passes = RowsFile(out / STEPS_FILE, StepRow), RowsFile(out / PASSES_FILE, PassRow)
    measure_steps(material, budget, steps, device)
    measure_passes(material, budget, passes, device)
    for step in steps.read():
        found = step.resemblance
        sys.stdout.write(
            f"{step.base_maps:2} maps  {step.cipher:38} {step.labels:9} {step.setting:28} SSIM {found.ssim.mean:.3f} "
            f"\N{PLUS-MINUS SIGN} {found.ssim.spread:.3f}  right one {found.reidentified:.1%}\n"
        )
    for one in passes.read():
        sys.stdout.write(
            f"{one.images} images, pass {one.number}, rate {one.learning_rate:.3f}: {one.windows} windows, "
            f"{', '.join(f'{count} within {most:.0f}' for count, most in zip(one.close, CLOSE, strict=True))}\n"
        )
    return 0


def measure_steps(material: Material, budget: ReadingBudget, measured: RowsFile[StepRow], device: torch.device) -> None:
    """Read batches of one local step, and append a row for each setting that was not measured."""
    known = {(row.base_maps, row.cipher, row.labels, row.batch) for row in measured.read()}
    rows = mixed(len(material.held_out), budget.targets, 0)
    for wanted in budget.steps:
        for spec, labels, batch in product(wanted.ciphers, wanted.labels, wanted.batches):
            cipher = "plain" if spec is None else str(spec)
            if (wanted.base_maps, cipher, labels, batch) in known:
                continue
            own = rows if labels == RANDOM else np.flatnonzero(material.held_out_labels == _CLASS)[: budget.targets]
            features = InputFeatures.VALUES if spec is None else best_features(spec)
            network = build_network(described(material, wanted.base_maps, features), 0).to(device)
            found = audit_sent(
                spec,
                targets_of(material, own),
                OwnerStep(network, Exchange.UPDATES),
                (batch,),
                AuditRun(wanted.preset, device, seed=0),
                attacks=(AttackName.CHOSEN_WEIGHTS,),
            )
            for one in found.record.attacks:
                measured.append(StepRow(wanted.base_maps, cipher, labels, batch, one.setting, one.resemblance))


def measure_passes(
    material: Material, budget: ReadingBudget, measured: RowsFile[PassRow], device: torch.device
) -> None:
    """Read whole passes over plain images, and append a row for each setting that was not measured."""
    known = {(row.images, row.batch, row.number) for row in measured.read()}
    left = [one for one in budget.passes if one not in known]
    if not left:
        return
    config = described(material, budget.base_maps)
    bins = bins_of_brightest(config, budget.part)
    network = network_with_bins(config, bins, 0)
    before = network_state(network)
    shape = material.train.pixels.shape[1:]
    for images, batch, number in left:
        training = TrainingConfig.of(TrainingSettings(batch_size=batch))
        spy = _Spy(training.augmentation)
        data = ImageTensors.from_numpy(material.train.pixels[:images], material.train_labels[:images], device)
        own = copy.deepcopy(network).to(device)
        # The trainer does nothing with it but call it.
        watched = replace(training, augmentation=cast("Augmentation", spy))
        list(Trainer(own, watched, device).train_epochs(data, number, 1))
        after = network_state(own)
        moments = moments_of_update(own, before, after, (batch, *shape), len(spy.seen))
        change = {name: before[name] - after[name] for name in before}
        found = windows_of_pass(network, bins, change, moments, shape)
        fed = np.concatenate(spy.seen)[:, : found.shape[1], : found.shape[2]]
        nearest = cdist(*(some.reshape(len(some), -1).astype(float) for some in (fed, found)), "cityblock").min(1)
        row = PassRow(
            images,
            batch,
            number,
            training.learning_rate_at(number / training.epochs),
            len(found),
            tuple(int(np.sum(nearest / fed[0].size < most)) for most in CLOSE),
        )
        measured.append(row)


class _Spy:
    """Augments, and keeps what was trained on."""

    def __init__(self, augmentation: Callable[..., Tensor]) -> None:
        self._augmentation = augmentation
        self.seen: list[UInt8Array] = []

    def __call__(self, *given: object) -> Tensor:
        augmented = self._augmentation(*given)
        self.seen.append(augmented.cpu().numpy())
        return augmented


if __name__ == "__main__":
    run_study(main)
