"""Batch norm over a batch that several processes share.

Each process has a part of the batch. Normalised by its own part's statistics, an image would be trained on differently
than by one process; so the statistics are those of the whole batch. ``torch.nn.SyncBatchNorm`` does that on GPUs and
only there; on the CPU the layer below does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class WholeBatchNorm2d(nn.BatchNorm2d):
    """What ``nn.BatchNorm2d`` computes of the processes' parts joined, to rounding: output, gradients, statistics.

    The gradients are those of the sum of all processes' losses. Parts may differ in size; none may be empty.

    Parameters
    ----------
    norm : nn.BatchNorm2d
        With parameters and running statistics, which are shared with the new layer.

    Raises
    ------
    ValueError
        If it has none, or averages its statistics without a momentum.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        if norm.momentum is None or not norm.affine or not norm.track_running_stats:
            raise ValueError("batch norm needs parameters, running statistics and a momentum")
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)
        self.train(norm.training)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape, where N is this process's part."""
        if not self.training:
            return super().forward(maps)
        # In float32 a count is exact up to 16 million values a channel, and off by rounding above.
        count = maps.new_full((1,), maps.numel() // maps.shape[1])
        summed = _sum_over_ranks(torch.cat([maps.sum((0, 2, 3)), count]))
        count = summed[-1].detach()
        mean = summed[:-1] / count
        # Deviations first, then their squares: the mean of squares less the square of the mean loses digits.
        centred = maps - mean[:, None, None]
        variance = _sum_over_ranks(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _SumOverRanks(torch.autograd.Function):
    """Sum over all processes. Each process's losses depend on the sum, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _sum_over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def normalise_whole_batches(network: nn.Module, device: torch.device) -> None:
    """Replace a network's batch norms, in place; parameters, statistics and names in its state stay.

    Parameters
    ----------
    network : nn.Module
        Not itself a batch norm.
    device : torch.device
        Where it trains.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, WholeBatchNorm2d(child))
