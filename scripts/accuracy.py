"""Accuracy of the cipher's variants under the one training loop, on one machine.

    python scripts/accuracy.py --data CIFAR_DIR --images 20000 --epochs 10 --base-maps 16

writes one JSON object a line for each arm to ``--out`` and prints a table. CIFAR_DIR is any source that ppfed reads
with a held-out split; the first images of each class are used.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.images.open import open_source
from ppfed.images.source import LoadReport, Split
from ppfed.images.types import Int64Array, PlainImages, UInt8Array
from ppfed.keys.master import MasterKey
from ppfed.network import NetworkConfig, build_network
from ppfed.training import ImageTensors, Trainer, TrainingConfig, evaluate, pick_device


@dataclass(frozen=True)
class Arm:
    """One row: how images are encrypted (None: not at all), and the adaptation network's feature maps."""

    cipher: CipherSpec | None
    adaptation: tuple[int, ...]

    def __str__(self) -> str:
        cipher = "plain" if self.cipher is None else f"NP {self.cipher.scope}"
        shuffle = " + shuffle" if self.cipher is not None and self.cipher.colour_shuffle else ""
        maps = "-".join(map(str, self.adaptation))
        return f"{cipher}{shuffle}, {f'adaptation {maps}' if maps else 'no adaptation'}"


def arms() -> list[Arm]:
    """List plain images and the four variants of the cipher, each without and with the adaptation network."""
    ciphers = [None] + [CipherSpec(scope=scope, colour_shuffle=shuffle) for scope in Scope for shuffle in (False, True)]
    return [Arm(cipher, maps) for cipher in ciphers for maps in ((), (8, 32))]


def read(data: Path, split: Split, per_class: int | None, size: int) -> tuple[UInt8Array, Int64Array, tuple[str, ...]]:
    """Read the first images of each class, (N, size, size, 3)."""
    source = open_source(data)
    report = LoadReport()
    batches = list(source.read(split, size=(size, size), channels=3, report=report))
    pixels = np.concatenate([batch.images.pixels for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    if per_class is not None:
        rows = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(len(source.classes))])
        pixels, labels = pixels[rows], labels[rows]
    return pixels, labels, source.classes


def main() -> None:
    """Run every arm that is not in ``--out`` yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--base-maps", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=TrainingConfig().learning_rate)
    parser.add_argument("--arms", default="", help="run only arms whose name holds this text")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("accuracy.jsonl"))
    options = parser.parse_args()
    device = pick_device(options.device)

    classes = open_source(options.data).classes
    pixels, labels, _ = read(options.data, Split.TRAIN, options.images // len(classes), options.size)
    test_pixels, test_labels, _ = read(options.data, Split.HELD_OUT, None, options.size)
    key = MasterKey.generate()
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for arm in arms():
        if options.arms not in str(arm) or any(row["arm"] == str(arm) and row["seed"] == options.seed for row in done):
            continue
        train, test = pixels, test_pixels
        if arm.cipher is not None:
            cipher = make_cipher(arm.cipher, key)
            train, test = (cipher.encrypt(PlainImages(part)).pixels for part in (train, test))
        config = NetworkConfig(len(classes), options.size, options.size, 3, arm.adaptation, options.base_maps)
        network = build_network(config, options.seed)
        training = TrainingConfig(epochs=options.epochs, seed=options.seed, learning_rate=options.learning_rate)
        trainer = Trainer(network, training, device)
        started = time.monotonic()
        results = list(trainer.train_epochs(ImageTensors.from_numpy(train, labels, device), 0, options.epochs))
        evaluation = evaluate(network, ImageTensors.from_numpy(test, test_labels, device))
        row = {
            "arm": str(arm),
            "accuracy": evaluation.accuracy,
            "train_loss": results[-1].loss,
            "seconds": round(time.monotonic() - started, 1),
            "seed": options.seed,
            "images": len(labels),
            "test_images": len(test_labels),
            "epochs": options.epochs,
            "base_maps": options.base_maps,
            "learning_rate": options.learning_rate,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        done.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + os.linesep)
    table = Table("arm", "test accuracy", "seconds")
    for row in done:
        table.add_row(row["arm"], f"{row['accuracy']:.2%}", f"{row['seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
