"""Runs one arm of a scenario under one seed, from images to a result.

An arm is described to the training code as a federation is (``FederationSettings``), so that centralized, pooled and
federated arms differ in their data and in who averages, and in nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from clients.prepared import Prepared
from coordinator.pooled import train_pooled
from coordinator.state import RoundRecord
from ppfed.atomic import write_atomic
from ppfed.attacks.membership import MembershipOutcome, losses, threshold_attack
from ppfed.ciphers.registry import Cipher, make_cipher
from ppfed.federation import CipherSettings, Exchange, FederationSettings
from ppfed.images.source import Split
from ppfed.images.types import ID_BYTES, EncryptedImages, Int64Array, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.leakage.record import LeakageRecord
from ppfed.model_folder import load_model
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.store import Shard, ShardStore, rows_per_shard
from ppfed.training.augment import Augmentation
from ppfed.training.loop import ImageTensors, epoch_generator, evaluate
from ppfed.training.settings import TrainingSettings
from scenarios.attacking import ArmAttack, membership_rows
from scenarios.declaration import MIXING, Arm, AugmentationPlace, Budget, Mode, Partition
from scenarios.material import Material
from scenarios.mixing import default_block, mix_blocks
from scenarios.plain import PlainControl
from scenarios.results import CurveRow, Result

WRONG_KEY_QUERIES = "queries under the wrong key"

_EXCHANGES = {
    Mode.POOLED: Exchange.IMAGES,
    Mode.UPDATES: Exchange.UPDATES,
    Mode.GRADIENTS: Exchange.GRADIENTS,
}
_NO_AUGMENTATION = {"shift": 0, "horizontal_flip": False}
_CLIENT_AUGMENTATION = 1 << 32
"""Added to the seed of augmentation at the client, so that it does not repeat the order of images."""
_MIXING = 1 << 33
"""Added to the seed of pixel block mixing, for the same reason."""
_ATTACKS_PART = 0.25
"""Of the time of training, as attacks count in the progress of an arm."""
_CURVE = TypeAdapter(list[CurveRow])


@dataclass(frozen=True)
class Progress:
    """How far an arm is.

    Attributes
    ----------
    done : float
        Passes over the images, with the part of the one at work; attacks count as some more.
    total : float
        All passes of the arm.
    accuracy : float or None
        The last one measured.
    stage : str
        The attack at work; empty in training.
    """

    done: float
    total: float
    accuracy: float | None
    stage: str = ""


def experiment_key(seed: int, number: int = 0) -> MasterKey:
    """Make a key for experiments. It is no secret: anyone who has the seed can make it, so that results repeat."""
    return MasterKey(hashlib.sha256(f"ppfed scenario, not a secret: seed {seed}, key {number}".encode()).digest())


class ArmRun:
    """One arm under one seed, in a folder of its own.

    Parameters
    ----------
    arm : Arm
    budget : Budget
    material : Material
        Of the arm's size.
    seed : int
        Of the network's weights, the order of images, the partition, the keys and the images' ids.
    folder : Path
        Checkpoints; a run that was interrupted goes on from the last one.
    device : torch.device
    tell : callable
        Called with the progress.
    data_title : str
        The data in words, without a path.
    compiled : bool
        In modes ``centralized`` and ``alone``: as ``Trainer`` takes it.
    """

    def __init__(
        self,
        arm: Arm,
        budget: Budget,
        material: Material,
        seed: int,
        folder: Path,
        device: torch.device,
        tell: Callable[[Progress], None],
        *,
        data_title: str = "a scenario",
        compiled: bool = False,
    ) -> None:
        self._arm = arm
        self._budget = budget
        self._material = material
        self._seed = seed
        self._folder = folder
        self._device = device
        self._tell = tell
        self._data_title = data_title
        self._compiled = compiled
        self._accuracy: float | None = None
        self._epochs = arm.epochs(budget)

    def run(self) -> Result:
        """Train and measure.

        Raises
        ------
        PPFedError
            If it cannot be done.
        """
        if self._arm.mode is Mode.ALONE:
            return self._alone()
        if self._arm.mode in _EXCHANGES:
            return self._federated()
        return self._centralized()

    def settings(self) -> FederationSettings:
        """Describe the arm as a federation."""
        arm, budget = self._arm, self._budget
        height, width, channels = arm.shape(budget)
        spec = arm.spec or PlainControl.spec
        augmentation = {} if arm.augmentation is AugmentationPlace.CLOUD else _NO_AUGMENTATION
        training = TrainingSettings(
            rounds=self._epochs // arm.local_epochs,
            local_epochs=arm.local_epochs,
            batch_size=budget.batch_size,
            learning_rate=arm.learning_rate or budget.learning_rate,
            schedule=arm.schedule or budget.schedule,
            nesterov=budget.nesterov,
            label_smoothing=arm.label_smoothing,
            adaptation=arm.adaptation,
            adaptation_kind=arm.adaptation_kind,
            features=arm.features,
            backbone=arm.backbone,
            padding=arm.padding,
            mirrored_views=arm.mirrored_views and arm.augmentation is not AugmentationPlace.NONE,
            average_passes=arm.average_passes,
            first_crop=arm.first_crop,
            alternate_flip=arm.alternate_flip,
            precision=arm.precision,
            base_maps=budget.base_maps,
            strategy=arm.strategy,
            update_format=arm.update_format,
            batch_norm=arm.batch_norm,
            seed=self._seed,
            **augmentation,
        )
        return FederationSettings(
            name=arm.slug[:64],
            exchange=_EXCHANGES.get(arm.mode, Exchange.IMAGES),
            owners=arm.owners,
            classes=self._material.classes,
            height=height,
            width=width,
            channels=channels,
            cipher=CipherSettings(name=spec.name, scope=spec.scope, colour_shuffle=spec.colour_shuffle),
            fingerprint=experiment_key(self._seed).fingerprint,
            training=training,
        )

    def _centralized(self) -> Result:
        owners = self._owners()
        (rows,) = owners
        images_of = self._images_of(rows)
        network, curve = self._train(images_of, self._folder, 0, self._epochs)
        return self._result(network, curve, owners, images_of(self._epochs - 1), self._uploaded_bytes(), 0)

    def _alone(self) -> Result:
        owners = self._owners()
        total = len(owners) * self._epochs
        curves: list[list[CurveRow]] = []
        accuracies: list[float] = []
        last: tuple[ImageClassifier, ImageTensors] | None = None
        for number, rows in enumerate(owners):
            images_of = self._images_of(rows)
            network, curve = self._train(images_of, self._folder / f"owner-{number}", number * self._epochs, total)
            last = network, images_of(self._epochs - 1)
            accuracies.append(_last_accuracy(curve))
            curves.append(curve)
        if last is None:
            raise AssertionError("an arm has an owner at least")
        first, seconds = curves[0], sum(row.seconds for curve in curves for row in curve)
        result = self._result(last[0], first, owners, last[1], 0, 0)
        return result.model_copy(
            update={
                "accuracy": float(np.mean(accuracies)),
                "owner_accuracies": tuple(accuracies),
                "seconds": seconds,
            }
        )

    def _federated(self) -> Result:
        from scenarios.simulated.simulation import simulate  # noqa: PLC0415

        settings = self.settings()
        owners = self._owners()
        held_out = self._held_out_parts(len(owners))
        prepared = {
            f"owner-{number:03d}": self._prepare(number, rows, held_out[number], settings)
            for number, rows in enumerate(owners)
        }

        def on_round(record: RoundRecord) -> None:
            self._accuracy = record.accuracy
            self._say(record.round * settings.training.local_epochs, self._epochs)

        outcome = simulate(settings, prepared, self._folder / "coordinator", self._device, on_round)
        model = load_model(outcome.model, self._device)
        curve = [_curve_row(record, settings.training.local_epochs) for record in outcome.rounds]
        shards = [shard for one in prepared.values() for shard in one.store.shards(Split.TRAIN)]
        members = ImageTensors.from_shards(shards, settings.shape, self._device)
        traffic = outcome.bytes_to_coordinator, outcome.bytes_from_coordinator
        return self._result(model.network, curve, owners, members, *traffic)

    def _train(
        self,
        images_of: Callable[[int], ImageTensors],
        folder: Path,
        done_before: int,
        total: int,
    ) -> tuple[ImageClassifier, list[CurveRow]]:
        settings = self.settings()
        network = build_network(settings.network_config(), self._seed)
        curve_file = folder / "curve.json"
        curve = {row.passes: row for row in _read_curve(curve_file)}
        passes = max(curve, default=0)

        def on_step(step: int, steps: int) -> None:
            self._say(done_before + passes + step / steps, total)

        held_out = self._held_out(experiment_key(self._seed))
        for record in train_pooled(
            network,
            images_of,
            held_out,
            settings,
            folder / "checkpoint",
            self._device,
            on_step,
            1,
            compiled=self._compiled,
        ):
            row = _curve_row(record, 1)
            curve[row.passes] = row
            passes = row.passes
            self._accuracy = record.accuracy
            write_atomic(curve_file, _CURVE.dump_json(list(curve.values())).decode())
            self._say(done_before + passes, total)
        return network, [curve[number] for number in sorted(curve)]

    def _result(
        self,
        network: ImageClassifier,
        curve: list[CurveRow],
        owners: list[Int64Array],
        members: ImageTensors,
        to_coordinator: int,
        from_coordinator: int,
    ) -> Result:
        """Measure what is measured of a trained network; ``members`` are images that it was trained on."""
        queries = {}
        if self._arm.wrong_key_owners:
            queries[WRONG_KEY_QUERIES] = evaluate(network, self._held_out(self._wrong_key())).accuracy
        return Result(
            arm=self._arm.name,
            seed=self._seed,
            accuracy=_last_accuracy(curve),
            held_out_images=len(self._material.held_out),
            query_accuracies=queries,
            curve=tuple(curve),
            seconds=sum(row.seconds for row in curve),
            bytes_to_coordinator=to_coordinator,
            bytes_from_coordinator=from_coordinator,
            owner_images=tuple(len(rows) for rows in owners),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            membership=self._membership(network, members),
            leakage=self._leakage() if self._is_attacked else None,
        )

    @property
    def _is_attacked(self) -> bool:
        return self._budget.attack and bool(self._arm.attacks)

    def _membership(self, network: ImageClassifier, members: ImageTensors) -> MembershipOutcome | None:
        """Tell training images from held-out ones by the network's loss on each; None where the training diverged."""
        others = self._held_out(experiment_key(self._seed))
        found = []
        for images, rows in zip((members, others), membership_rows(len(members), len(others)), strict=True):
            chosen = torch.from_numpy(rows).to(self._device)
            found.append(losses(network, ImageTensors(images.images[chosen], images.labels[chosen])))
        return threshold_attack(*found) if all(np.isfinite(one).all() for one in found) else None

    def _leakage(self) -> LeakageRecord:
        total = self._epochs

        def on_progress(stage: str, part: float) -> None:
            self._say(total * (1 + _ATTACKS_PART * part), total, stage)

        attack = ArmAttack(
            arm=self._arm,
            budget=self._budget,
            settings=self.settings(),
            material=self._material,
            data_title=self._data_title,
            seed=self._seed,
            device=self._device,
        )
        mixed = (
            self._mixed(np.arange(len(self._material.train), dtype=np.int64)) if self._arm.cipher == MIXING else None
        )
        return attack.measure(mixed, self._folder, on_progress)

    def _mixed(self, rows: Int64Array) -> UInt8Array:
        """Mix the blocks of an owner's training images."""
        pixels = self._material.train.pixels[rows]
        generator = np.random.default_rng(np.random.SeedSequence(_MIXING + self._seed))
        block = default_block(*pixels.shape[1:3])
        return mix_blocks(pixels, self._material.train_labels[rows], block=block, generator=generator)

    def _owners(self) -> list[Int64Array]:
        """Return each owner's rows of the training images."""
        labels = self._material.train_labels
        if self._arm.owners == 1:
            return [np.arange(len(labels), dtype=np.int64)]
        # flwr-datasets and Flower's simulation are an extra: arms with one owner do without.
        from scenarios.simulated.partition import partition  # noqa: PLC0415

        return partition(labels, self._arm.owners, Partition.parse(self._arm.partition), self._seed)

    def _held_out_parts(self, owners: int) -> list[Int64Array]:
        """Deal the held-out images out evenly: together they measure what every other arm is measured with."""
        rows = np.arange(len(self._material.held_out), dtype=np.int64)
        return [rows[number::owners] for number in range(owners)]

    def _wrong_key(self) -> MasterKey:
        return experiment_key(self._seed, 1)

    def _key_of(self, owner: int) -> MasterKey:
        return self._wrong_key() if owner < self._arm.wrong_key_owners else experiment_key(self._seed)

    def _cipher(self, key: MasterKey) -> Cipher:
        spec = self._arm.spec
        return PlainControl(key.fingerprint) if spec is None else make_cipher(spec, key)

    def _encrypt(
        self, images: PlainImages, key: MasterKey, split: Split, rows: Int64Array, epoch: int = 0
    ) -> EncryptedImages:
        """Encrypt images that stand in these rows; an image has the same id in every arm of a seed."""
        encrypted = self._cipher(key).encrypt(images, self._ids(split, epoch)[rows])
        # Nobody notices a wrong key: that is the experiment.
        agreed = experiment_key(self._seed).fingerprint
        return EncryptedImages(encrypted.pixels, encrypted.ids, encrypted.cipher, agreed)

    def _ids(self, split: Split, epoch: int) -> UInt8Array:
        count = len(self._material.train if split is Split.TRAIN else self._material.held_out)
        source = np.random.SeedSequence([self._seed, list(Split).index(split), epoch])
        return np.random.default_rng(source).integers(0, 256, (count, ID_BYTES), dtype=np.uint8)

    def _images_of(self, rows: Int64Array) -> Callable[[int], ImageTensors]:
        """Return what each pass trains on: the same images, or, where the client augments, fresh ones."""
        plain, labels = self._material.train.pixels[rows], self._material.train_labels[rows]
        key = experiment_key(self._seed)

        def augmented(epoch: int) -> ImageTensors:
            generator = epoch_generator(_CLIENT_AUGMENTATION + self._seed, epoch)
            moved = Augmentation()(torch.from_numpy(plain), generator).numpy()
            encrypted = self._encrypt(PlainImages(moved), key, Split.TRAIN, rows, epoch)
            return ImageTensors.from_numpy(encrypted.pixels, labels, self._device)

        if self._arm.augmentation is AugmentationPlace.CLIENT:
            return augmented
        if self._arm.cipher == MIXING:
            plain = self._mixed(rows)
        encrypted = self._encrypt(PlainImages(plain), key, Split.TRAIN, rows)
        images = ImageTensors.from_numpy(encrypted.pixels, labels, self._device)
        return lambda _epoch: images

    def _held_out(self, key: MasterKey) -> ImageTensors:
        material = self._material
        rows = np.arange(len(material.held_out), dtype=np.int64)
        encrypted = self._encrypt(material.held_out, key, Split.HELD_OUT, rows)
        return ImageTensors.from_numpy(encrypted.pixels, material.held_out_labels, self._device)

    def _prepare(self, number: int, rows: Int64Array, held_out: Int64Array, settings: FederationSettings) -> Prepared:
        """Write an owner's encrypted images as ``client join`` would."""
        material = self._material
        store = ShardStore(self._folder / "owners" / f"{number:03d}")
        train = self._encrypt(PlainImages(material.train.pixels[rows]), self._key_of(number), Split.TRAIN, rows)
        test = self._encrypt(
            PlainImages(material.held_out.pixels[held_out]), experiment_key(self._seed), Split.HELD_OUT, held_out
        )
        _write(store, Split.TRAIN, train, material.train_labels[rows], settings)
        _write(store, Split.HELD_OUT, test, material.held_out_labels[held_out], settings)
        return Prepared(store, len(rows), len(held_out), copies=1, bad=0, notes={})

    def _uploaded_bytes(self) -> int:
        """Count what owners upload: pixels, ids and labels; anew for each pass where they augment."""
        height, width, channels = self._material.train.shape
        each = height * width * channels + ID_BYTES + 8
        passes = self._epochs if self._arm.augmentation is AugmentationPlace.CLIENT else 1
        return each * (passes * len(self._material.train) + len(self._material.held_out))

    def _say(self, done: float, total: float, stage: str = "") -> None:
        with_attacks = total * (1 + _ATTACKS_PART) if self._is_attacked else total
        self._tell(Progress(done, with_attacks, self._accuracy, stage))


def _write(
    store: ShardStore, split: Split, images: EncryptedImages, labels: Int64Array, settings: FederationSettings
) -> None:
    step = rows_per_shard(settings.shape)
    for index, start in enumerate(range(0, len(labels), step)):
        rows = slice(start, start + step)
        store.write(split, index, Shard(images[rows], labels[rows]))


def _curve_row(record: RoundRecord, local_epochs: int) -> CurveRow:
    return CurveRow(
        passes=record.round * local_epochs,
        train_loss=record.train_loss,
        held_out_loss=record.held_out_loss,
        accuracy=record.accuracy,
        seconds=record.seconds,
    )


def _last_accuracy(curve: list[CurveRow]) -> float:
    accuracy = curve[-1].accuracy
    if accuracy is None:
        raise AssertionError("every scenario has held-out images")
    return accuracy


def _read_curve(path: Path) -> list[CurveRow]:
    return _CURVE.validate_json(path.read_bytes()) if path.exists() else []
