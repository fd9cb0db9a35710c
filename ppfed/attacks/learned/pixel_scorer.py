"""A network that scores each pixel of images, and its training: what learned patterns and learned edges share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ppfed.attacks.learned.one_cycle import OneCycle
from ppfed.attacks.learned.unet import UNet, padded, unet_multiple
from ppfed.images.types import UInt8Array
from ppfed.training.loop import autocast


@dataclass(frozen=True)
class ScorerTraining:
    """What is spent on one network.

    Attributes
    ----------
    steps, batch_size : int
    learning_rate : float
        Of AdamW, at the peak of its one cycle.
    front_maps : int
        Of a 1x1 convolution before the U-Net.
    widths : tuple of int
        Feature maps of the U-Net.
    """

    steps: int
    batch_size: int
    learning_rate: float
    front_maps: int
    widths: tuple[int, ...]


class PixelScorer(nn.Module):
    """A 1x1 convolution and a U-Net.

    Parameters
    ----------
    channels : int
        Of the images.
    scores : int
        For each pixel.
    middle : float
        Of the range of values that it is shown.
    training : ScorerTraining
    """

    def __init__(self, channels: int, scores: int, middle: float, training: ScorerTraining) -> None:
        super().__init__()
        self.channels = channels
        self.middle = middle
        self.multiple = unet_multiple(training.widths)
        self.front = nn.Sequential(nn.Conv2d(channels, training.front_maps, 1), nn.ReLU(inplace=True))
        self.unet = UNet(training.front_maps, training.widths, scores)

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, C) uint8, sides multiples of ``multiple``, to (N, scores, H, W)."""
        scores: Tensor = self.unet(self.front(images.permute(0, 3, 1, 2).float() / self.middle - 1))
        return scores

    def score(self, images: UInt8Array) -> Tensor:
        """Score images of any size, (N, H, W, C), on the network's device: float32 (N, scores, H, W)."""
        height, width = images.shape[1:3]
        device = next(self.parameters()).device
        with autocast(device):
            scores: Tensor = self(torch.from_numpy(padded(images, self.multiple)).to(device))
        return scores[..., :height, :width].float()


def train_scorer(
    images: UInt8Array,
    targets: Sequence[npt.NDArray[np.generic]],
    loss: Callable[..., Tensor],
    training: ScorerTraining,
    *,
    scores: int,
    middle: float,
    device: torch.device,
    seed: int,
    randomness: torch.Generator,
    on_progress: Callable[[float], None],
) -> PixelScorer:
    """Train a network on batches drawn at random: AdamW, one cycle. Mirror images are as good, and cost nothing.

    Parameters
    ----------
    images : uint8 array, (N, H, W, C)
    targets : sequence of arrays, (N, H, W)
    loss : callable
        Called with the scores of a batch, (B, scores, H, W), and with its part of each target, as tensors.
    training : ScorerTraining
    scores, middle
        As in ``PixelScorer``.
    device : torch.device
    seed : int
        Of the first weights.
    randomness : torch.Generator
        Draws batches.
    on_progress : callable
        Called with the part done, 0 to 1.

    Returns
    -------
    PixelScorer
        In evaluation mode, on the device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PixelScorer(images.shape[3], scores, middle, training)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    cycle = OneCycle(network, training.learning_rate, training.steps)
    for step in range(training.steps):
        rows = torch.randint(len(images), (training.batch_size,), generator=randomness).numpy()
        along = slice(None, None, -1 if step % 2 else 1)
        wanted = [torch.from_numpy(np.ascontiguousarray(one[rows][:, :, along])).to(device) for one in targets]
        cycle.step(loss(network.score(images[rows][:, :, along]), *wanted))
        on_progress((step + 1) / training.steps)
    network.eval()
    return network
