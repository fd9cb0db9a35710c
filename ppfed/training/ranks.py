"""Processes that train one network together: each computes on its part of every batch (torch.distributed).

Only tensors travel between them; collectives of objects would pickle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ppfed.errors import FederationError
from ppfed.networks.whole_batch_norm import normalise_whole_batches


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is. More than one need torch's process group, which is not made here.

    Attributes
    ----------
    rank : int
        From 0.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: it alone writes."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Choose this process's rows out of ``count``; the parts differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, which must ask for it in the same order."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def join(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Make a network of one process the same network in all.

        Parameters
        ----------
        network : nn.Module
            On ``device``. It takes the weights of the first process; its batch norms are replaced by such that
            normalise with the whole batch, and keep their parameters, statistics and names.
        device : torch.device

        Returns
        -------
        nn.Module
            What to call in place of ``network`` while training: after a backward pass the gradients of
            ``network`` are the means over all processes. With one process, ``network`` itself, untouched.
        """
        if self.size == 1:
            return network
        normalise_whole_batches(network, device)
        # The batch norms keep the same statistics everywhere: nothing to send before each step.
        return DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
        )

    def require_same(self, what: str, device: torch.device, *numbers: int) -> None:
        """Compare with the first process.

        Raises
        ------
        FederationError
            If this process has other numbers: they would wait for each other for ever.
        """
        if self.size == 1:
            return
        first = torch.tensor(numbers, dtype=torch.int64, device=device)
        dist.broadcast(first, src=0)
        if first.tolist() != list(numbers):
            raise FederationError(
                f"process {self.rank} of {self.size} sees other {what} ({numbers}) than the first ({first.tolist()})",
                hint="All machines need the same state folder, on a file system that they share.",
            )


ALONE = Ranks()
