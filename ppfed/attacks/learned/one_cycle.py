"""How attacks train their networks: AdamW, with one cycle of the learning rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ignore_progress(_part: float) -> None:
    """Ignore progress."""


class OneCycle:
    """Takes a network's steps.

    Parameters
    ----------
    network : nn.Module
        On its device; put into training mode.
    learning_rate : float
        At the peak.
    steps : int
        Of the whole training.
    """

    def __init__(self, network: nn.Module, learning_rate: float, steps: int) -> None:
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, learning_rate, total_steps=steps)
        network.train()

    def step(self, loss: Tensor) -> None:
        """Go one step down a loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
