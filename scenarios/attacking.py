"""Attacks an arm: what whoever receives an owner's images, weights or gradients restores of held-out images.

What is attacked follows from the arm. Where encrypted images are sent, held-out images are encrypted once more, under
keys of the audit's own, and attacked. Where weights or gradients are sent, these are inverted. Where nothing is
encrypted there is nothing to restore, and the images themselves are measured: they are the control.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ppfed.atomic import write_atomic
from ppfed.errors import DataError
from ppfed.federation import Exchange, FederationSettings
from ppfed.images.types import Int64Array, PlainImages, UInt8Array
from ppfed.leakage.attackers import AuditPreset
from ppfed.leakage.audit import Audit, AuditRun, audit, judge_of
from ppfed.leakage.images import AuditImages
from ppfed.leakage.metrics import resemblance
from ppfed.leakage.record import CIPHERTEXT_KEY, ORIGINAL_KEY, LeakageRecord
from ppfed.leakage.reidentification import match_candidates
from ppfed.leakage.sent import OwnerStep, audit_sent, sent_batches
from ppfed.networks.classifier import build_network
from scenarios.declaration import Arm, Budget, Mode
from scenarios.material import Material

LEAKAGE_FILE, PICTURES_FILE = "leakage.json", "pictures.npz"

MOST_PICTURES = 8
"""Images of each kind that are kept for reports."""

_JUDGE_PART = 0.2
"""Of an attack, in its progress: training the network that judges what was restored."""

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class ArmAttack:
    """An attack on an arm: what is attacked, and with what.

    Parameters
    ----------
    arm : Arm
    budget : Budget
    settings : FederationSettings
        The arm's.
    material : Material
        With the attacker's own images.
    data_title : str
        The data in words, without a path.
    seed : int
    device : torch.device
    """

    arm: Arm
    budget: Budget
    settings: FederationSettings
    material: Material
    data_title: str
    seed: int
    device: torch.device

    def measure(self, trained_on: UInt8Array | None, folder: Path, on_progress: OnProgress) -> LeakageRecord:
        """Attack, or read what an earlier call measured.

        Parameters
        ----------
        trained_on : uint8 array, (N, H, W, C), or None
            The arm's training images in the material's order as they were trained on, where that is not encryption.
        folder : Path
            For the record, and for the pictures: arrays by name, the plain images among them, for this user alone.
        on_progress : callable
            Called with what is at work, and with the part of everything that is done.
        """
        path = folder / LEAKAGE_FILE
        if path.exists():
            return LeakageRecord.model_validate_json(path.read_bytes())
        found = self._attack(trained_on, on_progress)
        save_pictures(folder / PICTURES_FILE, found.pictures)
        write_atomic(path, found.record.model_dump_json())
        return found.record

    def _attack(self, trained_on: UInt8Array | None, on_progress: OnProgress) -> Audit:
        if self.arm.mode in (Mode.UPDATES, Mode.GRADIENTS):
            return self._sent_gradients(on_progress)
        if self.arm.spec is not None:
            images = self._images()
            return audit(self.arm.spec, images, self.arm.wanted_attacks, self._run(images, on_progress))
        if self.arm.is_plain or trained_on is None:
            rows = self._target_rows(len(self.material.held_out))
            plain = self.material.held_out.pixels[rows]
            return self._without_key(plain, plain, "held-out")
        rows = self._target_rows(len(trained_on))
        return self._without_key(trained_on[rows], self.material.train.pixels[rows], "training")

    def _sent_gradients(self, on_progress: OnProgress) -> Audit:
        # Before the first round the network is the one that everybody knows, and it gives most away.
        network = build_network(self.settings.network_config(), self.seed).to(self.device)
        images = self._images()
        step = OwnerStep(network, self.settings.exchange, self.settings.training.batch_norm)
        batches = sent_batches(self.settings.exchange, self.settings.training.min_local_batch)
        run = self._run(images, on_progress)
        return audit_sent(self.arm.spec, images, step, batches, run, attacks=self.arm.wanted_attacks)

    def _run(self, images: AuditImages, on_progress: OnProgress) -> AuditRun:
        """Train a judge, and tell the progress of what it is for as what remains."""
        judge = judge_of(
            images, self._preset, self.device, self.seed, lambda part: on_progress("judge", _JUDGE_PART * part)
        )
        return AuditRun(self._preset, self.device, self.seed, judge, _second_part(on_progress))

    def _without_key(self, shown: UInt8Array, originals: UInt8Array, split: str) -> Audit:
        """Measure images that anybody may look at."""
        height, width, channels = self.settings.shape
        record = LeakageRecord(
            cipher=None,
            exchange=Exchange.IMAGES,
            height=height,
            width=width,
            channels=channels,
            data=f"{len(shown)} {split} images of {self.data_title}"[:200],
            preset=str(self._preset),
            ciphertext=resemblance(shown, originals),
            perfect=resemblance(originals, originals),
            by_candidates=match_candidates(None, shown, originals),
        )
        return Audit(record, {ORIGINAL_KEY: originals[:MOST_PICTURES], CIPHERTEXT_KEY: shown[:MOST_PICTURES]})

    def _images(self) -> AuditImages:
        material = self.material
        if material.attacker is None or material.attacker_labels is None:
            raise AssertionError("a scenario with attacks reads images for the attacker")
        rows = self._target_rows(len(material.held_out))
        targets = material.held_out.pixels[rows]
        others = rows_without(material.attacker.pixels, targets)
        return AuditImages(
            targets=PlainImages(targets),
            target_labels=material.held_out_labels[rows],
            own=PlainImages(material.attacker.pixels[others]),
            own_labels=material.attacker_labels[others],
            classes=len(material.classes),
            data=f"{len(rows)} held-out images of {self.data_title}"[:200],
        )

    def _target_rows(self, count: int) -> Int64Array:
        return mixed(count, self.budget.targets, self.seed)

    @property
    def _preset(self) -> AuditPreset:
        if self.budget.attack_preset is None:
            raise AssertionError("a scale has a preset")
        return self.budget.attack_preset


def _second_part(on_progress: OnProgress) -> OnProgress:
    return lambda stage, part: on_progress(stage, _JUDGE_PART + (1 - _JUDGE_PART) * part)


def evenly(count: int, most: int) -> Int64Array:
    """Choose at most ``most`` of ``count`` rows at even distances: images lie class by class."""
    rows: Int64Array = np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)
    return rows


def mixed(count: int, most: int, seed: int) -> Int64Array:
    """Put such rows into a random order: some attacks are tried on the first few, which shall be of all classes."""
    return np.random.default_rng(seed).permutation(evenly(count, most))


def rows_without(images: UInt8Array, others: UInt8Array) -> Int64Array:
    """Rows of the images that are not among the others, byte for byte: data sets repeat themselves.

    Raises
    ------
    DataError
        If none is left.
    """
    known = {image.tobytes() for image in others}
    rows = np.flatnonzero([image.tobytes() not in known for image in images])
    if not len(rows):
        raise DataError(
            "all images of the attacker are among those that it attacks", hint="Name other data with --data."
        )
    return rows


def save_pictures(path: Path, pictures: Mapping[str, UInt8Array]) -> None:
    """Write pictures by name, in their order; this user alone may read them."""
    content = io.BytesIO()
    # NumPy takes names as keyword arguments, and a few are its own.
    numbered = {f"{number:03d}": pixels for number, pixels in enumerate(pictures.values())}
    np.savez_compressed(content, names=np.array(list(pictures)), **numbered)  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())


def load_pictures(path: Path) -> dict[str, UInt8Array]:
    """Read what ``save_pictures`` wrote; nothing if there is no file."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return {str(name): arrays[f"{number:03d}"] for number, name in enumerate(arrays["names"])}


def membership_rows(members: int, others: int) -> tuple[Int64Array, Int64Array]:
    """Choose as many training images as held-out ones."""
    count = min(members, others)
    return evenly(members, count), evenly(others, count)
