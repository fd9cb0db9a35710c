"""A data owner whose images are random numbers: ``python -m scenarios.bench.owner INVITE FOLDER IMAGES SEED``.

It is the owner of ``ppfed client join`` from the moment its images are encrypted: enrolment, SuperNode, ClientApp. The
cipher has its own section of the benchmark.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from clients.join import make_private, serve, store_folder
from clients.prepared import Prepared
from ppfed.federation import FederationSettings, Invite
from ppfed.images.source import Split
from ppfed.images.types import ID_BYTES, EncryptedImages
from ppfed.store import Shard, ShardStore, rows_per_shard
from ppfed.training.loop import Evaluation

FINGERPRINT = "0123456789abcdef"
"""Of no key: there is none."""

_COMPUTE = "compute.jsonl"


class Clock:
    """Shows nothing, and writes down the processor time of each round's local training.

    Parameters
    ----------
    folder : Path
        The owner's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / _COMPUTE
        self._began_s = 0.0

    def shard_sent(self, number: int, total: int, size_bytes: int) -> None:
        """Do nothing."""

    def round_started(self, number: int, rounds: int, evaluation: Evaluation) -> None:  # noqa: ARG002
        """Start the clock."""
        # Of all threads, and not of others that use the same cores.
        self._began_s = time.process_time()

    def step(self, done: int, steps: int) -> None:
        """Do nothing."""

    def round_finished(self, number: int, rounds: int, train_loss: float) -> None:  # noqa: ARG002
        """Write what the clock shows."""
        record = {"round": number, "seconds": time.process_time() - self._began_s}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def compute_s(folder: Path) -> dict[int, float]:
    """Read the processor seconds of an owner's local training, by round; empty where it has not trained."""
    path = folder / _COMPUTE
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {record["round"]: record["seconds"] for record in records}


def synthetic_store(folder: Path, settings: FederationSettings, images: int, seed: int) -> Prepared:
    """Fill a store with random images to train on, in full shards but for the last."""
    generator, store = np.random.default_rng(seed), ShardStore(folder)
    for index, start in enumerate(range(0, images, rows_per_shard(settings.shape))):
        rows = min(rows_per_shard(settings.shape), images - start)
        pixels = np.frombuffer(generator.bytes(rows * int(np.prod(settings.shape))), np.uint8)
        ids = np.frombuffer(generator.bytes(rows * ID_BYTES), np.uint8).reshape(rows, ID_BYTES)
        encrypted = EncryptedImages(pixels.reshape(rows, *settings.shape), ids, settings.cipher.spec, FINGERPRINT)
        labels = generator.integers(0, len(settings.classes), rows, dtype=np.int64)
        store.write(Split.TRAIN, index, Shard(encrypted, labels))
    return Prepared(store, images, 0, 1, 0, {})


def main() -> None:
    """Join, answer, and end when the federation ends."""
    invite, folder = Invite.read(Path(sys.argv[1])), Path(sys.argv[2])
    make_private(folder)
    prepared = synthetic_store(store_folder(folder), invite.federation, int(sys.argv[3]), int(sys.argv[4]))
    serve(invite, FINGERPRINT, prepared, folder, torch.device("cpu"), Clock(folder), print)


if __name__ == "__main__":
    main()
