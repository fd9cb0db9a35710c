"""Rounds in Flower's simulation, which takes many owners; and the same training without a federation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from clients.prepared import Prepared
from ppfed.federation import Exchange, FederationSettings
from ppfed.images.source import Split
from ppfed.networks.classifier import build_network
from ppfed.training.gradients import owner_offset
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig
from ppfed.training.settings import TrainingSettings
from scenarios.bench.measurement import seconds
from scenarios.bench.owner import FINGERPRINT, synthetic_store
from scenarios.simulated.simulation import simulate

_CPU = torch.device("cpu")
_CLASSES = 10
_SIDE = 32


def federation_settings(owners: int, training: TrainingSettings) -> FederationSettings:
    """Describe a federation of random 32x32 images in exchange ``updates``."""
    return FederationSettings(
        name="rounds",
        exchange=Exchange.UPDATES,
        owners=owners,
        classes=tuple(str(number) for number in range(_CLASSES)),
        height=_SIDE,
        width=_SIDE,
        fingerprint=FINGERPRINT,
        training=training,
    )


def prepare(folder: Path, settings: FederationSettings, images: int) -> dict[str, Prepared]:
    """Fill the stores of all owners with so many images each."""
    return {
        f"owner-{number:03d}": synthetic_store(folder / f"owner-{number:03d}", settings, images, number)
        for number in range(settings.owners)
    }


def simulated_s(
    folder: Path, settings: FederationSettings, owners: dict[str, Prepared], jobs: int | None = None
) -> tuple[float, ...]:
    """Seconds of each simulated round but for the first, in which processes start up; ``jobs`` as ``simulate`` has it.

    Raises
    ------
    PPFedError
        If Flower's simulation is not installed, or fails.
    """
    done = simulate(settings, owners, folder, _CPU, jobs=jobs)
    return tuple(record.seconds for record in done.rounds if record.round > 1)


def alone_s(settings: FederationSettings, owners: dict[str, Prepared]) -> tuple[float, ...]:
    """Seconds of the same local training, round by round and owner after owner, but for the first round."""
    data = {
        name: ImageTensors.from_shards(list(one.store.shards(Split.TRAIN)), settings.shape, _CPU)
        for name, one in owners.items()
    }
    network = build_network(settings.network_config(), settings.training.seed)
    epochs = settings.training.local_epochs

    def train(number: int) -> None:
        for name, images in data.items():
            trainer = Trainer(network, TrainingConfig.of(settings.training, owner_offset(name)), _CPU)
            for _ in trainer.train_epochs(images, (number - 1) * epochs, epochs):
                pass

    spent = [seconds(partial(train, number)) for number in range(1, settings.training.rounds + 1)]
    return tuple(spent[1:])
