"""``torchrun -m coordinator.rank STATE``: one of several processes that train on the images of all owners."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from coordinator.initial import initial_network
from coordinator.pooled import pooled_images, train_pooled
from coordinator.processes import Job, read_job, report, tensor_store
from coordinator.state import StateFolder
from coordinator.torchrun import follow_parent
from ppfed.training.ranks import Ranks


@record
def main() -> None:
    """Train what the state folder's job says, as the process that torchrun's environment names."""
    follow_parent()
    state = StateFolder(Path(sys.argv[1]))
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    job = read_job(state)
    device = _own_device(job.device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(str(tensor_store(state)), ranks.size),  # type: ignore[attr-defined]
        rank=ranks.rank,
        world_size=ranks.size,
    )
    _train(state, job, device, ranks)
    dist.destroy_process_group()


def _own_device(kind: str) -> torch.device:
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    # Else every process would also put things on the first GPU.
    torch.cuda.set_device(device)
    return device


def _train(state: StateFolder, job: Job, device: torch.device, ranks: Ranks) -> None:
    settings = state.plan().settings
    images = pooled_images(state, job.owners, device, job.placement, ranks)
    for one in train_pooled(
        initial_network(state),
        lambda _epoch: images.train,
        images.held_out,
        settings,
        state.checkpoint,
        device,
        lambda _step, _steps: None,
        len(job.owners),
        ranks,
    ):
        if ranks.first:
            report(state, one)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. While Python takes a process down, gloo aborts it now and then, as if training had failed.
    os._exit(0)
