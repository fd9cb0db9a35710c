"""Learned seams: the jigsaw puzzle solver with a network's word on which blocks are neighbours.

The classical solver (``edges.py``) compares what two blocks predict at their seam by one cost that was made by hand.
Here filters across the seam are learned, with whatever else a few pixels on both sides tell, such as the traces of a
JPEG file: from pairs of blocks of the attacker's own pictures a small network learns how likely two blocks are
neighbours. Search and pictures stay the solver's: blocks are moved, never painted.

What ciphers do to blocks leaves the features as they are: filters are squared and summed over the channels' differences
from their mean, over both directions along the seam, and taken from both sides alike. So nothing is encrypted to
learn.

Ours, after Sholomon, David and Netanyahu, "DNN-Buddies", ICANN 2016, who let a network confirm pairs of a solver.
Whoever measures with it must train on other images than it restores; nothing here can check that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ppfed.attacks.blocks.cutting import cut
from ppfed.attacks.blocks.edges import COLOURS, MISFIT, STEP, Float32Array, IndexArray, Variants, relative, seam_costs
from ppfed.attacks.learned.one_cycle import OneCycle, ignore_progress
from ppfed.images.types import UInt8Array
from ppfed.training.loop import epoch_generator

_MOST = 3.0
"""Pairs of sides whose hand-made cost is greater than this are no neighbours: 2 of 1,000 true ones are."""
_TRIED = 8
"""So many pairs of sides for each pair of blocks, the cheapest by the hand-made cost, are shown to the network."""
_HARD, _OTHERS = 700, 500
"""Of the wrong pairs of a picture, so many of the cheapest are learned from, and so many of the others."""
_SURPRISE = 12.0
"""Natural logarithm of the odds beyond which one seam is as wrong as another."""
_NOISE = 0.3
"""Squared grey levels added to every filter's answer: smaller ones say nothing."""
_BATCH = 4096


@dataclass(frozen=True)
class SeamsPreset:
    """What is spent on learned seams.

    Attributes
    ----------
    name : str
    images : int
        Most images of the attacker's own that are used.
    steps : int
        Of the optimizer.
    batch_size : int
        Pairs of blocks.
    learning_rate : float
        Of AdamW, at the peak of its one cycle.
    filters : int
        Of one row of pixels, and as many of two rows, for brightness and for colours.
    maps : int
        Of the hidden layers.
    """

    name: str
    images: int
    steps: int
    batch_size: int = 3072
    learning_rate: float = 1e-2
    filters: int = 12
    maps: int = 48


QUICK = SeamsPreset("quick", images=100, steps=300, batch_size=1024)
"""Seconds: shows that the attack works, not how well."""
CPU = SeamsPreset("cpu", images=1500, steps=1500)
"""Two minutes on one core with images of 32x32, one to two seconds for each image that is restored."""
GPU = SeamsPreset("gpu", images=5000, steps=10_000, batch_size=8192, filters=24, maps=128)
"""Minutes on one GPU."""


class SeamNetwork(nn.Module):
    """From two blocks side by side to the logarithm of the odds that they are neighbours."""

    def __init__(self, block_px: int, channels: int, preset: SeamsPreset) -> None:
        super().__init__()
        self.channels = channels
        across = 2 * block_px
        kinds = 1 if channels == 1 else 2
        self.rows = nn.Parameter(0.3 * torch.randn(kinds, preset.filters, 1, across))
        self.squares = nn.Parameter(0.3 * torch.randn(kinds, preset.filters, 2, across))
        with torch.no_grad():
            # A good start: what the classical cost compares.
            self.rows[:, 0] = 0
            self.rows[:, 0, 0, block_px - 2 : block_px + 2] = torch.tensor([-STEP, 1 + STEP, -1 - STEP, STEP])
        features = 4 * kinds * preset.filters + 1
        self.norm = nn.BatchNorm1d(features)
        self.layers = nn.Sequential(
            nn.Linear(features, preset.maps),
            nn.ReLU(inplace=True),
            nn.Linear(preset.maps, preset.maps),
            nn.ReLU(inplace=True),
            nn.Linear(preset.maps, 1),
        )

    def forward(self, pairs: Tensor, classical: Tensor) -> Tensor:
        """Judge.

        Parameters
        ----------
        pairs : uint8 tensor, (N, P, 2 P, C)
            Rows along the seam; columns from one block's far side to the other's, the seam in the middle.
        classical : float tensor, (N,)
            Their hand-made costs, which know what else would fit.

        Returns
        -------
        float tensor, (N,)
        """
        values = pairs.permute(0, 3, 1, 2).float()
        brightness = values.mean(dim=1, keepdim=True)
        kinds = (brightness - 127.5,) if self.channels == 1 else (brightness - 127.5, values - brightness)
        found = [
            told
            for number, kind in enumerate(kinds)
            for filters in (self.rows[number], self.squares[number])
            for told in _answers(kind, filters)
        ]
        scores: Tensor = self.layers(self.norm(torch.cat([*found, classical[:, None]], dim=1)))[:, 0]
        return scores


