"""A data owner whose images are random numbers: ``python -m scenarios.bench.upload.owner INVITE FOLDER SHARDS SEED``.

It is the owner of ``ppfed client join`` from the moment its images are encrypted: enrolment, SuperNode, ClientApp. The
cipher has its own section of the benchmark.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from clients.join import make_private, serve, store_folder
from clients.preparation import Prepared
from ppfed.federation import Invite
from ppfed.images.source import Split
from ppfed.images.types import ID_BYTES, EncryptedImages
from ppfed.store import Shard, ShardStore, rows_per_shard
from ppfed.training import Evaluation

FINGERPRINT = "0123456789abcdef"
"""Of no key: there is none."""


class NoDisplay:
    """Shows nothing."""

    def shard_sent(self, number: int, total: int, size_bytes: int) -> None:
        """Do nothing."""

    def round_started(self, number: int, rounds: int, evaluation: Evaluation) -> None:
        """Do nothing."""

    def step(self, done: int, steps: int) -> None:
        """Do nothing."""

    def round_finished(self, number: int, rounds: int, train_loss: float) -> None:
        """Do nothing."""


def synthetic_store(folder: Path, invite: Invite, shards: int, seed: int) -> Prepared:
    """Fill a store with full shards of random images."""
    settings = invite.federation
    rows, generator, store = rows_per_shard(settings.shape), np.random.default_rng(seed), ShardStore(folder)
    for index in range(shards):
        pixels = np.frombuffer(generator.bytes(rows * int(np.prod(settings.shape))), np.uint8)
        ids = np.frombuffer(generator.bytes(rows * ID_BYTES), np.uint8).reshape(rows, ID_BYTES)
        images = EncryptedImages(pixels.reshape(rows, *settings.shape), ids, settings.cipher.spec, FINGERPRINT)
        labels = generator.integers(0, len(settings.classes), rows, dtype=np.int64)
        store.write(Split.TRAIN, index, Shard(images, labels))
    return Prepared(store, rows * shards, 0, 1, 0, {})


def main() -> None:
    """Join, answer, and end when the federation ends."""
    invite, folder = Invite.read(Path(sys.argv[1])), Path(sys.argv[2])
    make_private(folder)
    prepared = synthetic_store(store_folder(folder), invite, int(sys.argv[3]), int(sys.argv[4]))
    serve(invite, FINGERPRINT, prepared, folder, torch.device("cpu"), NoDisplay(), print)


if __name__ == "__main__":
    main()
