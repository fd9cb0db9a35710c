"""A batch norm and a batch for it; as a script, one of several processes that share them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from ppfed.errors import FederationError
from ppfed.networks.whole_batch_norm import normalise_whole_batches
from ppfed.training.ranks import Ranks

CPU = torch.device("cpu")
SIZE = 3
COUNT = 7
"""Images in the batch: no multiple of the number of processes."""


def case() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network of one batch norm, its input, and the gradient of a loss with respect to its output."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    norm = nn.BatchNorm2d(4).double()
    state = {"weight": draw(4), "bias": draw(4), "running_mean": draw(4), "running_var": draw(4).square()}
    norm.load_state_dict({**state, "num_batches_tracked": torch.tensor(3)})
    # Far from zero, where squares lose digits.
    return nn.Sequential(norm), draw(COUNT, 4, 5, 6) + 100, draw(COUNT, 4, 5, 6)


def results(network: nn.Sequential, maps: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Output, gradients, statistics and the output in evaluation."""
    maps.requires_grad_()
    out = network(maps)
    (out * gradient).sum().backward()
    found = {"out": out, "maps": maps.grad, "weight": network[0].weight.grad, "bias": network[0].bias.grad}
    found |= {f"state.{name}": tensor for name, tensor in network.state_dict().items()}
    found["evaluated"] = network.eval()(maps)
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(rank, SIZE)
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    network, maps, gradient = case()
    normalise_whole_batches(network, CPU)
    part = ranks.part(COUNT)
    found = results(network, maps[part].clone(), gradient[part])
    found["summed"] = ranks.sum(torch.tensor([rank, 1]))
    ranks.require_same("numbers", CPU, 4, 5)
    try:
        ranks.require_same("numbers", CPU, 4, rank)
    except FederationError:
        found["refused"] = torch.ones(1)
    save_file(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
