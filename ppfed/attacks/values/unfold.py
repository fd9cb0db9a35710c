"""Undo fresh negative-positive masks from ciphertexts alone, without a network: a Markov random field over the choices.

A prior that only rewards small differences cannot beat the fold, where all values lie on one side of mid-grey: no flip
lessens a difference. This one also rewards small second differences, and keeps lightness and colour apart. Lightness
jumps often; colour, the part of a pixel that its mean leaves, hardly ever does (the more so after JPEG, which stores it
at half resolution). A region whose sign is wrong shows the complementary colour of its neighbours, and a ramp through
mid-grey becomes a V.

Each cost is w log(1 + (d / s)^2), the logarithm of a Student t density: heavy tails let edges be. The ten constants
of each prior were fitted by hand to CIFAR-10 training images; nothing else is learned.

What is unknown of a pixel splits into its *pattern*, the choice up to a negative and an order of the colours, and that
*gauge*. Neighbours' patterns are found by belief propagation with the gauge summed out, gauges then by synchronisation
of neighbours. A global gauge cannot be seen from differences; typical statistics of photographs guess it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor

from ppfed.attacks.values.stream import NP_CONSTANTS
from ppfed.attacks.values.synchronisation import Group, IndexArray, synchronise
from ppfed.attacks.values.upright import likely_reading
from ppfed.images.types import UInt8Array


@dataclass(frozen=True)
class SmoothnessPrior:
    """Weights and scales (grey levels) of the costs.

    Attributes
    ----------
    lightness, colour : (weight, scale)
        Of the difference of neighbours.
    lightness_bend, colour_bend : (weight, scale)
        Of the second difference of three pixels in a row.
    colourfulness : (weight, scale)
        Of a pixel's own colour.
    """

    lightness: tuple[float, float]
    colour: tuple[float, float]
    lightness_bend: tuple[float, float]
    colour_bend: tuple[float, float]
    colourfulness: tuple[float, float]

    def pair(self, one: Tensor, other: Tensor, dim: int) -> Tensor:
        """Say how likely two pixels are neighbours, whose colours lie along ``dim``: logarithms, up to a constant."""
        difference = one - other
        light = _log_t(difference.mean(dim).square(), self.lightness)
        return light + _log_t(_colour_energy(difference, dim), self.colour)

    def bend(self, left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
        """Say the same of three in a row, (N, C, H, W) each."""
        bend = left - 2 * middle + right
        light = _log_t(bend.mean(1).square(), self.lightness_bend)
        return light + _log_t(_colour_energy(bend, 1), self.colour_bend)


FOR_SIGNS = SmoothnessPrior((0.1, 30.0), (1.0, 2.0), (0.6, 18.0), (1.2, 3.5), (0.15, 25.0))
"""For NP without colour shuffle, where a sign is all that is unknown of a value."""
FOR_MORE = SmoothnessPrior((0.4, 38.0), (1.2, 1.4), (3.5, 5.8), (0.75, 2.3), (0.45, 10.7))
"""For colour shuffle and NP twice."""


def unfold(
    ciphertexts: UInt8Array,
    *,
    colour_shuffle: bool,
    constants: tuple[int, ...] = NP_CONSTANTS,
    prior: SmoothnessPrior | None = None,
    iterations: int = 20,
    patterns: int = 12,
    device: torch.device | None = None,
) -> UInt8Array:
    """Restore images of which each has a mask of its own.

    Parameters
    ----------
    ciphertexts : uint8 array, (N, H, W, C), C is 1 or 3
    colour_shuffle : bool
        Whether the colours of each pixel were permuted too.
    constants : tuple of int
        What values may have been XORed with; with each, its negative.
    prior : SmoothnessPrior or None
        None takes what was fitted to the cipher.
    iterations : int
        Of belief propagation.
    patterns : int
        Most patterns kept of each pixel, the least colourful ones: NP has 4, NP twice 32.
    device : torch.device or None
        None takes the CPU.

    Returns
    -------
    uint8 array, (N, H, W, C)
        Each image perhaps as its negative, and with colour shuffle perhaps in another order of the colours: that is a
        guess.

    Raises
    ------
    ValueError
        If the constants do not come in pairs of negatives.
    """
    if {constant ^ 0xFF for constant in constants} != set(constants):
        raise ValueError("constants must come with their negatives")
    solver = _Solver(
        channels=ciphertexts.shape[3],
        colour_shuffle=colour_shuffle and ciphertexts.shape[3] > 1,
        constants=constants,
        prior=prior or (FOR_SIGNS if constants == NP_CONSTANTS and not colour_shuffle else FOR_MORE),
        iterations=iterations,
        patterns=patterns,
        device=device or torch.device("cpu"),
    )
    pixels = int(np.prod(ciphertexts.shape[1:3]))
    batch = max(1, _TABLE_VALUES // (pixels * solver.table_size))
    parts = [solver.solve(ciphertexts[start : start + batch]) for start in range(0, len(ciphertexts), batch)]
    return np.concatenate(parts) if parts else ciphertexts.copy()


def same_order(pictures: UInt8Array, *, device: torch.device | None = None) -> UInt8Array:
    """Bring the colours of all pixels of an image into one order, so that they change slowly.

    Parameters
    ----------
    pictures : uint8 array, (N, H, W, 3)
        Pixels whose colours are right but for their order.
    device : torch.device or None
        None takes the CPU.

    Returns
    -------
    uint8 array, (N, H, W, 3)
        Which order it is, is a guess.
    """
    values = torch.from_numpy(pictures).to(device or torch.device("cpu")).permute(0, 3, 1, 2).float() - 127.5
    return _pixels(_synchronised(values, FOR_MORE, _orders(3), signs=False))


_TABLE_VALUES = 1 << 24
"""Values of a table in memory at once."""


@dataclass(frozen=True)
class _Solver:
    channels: int
    colour_shuffle: bool
    constants: tuple[int, ...]
    prior: SmoothnessPrior
    iterations: int
    patterns: int
    device: torch.device

    @property
    def orders(self) -> IndexArray:
        """(G / 2, C): the orders of colours in a gauge."""
        return _orders(self.channels) if self.colour_shuffle else np.arange(self.channels)[None]

    @property
    def kept(self) -> int:
        return min(self.patterns, int(len(self.constants) ** self.channels) // 2)

    @property
    def table_size(self) -> int:
        """Values of a pair's table, for each pixel, before colours are summed."""
        return self.kept**2 * 2 * len(self.orders) * self.channels

    def solve(self, ciphertexts: UInt8Array) -> UInt8Array:
        values = self._candidates(ciphertexts)
        chosen = self._beliefs(values).argmax(dim=1)
        pixels = values.gather(1, chosen[:, None, None].expand(-1, 1, *values.shape[2:]))[:, 0]
        if self.colour_shuffle:
            pixels = _synchronised(pixels, self.prior, self.orders)
        restored = _pixels(_synchronised(pixels, self.prior, np.arange(self.channels)[None], bends=True))
        return likely_reading(restored, any_order=self.colour_shuffle, together=False).of(restored)

    def _candidates(self, ciphertexts: UInt8Array) -> Tensor:
        """Values that each pattern gives to a pixel: (N, K, C, H, W), 0 is mid-grey."""
        # One of each pair of negatives stands for the gauge; which does not matter.
        half = [constant for constant in self.constants if constant < 0x80]
        masks = np.array(list(product(half, *[self.constants] * (self.channels - 1))), dtype=np.uint8)
        shown = torch.from_numpy(ciphertexts[:, None] ^ masks[None, :, None, None]).to(self.device)
        values = shown.permute(0, 1, 4, 2, 3).to(torch.float32) - 127.5
        if len(masks) == self.kept:
            return values
        least = _colour_energy(values, dim=2).topk(self.kept, dim=1, largest=False).indices
        return values.gather(1, least[:, :, None].expand(-1, -1, self.channels, -1, -1))

    def _beliefs(self, values: Tensor) -> Tensor:
        """Sum-product belief propagation over patterns on the grid: (N, K, H, W)."""
        count, kept, _, height, width = values.shape
        own = torch.softmax(_log_t(_colour_energy(values, dim=2), self.prior.colourfulness), dim=1)
        turned = self._turned(values)
        # Messages to a pixel from its left, right, upper and lower neighbour.
        uniform = torch.full((count, kept, height, width), 1 / kept, device=values.device)
        messages = [uniform.clone() for _ in range(4)]
        tables = []
        for axis in (3, 2):
            size = values.shape[axis + 1]
            one, other = values.narrow(axis + 1, 0, size - 1), turned.narrow(axis + 2, 1, size - 1)
            table = self.prior.pair(one[:, :, None, None], other[:, None], dim=4)
            # Sum over gauges: only then is it a table over patterns.
            table = torch.logsumexp(table, dim=3)
            tables.append(torch.exp(table - table.amax((1, 2), keepdim=True)))
        for _ in range(self.iterations):
            belief = _normalised(own * messages[0] * messages[1] * messages[2] * messages[3])
            for number, (axis, table) in enumerate(zip((3, 2), tables, strict=True)):
                size = belief.shape[axis]
                forwards, backwards = messages[2 * number], messages[2 * number + 1]
                # What a pixel tells the next is its belief without what that one told it.
                told_next = _normalised(belief / backwards.clamp_min(_LEAST)).narrow(axis, 0, size - 1)
                told_last = _normalised(belief / forwards.clamp_min(_LEAST)).narrow(axis, 1, size - 1)
                to_next = _normalised((table * told_next[:, :, None]).sum(1))
                to_last = _normalised((table * told_last[:, None]).sum(2))
                forwards.narrow(axis, 1, size - 1).lerp_(to_next, 1 - _DAMPING)
                backwards.narrow(axis, 0, size - 1).lerp_(to_last, 1 - _DAMPING)
        return own * messages[0] * messages[1] * messages[2] * messages[3]

    def _turned(self, values: Tensor) -> Tensor:
        """Apply all gauges: (N, K, C, H, W) to (N, K, G, C, H, W)."""
        ordered = values[:, :, torch.from_numpy(self.orders).to(values.device)]
        return torch.cat([ordered, -ordered], dim=2)


