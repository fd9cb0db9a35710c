"""``placed_memory.py STORE PLACEMENT``: train on images placed so, and print by how much the memory grew at most."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from ppfed.store import ShardStore
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig, evaluate
from ppfed.training.placement import place_images
from ppfed.training.settings import DataPlacement

CPU = torch.device("cpu")
SHAPE = (64, 64, 3)


class Mean(nn.Module):
    """As little network as there can be."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(images.float().mean((1, 2)))


def anonymous_bytes() -> int:
    """Memory that is no page of a file: those the system takes back when it likes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main(folder: Path, placement: DataPlacement) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(Mean(), TrainingConfig(epochs=1, batch_size=128), CPU)
    few = ImageTensors(torch.zeros(512, *SHAPE, dtype=torch.uint8), torch.zeros(512, dtype=torch.int64))
    # What torch itself takes for steps of this size is not counted.
    list(trainer.train_epochs(few, 0, 1))
    evaluate(trainer.network, few)
    before = most = anonymous_bytes()

    def on_step(_step: int, _steps: int) -> None:
        nonlocal most
        most = max(most, anonymous_bytes())

    images = place_images([ShardStore(folder)], SHAPE, CPU, placement)
    for _ in trainer.train_epochs(images.train, 0, 1, on_step):
        pass
    evaluate(trainer.network, images.train)
    on_step(0, 0)
    print(json.dumps({"bytes": most - before, "images": len(images.train)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), DataPlacement(sys.argv[2]))
