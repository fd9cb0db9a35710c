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
from torch import nn

from ppfed.attacks.learned.one_cycle import ignore_progress
from ppfed.attacks.learned.pixel_scorer import PixelScorer, ScorerTraining, train_scorer
from ppfed.images.types import UInt8Array
from ppfed.training.loop import epoch_generator

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


@dataclass(frozen=True, eq=False)
class LearnedPatterns:
    """A trained network.

    Attributes
    ----------
    leaves : Leaves
    network : PixelScorer or None
        In evaluation mode, on its device. None for grey images, of which there is one pattern.
    """

    leaves: Leaves
    network: PixelScorer | None

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
        patterns = self.network.score(left).argmax(dim=1).cpu().numpy()
        constants = np.array(self.leaves.constants, dtype=np.uint8)
        places = len(constants) ** np.arange(left.shape[3] - 1)
        settled = left.copy()
        settled[..., 1:] ^= constants[patterns[..., None] // places % len(constants)]
        return settled


def train_patterns(
    plain: UInt8Array,
    leaves: Leaves,
    training: ScorerTraining,
    *,
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
    training : ScorerTraining
    device : torch.device
    seed : int
        Of the first weights and the order of training.
    on_progress : callable
        Called with the part done, 0 to 1.

    Returns
    -------
    LearnedPatterns
    """
    channels, constants = plain.shape[3], len(leaves.constants)
    if channels == 1:
        return LearnedPatterns(leaves, None)
    parts = [plain[rows] for rows in in_parts(plain)]
    network = train_scorer(
        np.concatenate([leaves.of(part) for part in parts]),
        [np.concatenate([_patterns(leaves.masks(part), constants) for part in parts])],
        lambda scores, patterns: nn.functional.cross_entropy(scores, patterns.long()),
        training,
        scores=constants ** (channels - 1),
        middle=127.5 / constants,
        device=device,
        seed=seed,
        randomness=epoch_generator(seed, 1),
        on_progress=on_progress,
    )
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