def _answers(values: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Square what filters (F, rows, 2 P) see in values (N, C, P, 2 P), sum, and tell both sides apart no more."""
    high = filters.shape[1]
    windows = values.unfold(2, high, 1).transpose(3, 4).flatten(3).flatten(1, 2)

    def seen(one: Tensor) -> Tensor:
        either = [one] if high == 1 else [one, one.flip(1)]
        return torch.stack([(windows @ way.flatten(1).T).square().mean(dim=1) for way in either]).sum(0)

    first, second = seen(filters), seen(filters.flip(2))
    return (first + second + _NOISE).log(), (first + _NOISE).log() + (second + _NOISE).log()


@dataclass(frozen=True, eq=False)
class LearnedSeams:
    """A trained network.

    Attributes
    ----------
    network : SeamNetwork
        In evaluation mode, on its device.
    """

    network: SeamNetwork

    @torch.no_grad()
    def costs(self, blocks: UInt8Array, variants: Variants) -> Float32Array:
        """Compute what it costs to put a side of one block against a side of another, for ``jigsaw.assemble``.

        Parameters
        ----------
        blocks : uint8 array, (1, B, P, P, C)
            Of one image: what several have in common at a seam the classical cost knows how to pool.
        variants : Variants

        Returns
        -------
        float32 array, as from ``relative``

        Raises
        ------
        ValueError
            If there are several images, or other channels than were trained on.
        """
        if len(blocks) != 1:
            raise ValueError(f"learned seams are of one image, not {len(blocks)}")
        if blocks.shape[4] != self.network.channels:
            raise ValueError(f"trained on {self.network.channels} channels, not {blocks.shape[4]}")
        device = next(self.network.parameters()).device
        pairs = _Pairs.of(blocks, variants)
        parts = [slice(start, start + _BATCH) for start in range(0, len(pairs.index), _BATCH)]
        scores = [
            self.network(torch.from_numpy(pairs.shown(part)).to(device), torch.from_numpy(pairs.cost[part]).to(device))
            .cpu()
            .numpy()
            for part in parts
        ]
        odds = np.concatenate(scores) if scores else np.empty(0, dtype=np.float32)
        # The search has its constants for costs up to the classical limit.
        likely = np.minimum(np.logaddexp(np.float32(0), -odds), _SURPRISE) * np.float32(MISFIT / _SURPRISE)
        table = np.full(pairs.shape, MISFIT, dtype=np.float32)
        table.flat[pairs.index] = likely
        table.flat[pairs.swapped()] = likely
        own = np.arange(len(table))
        table[own, :, own] = 1000
        return table


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of sides that may be neighbours.

    Attributes
    ----------
    strips : uint8 array, (B, 4, P, P, C)
        The blocks, seen from each side: rows along the side, columns from it inwards.
    shape : tuple of int
        Of the table of costs.
    index : intp array, (N,)
        Into that table, flat, the cheapest first; the first block's number is less than the second's.
    cost : float32 array, (N,)
        By hand.
    """

    strips: UInt8Array
    shape: tuple[int, ...]
    index: IndexArray
    cost: Float32Array

    @classmethod
    def of(cls, blocks: UInt8Array, variants: Variants) -> _Pairs:
        costs = relative(seam_costs(blocks, variants), most=_MOST)
        number = len(costs)
        costs[np.tril_indices(number)[0], :, np.tril_indices(number)[1]] = np.inf
        if not variants.turn.max():
            side = np.arange(4)
            costs.swapaxes(1, 2)[:, :, (side[:, None] + 2) % 4 != side] = np.inf
        flat = costs.reshape(-1)
        index = np.flatnonzero(flat < _MOST)
        tried = min(_TRIED * number**2, len(index))
        if tried < len(index):
            index = index[flat[index].argpartition(tried)[:tried]]
        index = index[flat[index].argsort(kind="stable")]
        upright, lying = blocks[0], blocks[0].swapaxes(1, 2)
        # Sides run from top to bottom and from left to right: right, below, left, above.
        strips = np.stack([upright[:, :, ::-1], lying[:, :, ::-1], upright, lying], axis=1)
        return cls(strips, costs.shape, index, flat[index])

    def shown(self, which: slice | IndexArray) -> UInt8Array:
        """Lay the blocks of some pairs side by side: (N, P, 2 P, C)."""
        a, side, b, other, backwards, negative, colour = np.unravel_index(self.index[which], self.shape)
        second = self.strips[b, other]
        second = np.where(backwards[:, None, None, None] == 1, second[:, ::-1], second)
        second ^= (negative * 255).astype(np.uint8)[:, None, None, None]
        if self.strips.shape[4] == 3:
            second = np.take_along_axis(second, COLOURS[colour][:, None, None], axis=3)
        shown: UInt8Array = np.concatenate([self.strips[a, side][:, :, ::-1], second], axis=2)
        return shown

    def swapped(self) -> IndexArray:
        """Give the places of the same pairs, the second block first."""
        a, side, b, other, backwards, negative, colour = np.unravel_index(self.index, self.shape)
        back = COLOURS.argsort(axis=1)
        inverse = (back[:, None] == COLOURS).all(axis=2).argmax(axis=1)
        swapped = np.ravel_multi_index((b, other, a, side, backwards, negative, inverse[colour]), self.shape)
        return swapped.astype(np.intp)

    def right(self, rows: int, columns: int) -> npt.NDArray[np.bool_]:
        """Tell which are neighbours, of blocks that lie in order."""
        number = np.arange(rows * columns).reshape(rows, columns)
        nothing = np.zeros_like(number)
        beside, under = number[:, :-1], number[:-1]
        true = [
            np.ravel_multi_index((one, zero + side, one + step, zero + side + 2, zero, zero, zero), self.shape).ravel()
            for one, zero, side, step in ((beside, nothing[:, :-1], 0, 1), (under, nothing[:-1], 1, columns))
        ]
        return np.isin(self.index, np.concatenate(true))


def train_seams(
    plain: UInt8Array,
    preset: SeamsPreset,
    *,
    block_px: int,
    variants: Variants,
    device: torch.device,
    seed: int,
    on_progress: Callable[[float], None] = ignore_progress,
) -> LearnedSeams:
    """Train a network to tell neighbours from other blocks of the same picture: AdamW, one cycle, logistic loss.

    Parameters
    ----------
    plain : uint8 array, (N, H, W, C)
        The attacker's own images; ``preset.images`` of them, drawn at random, are used. H and W are multiples of
        ``block_px``.
    preset : SeamsPreset
    block_px : int
        Side of a block, in pixels.
    variants : Variants
        What the cipher does to blocks: how many wrong neighbours there are depends on it.
    device : torch.device
    seed : int
        Of the choice of images and pairs, the first weights and the order of training.
    on_progress : callable
        Called with the part done, 0 to 1.

    Returns
    -------
    LearnedSeams

    Raises
    ------
    ValueError
        If there are no images.
    """
    if not len(plain):
        raise ValueError("there are no images to learn from")
    randomness = epoch_generator(seed, 0)
    own = plain[torch.randperm(len(plain), generator=randomness)[: preset.images].numpy()]
    generator = np.random.default_rng(seed)
    learned = []
    for count, image in enumerate(own, start=1):
        learned.append(_examples(image[None], block_px, variants, generator))
        on_progress(0.5 * count / len(own))
    pairs, costs, wanted, weights = (torch.from_numpy(np.concatenate(part)) for part in zip(*learned, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SeamNetwork(block_px, plain.shape[3], preset)
    network.to(device)
    training = OneCycle(network, preset.learning_rate, preset.steps)
    for step in range(preset.steps):
        rows = torch.randint(len(pairs), (preset.batch_size,), generator=randomness)
        loss = nn.functional.binary_cross_entropy_with_logits(
            network(pairs[rows].to(device), costs[rows].to(device)),
            wanted[rows].to(device),
            weight=weights[rows].to(device),
        )
        training.step(loss)
        on_progress(0.5 + 0.5 * (step + 1) / preset.steps)
    network.eval()
    return LearnedSeams(network)


def _examples(
    image: UInt8Array, block_px: int, variants: Variants, generator: np.random.Generator
) -> tuple[UInt8Array, Float32Array, Float32Array, Float32Array]:
    """Take pairs of blocks of a picture: (N, P, 2 P, C), costs, 1 for neighbours, and how many each stands for."""
    pairs = _Pairs.of(cut(image, block_px), variants)
    right = pairs.right(image.shape[1] // block_px, image.shape[2] // block_px)
    wrong = np.flatnonzero(~right)
    rest = wrong[_HARD:]
    others = generator.choice(rest, min(_OTHERS, len(rest)), replace=False)
    chosen = np.concatenate([np.flatnonzero(right), wrong[:_HARD], others])
    weights = np.ones(len(chosen), dtype=np.float32)
    if len(others):
        weights[-len(others) :] = len(rest) / len(others)
    return pairs.shown(chosen), pairs.cost[chosen], right[chosen].astype(np.float32), weights