_DAMPING = 0.3
"""Part of a message that stays: loops may oscillate."""
_LEAST = 1e-12


def _log_t(squared: Tensor, weight_and_scale: tuple[float, float]) -> Tensor:
    weight, scale = weight_and_scale
    return -weight * torch.log1p(squared / scale**2)


def _colour_energy(values: Tensor, dim: int) -> Tensor:
    """Squared distance from grey."""
    return (values - values.mean(dim, keepdim=True)).square().sum(dim)


def _pixels(values: Tensor) -> UInt8Array:
    """(N, C, H, W), 0 is mid-grey, to (N, H, W, C)."""
    pixels: UInt8Array = (values + 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return pixels


def _synchronised(
    pixels: Tensor, prior: SmoothnessPrior, orders: IndexArray, *, signs: bool = True, bends: bool = False
) -> Tensor:
    """Choose a gauge for each pixel and apply it: (N, C, H, W) to the same; bends want signs and one order."""
    count, channels, height, width = pixels.shape
    index = torch.from_numpy(orders).to(pixels.device)
    ordered = pixels[:, index]
    turned = torch.cat([ordered, -ordered], dim=1) if signs else ordered
    nodes = torch.arange(count * height * width).reshape(count, height, width)
    firsts, seconds, evidence = [], [], []
    for axis in (2, 1):
        size = nodes.shape[axis]
        firsts.append(nodes.narrow(axis, 0, size - 1))
        seconds.append(nodes.narrow(axis, 1, size - 1))
        here, there = pixels.narrow(axis + 1, 0, size - 1), turned.narrow(axis + 2, 1, size - 1)
        evidence.append(prior.pair(here[:, None], there, dim=2))
        if bends and size > 2:
            a, b, c = (pixels.narrow(axis + 1, step, size - 2) for step in range(3))
            i, j, k = (nodes.narrow(axis, step, size - 2) for step in range(3))
            # A function of three signs that a global sign leaves alone is a sum of functions of two.
            same, left, middle, right = (
                prior.bend(a, b, c), prior.bend(-a, b, c), prior.bend(a, -b, c), prior.bend(a, b, -c)
            )  # fmt: skip
            for ends, half in (
                ((i, j), same - left - middle + right),
                ((i, k), same - left + middle - right),
                ((j, k), same + left - middle - right),
            ):
                firsts.append(ends[0])
                seconds.append(ends[1])
                evidence.append(torch.stack([half, -half], dim=1) / 4)
    group = Group.of_xor(1 if signs else 0)
    if len(orders) > 1:
        group = group.times(Group.of_orders(channels))
    flat = [score.permute(0, 2, 3, 1).reshape(-1, len(group)).cpu() for score in evidence]
    first, second = (torch.cat([part.reshape(-1) for part in ends]).numpy() for ends in (firsts, seconds))
    gauge = synchronise(group, nodes.numel(), first, second, torch.cat(flat).numpy())
    choice = torch.from_numpy(gauge).to(pixels.device).reshape(count, 1, 1, height, width)
    return turned.gather(1, choice.expand(-1, 1, channels, -1, -1))[:, 0]


def _orders(channels: int) -> IndexArray:
    """List all orders of colours, as ``Group.of_orders`` numbers them."""
    return np.array(list(permutations(range(channels))), dtype=np.intp)


def _normalised(message: Tensor) -> Tensor:
    return message / message.sum(1, keepdim=True).clamp_min(_LEAST)
