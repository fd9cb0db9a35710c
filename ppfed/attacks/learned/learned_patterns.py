"""Learned patterns: what the colours of a pixel are to each other, by a network that is shown what the cipher leaves.

The *pattern* of a pixel is the choice of its masks up to what all its values may be XORed with (``values/unfold.py``
has the word). Of NP it is which colours are on the same side of mid-grey, of NP twice in which quarter of their range
each lies beside the first. A negative has the pattern of its picture, so that nothing has to be guessed that nothing
tells, and a U-Net can say it pixel by pixel. What is left of each pixel, learned edges settle (``learned_edges.py``).

It takes pictures of the attacker's own and no key: folded values are the same whatever the key. Ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ppfed.attacks.learned.one_cycle import OneCycle, ignore_progress
from ppfed.attacks.learned.unet import UNet, padded, unet_multiple
from ppfed.images.types import UInt8Array
from ppfed.training.loop import autocast, epoch_generator

_PART_PIXELS = 100 * 32 * 32
"""Of images that are worked on at once."""


@dataclass(frozen=True)
class Leaves:
    """What NP or NP twice leaves of values.

    Attributes
    ----------
    constants : tuple of int
        What a value may have been XORed with: a group under XOR in the order of ``Group.of_xor``.
    any_order : bool
        Whether the colours of each pixel were permuted too.

    Raises
    ------
    ValueError
        If the constants are no such group.
    """

    constants: tuple[int, ...]
    any_order: bool

    def __post_init__(self) -> None:
        every = self.constants
        if any(every[a] ^ every[b] != every[a ^ b] for a in range(len(every)) for b in range(a)):
            raise ValueError("the constants must be a group under XOR, numbered by its bits")

    def of(self, images: UInt8Array) -> UInt8Array:
        """Fold values, and sort them where their order is not known: plain and encrypted images give the same.

        Parameters
        ----------
        images : uint8 array, (N, H, W, C)

        Returns
        -------
        uint8 array, (N, H, W, C)
            The least that each value may be: at most 127, and of NP twice 63.
        """
        folded = self._least(images)
        return np.sort(folded, axis=3) if self.any_order else folded

    def masks(self, plain: UInt8Array) -> UInt8Array:
        """Tell which constant brings back each value of ``of(plain)``: numbers, (N, H, W, C)."""
        folded = self._least(plain)
        numbers = self._numbers[folded ^ plain]
        return np.take_along_axis(numbers, folded.argsort(axis=3, kind="stable"), axis=3) if self.any_order else numbers

    def _least(self, images: UInt8Array) -> UInt8Array:
        least = images.copy()
        for one in self.constants:
            np.minimum(least, images ^ np.uint8(one), out=least)
        return least

    @cached_property
    def _numbers(self) -> UInt8Array:
        numbers = np.zeros(256, dtype=np.uint8)
        numbers[list(self.constants)] = range(len(self.constants))
        return numbers


class PatternNetwork(nn.Module):
    """From what the cipher leaves of images to a score for each pattern of each pixel."""

    def __init__(self, channels: int, leaves: Leaves, front_maps: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.multiple = unet_multiple(widths)
        self.middle = 127.5 / len(leaves.constants)
        self.front = nn.Sequential(nn.Conv2d(channels, front_maps, 1), nn.ReLU(inplace=True))
        self.unet = UNet(front_maps, widths, len(leaves.constants) ** (channels - 1))

    def forward(self, left: Tensor) -> Tensor:
        """(N, H, W, C) uint8, sides multiples of ``multiple``, to (N, patterns, H, W)."""
        scores: Tensor = self.unet(self.front(left.permute(0, 3, 1, 2).float() / self.middle - 1))
        return scores


@dataclass(frozen=True, eq=False)
class LearnedPatterns:
    """A trained network.

    Attributes
    ----------
    leaves : Leaves
    network : PatternNetwork or None
        In evaluation mode, on its device. None for grey images, of which there is one pattern.
    """

    leaves: Leaves
    network: PatternNetwork | None

    @torch.no_grad()
    def settle(self, images: UInt8Array) -> UInt8Array:
        """Settle the pattern of each pixel.

        Parameters
        ----------
        images : uint8 array, (N, H, W, C)
            Ciphertexts, or anything else that leaves the same.

        Returns
        -------
        uint8 array, (N, H, W, C)
            Of each pixel, all values have to be XORed with one constant yet; colours are in the order of ``Leaves``.
        """
        left = self.leaves.of(images)
        if self.network is None:
            return left
        height, width, channels = left.shape[1:]
        device = next(self.network.parameters()).device
        with autocast(device):
            scores = self.network(torch.from_numpy(padded(left, self.network.multiple)).to(device))
        patterns = scores[..., :height, :width].argmax(dim=1).cpu().numpy()
        constants = np.array(self.leaves.constants, dtype=np.uint8)
        places = len(constants) ** np.arange(channels - 1)
        settled = left.copy()
        settled[..., 1:] ^= constants[patterns[..., None] // places % len(constants)]
        return settled


def train_patterns(
    plain: UInt8Array,
    leaves: Leaves,
    *,
    front_maps: int,
    widths: tuple[int, ...],
    steps: int,
    batch_size: int,
    learning_rate: float,
    device: torch.device,
    seed: int,
    on_progress: Callable[[float], None] = ignore_progress,
) -> LearnedPatterns:
    """Train a network to tell patterns: AdamW, one cycle, cross-entropy.

    Parameters
    ----------
    plain : uint8 array, (N, H, W, C)
        The attacker's own images, one at least.
    leaves : Leaves
    front_maps : int
        Of a 1x1 convolution before the U-Net.
    widths : tuple of int
        Feature maps of the U-Net.
    steps, batch_size : int
    learning_rate : float
        At the peak of its cycle.
    device : torch.device
    seed : int
        Of the first weights and the order of training.
    on_progress : callable
        Called with the part done, 0 to 1.

    Returns
    -------
    LearnedPatterns
    """
    channels = plain.shape[3]
    if channels == 1:
        return LearnedPatterns(leaves, None)
    parts = [plain[rows] for rows in in_parts(plain)]
    left = np.concatenate([leaves.of(part) for part in parts])
    wanted = np.concatenate([_patterns(leaves.masks(part), len(leaves.constants)) for part in parts])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PatternNetwork(channels, leaves, front_maps, widths)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    randomness = epoch_generator(seed, 1)
    training = OneCycle(network, learning_rate, steps)
    height, width = left.shape[1:3]
    for step in range(steps):
        rows = torch.randint(len(left), (batch_size,), generator=randomness).numpy()
        # Mirror images are as good, and cost nothing.
        along = slice(None, None, -1 if step % 2 else 1)
        shown, right = padded(left[rows][:, :, along], network.multiple), wanted[rows][:, :, along].astype(np.int64)
        with autocast(device):
            scores = network(torch.from_numpy(shown).to(device))
        scores = scores[..., :height, :width].float()
        training.step(nn.functional.cross_entropy(scores, torch.from_numpy(right).to(device)))
        on_progress((step + 1) / steps)
    network.eval()
    return LearnedPatterns(leaves, network)


def in_parts(images: UInt8Array) -> list[slice]:
    """Cut images, (N, H, W, C), into parts that need little memory: rows of each."""
    batch = max(1, _PART_PIXELS // int(np.prod(images.shape[1:3])))
    return [slice(start, start + batch) for start in range(0, len(images), batch)]


def _patterns(masks: UInt8Array, constants: int) -> UInt8Array:
    """Give each pixel's pattern its number: (N, H, W, C) to (N, H, W)."""
    places = (constants ** np.arange(masks.shape[3] - 1)).astype(np.uint8)
    numbers: UInt8Array = ((masks[..., 1:] ^ masks[..., :1]) * places).sum(axis=3, dtype=np.uint8)
    return numbers
