"""Steps use the memory of the step before again, and nobody keeps it when they are done."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppfed.services import child_environment, flower_environment

TRAINING = """
import json, resource, sys

import torch

from ppfed.networks.classifier import build_network
from ppfed.networks.config import NetworkConfig
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig

sys.path.append(sys.argv[1])
from placed_memory import anonymous_bytes

torch.set_num_threads(1)
network = build_network(NetworkConfig(classes=2, height=16, width=16, base_maps=4), 0)
images = ImageTensors(torch.zeros((512, 16, 16, 3), dtype=torch.uint8), torch.zeros(512, dtype=torch.int64))
trainer = Trainer(network, TrainingConfig(epochs=6, batch_size=256, learning_rate=0.01, seed=0), torch.device("cpu"))
faults, kept = [], []
for result in trainer.train_epochs(images, 0, 6):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    kept.append(anonymous_bytes())
kept.append(anonymous_bytes())
# A block as large as those of a step comes and goes as it does elsewhere.
block = torch.ones(64 << 20, dtype=torch.uint8)
kept.append(anonymous_bytes())
del block
kept.append(anonymous_bytes())
print(json.dumps({"faults": faults, "kept": kept}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at once")
@pytest.mark.parametrize(
    "environment",
    [child_environment(), flower_environment(Path("/none")), child_environment({"MALLOC_MMAP_THRESHOLD_": "0x100000"})],
    ids=["a process", "one of Flower's", "one that is told in hexadecimal"],
)
def test_steps_keep_memory_and_give_it_back_in_the_end(environment: dict[str, str]) -> None:
    """Flower's processes are told to give back more than others."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    # A step of 256 images makes 1 MiB of each of some twenty layers, forward and backward: 12,000 pages in a pass if it
    # keeps none. On a busy machine something else takes some now and then.
    assert min(np.diff(found["faults"])) < 500
    *_, training, after, with_block, without = (size / (1 << 20) for size in found["kept"])
    assert after < training - 20
    assert with_block > after + 60
    assert without < after + 5
