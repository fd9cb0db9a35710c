"""Measure what chosen weights read off a ResNet-18: ``python -m scenarios.studies.chosen_weights DATA OUT``.

At the product's width images are told apart by brightness (``ppfed/attacks/sent/bins.py``): over one step, of images
drawn at random and of images of one class; and over a whole pass of many steps, plain and encrypted, with the learning
rates and the augmentation of a federation's default. At a quarter of that width they are told apart by label alone
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

from ppfed.attacks.alone import solver
from ppfed.attacks.sent.bins import bins_of_brightest, network_with_bins, windows_of_pass
from ppfed.attacks.sent.carried import pixels_of
from ppfed.attacks.sent.gradient_inversion import moments_of_update
from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import UsageError
from ppfed.federation import Exchange
from ppfed.images.types import PlainImages, UInt8Array
from ppfed.leakage.attackers import AuditPreset, throwaway_ids, throwaway_key
from ppfed.leakage.audit import AuditRun
from ppfed.leakage.metrics import resemblance
from ppfed.leakage.record import AttackName, Resemblance
from ppfed.leakage.sent import OwnerStep, audit_sent
from ppfed.networks.adaptation import features_of
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
PLAIN = "plain"
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
class WholePass:
    """One of the ten passes of a default training.

    Attributes
    ----------
    cipher : CipherSpec or None
        None for plain images.
    images, batch : int
        Of the owner, and of a step.
    number : int
        Counted from 0.
    """

    cipher: CipherSpec | None
    images: int
    batch: int
    number: int


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
    passes : tuple of WholePass
    part : float
        Of a pass's images, so many are above the lowest threshold of each measure.
    """

    steps: tuple[StepBudget, ...] = (
        StepBudget(64, (8, 32, 128), (None, CipherSpec()), (RANDOM, ONE_CLASS), AuditPreset.QUICK),
        StepBudget(16, (1, 2, 8, 32), (None, CipherSpec(), _FIXED), (RANDOM,), AuditPreset.CPU),
    )
    targets: int = 1000
    base_maps: int = 64
    passes: tuple[WholePass, ...] = tuple(
        WholePass(cipher, images, 128, number)
        for cipher in (None, CipherSpec())
        for images, number in ((512, 9), (1024, 2))
    )
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
        Images of the owner, as augmented and as the network is shown them, of which 24x24 pixels were read with a mean
        error below ``CLOSE``.
    cipher : str
        ``plain`` for none.
    restored : Resemblance or None
        Of what the solver makes of the windows nearest to images that are close by the last of ``CLOSE``, to these
        images' 24x24 pixels before they were encrypted. None for plain images, and where no image is close.
    """

    images: int
    batch: int
    number: int
    learning_rate: float
    windows: int
    close: tuple[int, ...]
    cipher: str = PLAIN
    restored: Resemblance | None = None


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
        near = ", ".join(f"{count} within {most:.0f}" for count, most in zip(one.close, CLOSE, strict=True))
        then = "" if one.restored is None else f", these then restored to SSIM {one.restored.ssim.mean:.3f}"
        sys.stdout.write(
            f"{one.cipher:38} {one.images} images, pass {one.number}, rate {one.learning_rate:.3f}: "
            f"{one.windows} windows, {near}{then}\n"
        )
    return 0


def measure_steps(material: Material, budget: ReadingBudget, measured: RowsFile[StepRow], device: torch.device) -> None:
    """Read batches of one local step, and append a row for each setting that was not measured."""
    known = {(row.base_maps, row.cipher, row.labels, row.batch) for row in measured.read()}
    rows = mixed(len(material.held_out), budget.targets, 0)
    for wanted in budget.steps:
        for spec, labels, batch in product(wanted.ciphers, wanted.labels, wanted.batches):
            cipher = _name(spec)
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
    """Read whole passes, and append a row for each setting that was not measured."""
    known = {(row.cipher, row.images, row.batch, row.number) for row in measured.read()}
    for one in budget.passes:
        if (_name(one.cipher), one.images, one.batch, one.number) not in known:
            measured.append(_read_pass(material, budget, one, device))


def _read_pass(material: Material, budget: ReadingBudget, one: WholePass, device: torch.device) -> PassRow:
    plain = material.train.pixels[: one.images]
    features, given, restore = InputFeatures.VALUES, plain, None
    if one.cipher is not None:
        features = best_features(one.cipher)
        cipher = make_cipher(one.cipher, throwaway_key(0))
        given = cipher.encrypt(PlainImages(plain), throwaway_ids(0, len(plain))).pixels
        restore = solver(one.cipher, device=device)
    config = described(material, budget.base_maps, features)
    bins = bins_of_brightest(config, budget.part)
    network = network_with_bins(config, bins, 0)
    before = network_state(network)
    shape = plain.shape[1:]
    training = TrainingConfig.of(TrainingSettings(batch_size=one.batch))
    spy = _Spy(training.augmentation, dict(zip(map(bytes, given), plain, strict=True)))
    own = copy.deepcopy(network).to(device)
    # The trainer does nothing with it but call it.
    watched = replace(training, augmentation=cast("Augmentation", spy))
    data = ImageTensors.from_numpy(given, material.train_labels[: one.images], device)
    list(Trainer(own, watched, device).train_epochs(data, one.number, 1))
    after = network_state(own)
    moments = moments_of_update(own, before, after, (one.batch, *shape), len(spy.seen))
    change = {name: before[name] - after[name] for name in before}
    found = windows_of_pass(network, bins, change, moments, shape)
    fed, originals = (np.concatenate(some)[:, : found.shape[1], : found.shape[2]] for some in (spy.seen, spy.plain))
    shown = pixels_of(features, features_of(torch.from_numpy(np.ascontiguousarray(fed)), features))
    errors = cdist(*(some.reshape(len(some), -1).astype(float) for some in (shown, found)), "cityblock") / shown[0].size
    close = errors.min(1)[:, None] < CLOSE
    restored = None
    if restore is not None and close[:, -1].any():
        windows = np.ascontiguousarray(found[errors.argmin(1)[close[:, -1]]])
        restored = resemblance(restore(windows), originals[close[:, -1]])
    return PassRow(
        one.images,
        one.batch,
        one.number,
        training.learning_rate_at(one.number / training.epochs),
        len(found),
        tuple(int(count) for count in close.sum(0)),
        _name(one.cipher),
        restored,
    )


def _name(cipher: CipherSpec | None) -> str:
    return PLAIN if cipher is None else str(cipher)


class _Spy:
    """Augments, and keeps what was trained on, and what it was before it was encrypted.

    Parameters
    ----------
    augmentation : callable
    plain : dict of bytes to uint8 array, (H, W, C)
        By what is given.
    """

    def __init__(self, augmentation: Callable[..., Tensor], plain: dict[bytes, UInt8Array]) -> None:
        self._augmentation = augmentation
        self._plain = plain
        self.seen: list[UInt8Array] = []
        self.plain: list[UInt8Array] = []

    def __call__(self, images: Tensor, generator: torch.Generator, *given: object) -> Tensor:
        originals = torch.from_numpy(np.stack([self._plain[bytes(image)] for image in images.cpu().numpy()]))
        moved = self._augmentation(originals, generator.clone_state(), *given)
        augmented = self._augmentation(images, generator, *given)
        self.plain.append(moved.numpy())
        self.seen.append(augmented.cpu().numpy())
        return augmented


if __name__ == "__main__":
    run_study(main)
