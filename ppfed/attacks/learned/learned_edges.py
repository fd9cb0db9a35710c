"""Learned edges: synchronisation of pixels by what a network says of pairs of them.

The classical solver (``unfold.py``) weighs two or three pixels at a time, by costs that were fitted by hand, and where
it errs whole regions come out as negatives. A network that paints pictures (``inversion.py``) would have to guess which
of an image and its negative is meant, which nothing tells, and blurs what it cannot know. Here a U-Net looks at what
the cipher leaves and says of pairs of pixels, up to a few pixels apart, how likely their masks are to be alike;
synchronisation (``synchronisation.py``) then settles all pixels at once. Values stay ones that the ciphertext allows.
The attacker trains it on images of its own.

Of a grey pixel the mask is all that is unknown. In colour another network settles first what the colours of a pixel
are to each other (``learned_patterns.py``), and at last colours are brought into one order. That each pixel is shown as
dark as its mask can make it keeps from the network what nothing tells.

Edges say what masks of pixels are to each other, not what they are. Under NP that leaves an image and its negative.
Under NP twice it leaves two images and their negatives: then the attacker's own pictures say which values are
neighbours in pictures.

Ours. Whoever measures with it must train on other images than it restores; nothing here can check that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ppfed.attacks.learned.learned_patterns import LearnedPatterns, Leaves, in_parts, train_patterns
from ppfed.attacks.learned.one_cycle import ignore_progress
from ppfed.attacks.learned.pixel_scorer import PixelScorer, ScorerTraining, train_scorer
from ppfed.attacks.values.synchronisation import Group, synchronise
from ppfed.attacks.values.unfold import same_order
from ppfed.attacks.values.upright import likely_reading
from ppfed.images.types import UInt8Array
from ppfed.training.loop import epoch_generator

OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 4), (4, 0))
"""Down and to the right, in pixels, from one end of an edge to the other."""

_LEVELS = 32
"""Of values that are compared with neighbours."""
_LEAST_WEIGHT = 0.1
"""Of an edge in the loss, where it hardly matters how a pixel is read: near mid-grey a value is its own negative."""


@dataclass(frozen=True)
class EdgesPreset:
    """What is spent on learned edges.

    Attributes
    ----------
    name : str
    images : int
        Most images of the attacker's own that are used.
    pattern_steps, steps : int
        Of the optimizer, for patterns and for edges.
    batch_size : int
    learning_rate : float
        Of AdamW, at the peak of its one cycle.
    front_maps : int
        Of a 1x1 convolution before each U-Net.
    widths : tuple of int
        Feature maps of the U-Nets.
    """

    name: str
    images: int
    pattern_steps: int
    steps: int
    batch_size: int = 64
    learning_rate: float = 5e-3
    front_maps: int = 32
    widths: tuple[int, ...] = (24, 48)

    def training(self, steps: int) -> ScorerTraining:
        """Say what is spent on one of the two networks."""
        return ScorerTraining(steps, self.batch_size, self.learning_rate, self.front_maps, self.widths)


QUICK = EdgesPreset("quick", images=512, pattern_steps=120, steps=120, batch_size=16)
"""Seconds: shows that the attack works, not how well."""
CPU = EdgesPreset("cpu", images=20_000, pattern_steps=1000, steps=3000)
"""A quarter of an hour on one core with images of 32x32, half of that for grey ones."""
GPU = EdgesPreset(
    "gpu",
    images=50_000,
    pattern_steps=4000,
    steps=10_000,
    batch_size=256,
    learning_rate=3e-3,
    widths=(64, 128, 256),
)
"""Minutes on one GPU."""


@dataclass(frozen=True, eq=False)
class LearnedEdges:
    """A trained attack.

    Attributes
    ----------
    patterns : LearnedPatterns
    network : PixelScorer
        Scores each edge and relation at the edge's first end; in evaluation mode, on its device.
    neighbours : float array, (levels, levels)
        How likely two values are neighbours in the attacker's own pictures: logarithms, up to a constant.
    """

    patterns: LearnedPatterns
    network: PixelScorer
    neighbours: npt.NDArray[np.float64]

    @property
    def leaves(self) -> Leaves:
        """What the cipher leaves."""
        return self.patterns.leaves

    @torch.no_grad()
    def restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        """Restore pictures of any size, each by itself.

        Parameters
        ----------
        ciphertexts : uint8 array, (N, H, W, C)

        Returns
        -------
        uint8 array, (N, H, W, C)
            Each image perhaps as its negative or in another order of the colours, which is a guess, as the solver's is.

        Raises
        ------
        ValueError
            If the number of channels is not the one trained on.
        """
        if ciphertexts.shape[3] != self.network.channels:
            raise ValueError(f"trained on {self.network.channels} channels, not {ciphertexts.shape[3]}")
        parts = [self._restore(ciphertexts[rows]) for rows in in_parts(ciphertexts)]
        return np.concatenate(parts) if parts else ciphertexts.copy()

    def _restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        constants = self.leaves.constants
        pictures = _darkest(self.patterns.settle(ciphertexts), constants)
        count, height, width, channels = pictures.shape
        scores = _by_edge(self.network.score(pictures), len(constants)).cpu()
        nodes = torch.arange(count * height * width).reshape(count, height, width)
        edges = [(*_ends(nodes, offset), _ends(scores[:, number], offset)[0]) for number, offset in _fitting(nodes)]
        chosen = synchronise(
            Group.of_xor(len(constants).bit_length() - 1),
            nodes.numel(),
            torch.cat([first.reshape(-1) for first, _, _ in edges]).numpy(),
            torch.cat([second.reshape(-1) for _, second, _ in edges]).numpy(),
            torch.cat([score.movedim(1, -1).reshape(-1, len(constants)) for _, _, score in edges]).numpy(),
        )
        corrections = np.array(constants, dtype=np.uint8)[chosen].reshape(count, height, width, 1)
        restored = self._likeliest(pictures ^ corrections)
        if self.leaves.any_order and channels == 3:
            restored = same_order(restored, device=next(self.network.parameters()).device)
        return likely_reading(restored, any_order=self.leaves.any_order, together=False).of(restored)

    def _likeliest(self, pictures: UInt8Array) -> UInt8Array:
        """Of what each whole image may be, up to its negative, take what has the likeliest neighbours."""
        # Of each pair of negatives one is as likely as the other.
        readings = np.stack([pictures ^ np.uint8(one) for one in self.leaves.constants if one < 0x80])
        likely = np.stack([self._likelihood(one) for one in readings])
        chosen: UInt8Array = readings[likely.argmax(axis=0), np.arange(len(pictures))]
        return chosen

    def _likelihood(self, pictures: UInt8Array) -> npt.NDArray[np.float64]:
        """(N, H, W, C) to (N,)."""
        sums = [self.neighbours[one, other].sum(axis=(1, 2, 3)) for one, other in _neighbours(pictures)]
        total: npt.NDArray[np.float64] = sums[0] + sums[1]
        return total


def train_edges(
    plain: UInt8Array,
    leaves: Leaves,
    preset: EdgesPreset,
    *,
    device: torch.device,
    seed: int,
    on_progress: Callable[[float], None] = ignore_progress,
) -> LearnedEdges:
    """Train networks to tell patterns, and how the masks of two pixels are related: AdamW, one cycle, cross-entropy.

    Parameters
    ----------
    plain : uint8 array, (N, H, W, C)
        The attacker's own images; ``preset.images`` of them, drawn at random, are used. No key is needed: images leave
        the same under all.
    leaves : Leaves
        Of the cipher that is attacked.
    preset : EdgesPreset
    device : torch.device
    seed : int
        Of the choice of images, the first weights and the order of training.
    on_progress : callable
        Called with the part done, 0 to 1.

    Returns
    -------
    LearnedEdges

    Raises
    ------
    ValueError
        If there are no images.
    """
    if not len(plain):
        raise ValueError("there are no images to learn from")
    randomness = epoch_generator(seed, 0)
    own = plain[torch.randperm(len(plain), generator=randomness)[: preset.images].numpy()]
    every = preset.steps + (preset.pattern_steps if plain.shape[3] > 1 else 0)
    patterns = train_patterns(
        own,
        leaves,
        preset.training(preset.pattern_steps),
        device=device,
        seed=seed,
        on_progress=lambda part: on_progress(part * preset.pattern_steps / every),
    )
    parts = in_parts(own)
    pictures = np.concatenate([_darkest(patterns.settle(own[rows]), leaves.constants) for rows in parts])
    told = [_masks(pictures[rows], own[rows], leaves.constants) for rows in parts]
    constants = len(leaves.constants)
    network = train_scorer(
        pictures,
        [np.concatenate(column) for column in zip(*told, strict=True)],
        lambda scores, masks, margins: _loss(_by_edge(scores, constants), masks.long(), margins),
        preset.training(preset.steps),
        scores=len(OFFSETS) * constants,
        # A grey value is at most 127 where it is darkest, and of NP twice 63.
        middle=63.75,
        device=device,
        seed=seed,
        randomness=randomness,
        on_progress=lambda part: on_progress(1 - (1 - part) * preset.steps / every),
    )
    return LearnedEdges(patterns, network, _likely_neighbours(own))


def _likely_neighbours(plain: UInt8Array) -> npt.NDArray[np.float64]:
    """Count which values stand beside which, of pictures and their negatives alike: as ``LearnedEdges.neighbours``."""
    counts = np.full(_LEVELS * _LEVELS, 0.5)
    for rows in in_parts(plain):
        for one, other in _neighbours(plain[rows]):
            counts += np.bincount((one.astype(np.intp) * _LEVELS + other).reshape(-1), minlength=len(counts))
    table = counts.reshape(_LEVELS, _LEVELS)
    table = table + table.T
    logarithms: npt.NDArray[np.float64] = np.log(table + table[::-1, ::-1])
    return logarithms


def _neighbours(pictures: UInt8Array) -> tuple[tuple[UInt8Array, UInt8Array], ...]:
    """Pair values with those below and to the right, in coarse levels."""
    levels = pictures // np.uint8(256 // _LEVELS)
    return (levels[:, :-1], levels[:, 1:]), (levels[:, :, :-1], levels[:, :, 1:])


def _darkest(pictures: UInt8Array, constants: tuple[int, ...]) -> UInt8Array:
    """Of what each pixel may be, take the darkest: the same whatever its mask."""
    readings = np.stack([pictures ^ np.uint8(one) for one in constants])
    darkest = readings.sum(axis=4, dtype=np.int64).argmin(axis=0)
    chosen: UInt8Array = np.take_along_axis(readings, darkest[None, ..., None], axis=0)[0]
    return chosen


def _masks(
    pictures: UInt8Array, plain: UInt8Array, constants: tuple[int, ...]
) -> tuple[UInt8Array, npt.NDArray[np.float32]]:
    """Find what each pixel of pictures has to be XORed with, and how much that matters.

    Lightness decides: a pattern may be wrong, and the order of the colours is another.

    Returns
    -------
    uint8 array, (N, H, W)
        Numbers of constants.
    float32 array, (N, H, W)
        How much nearer the best one comes than the next, in grey levels over 255.
    """
    light = plain.mean(axis=3, dtype=np.float32)
    off = np.stack([np.abs((pictures ^ np.uint8(one)).mean(axis=3, dtype=np.float32) - light) for one in constants])
    best = np.partition(off, 1, axis=0)
    return off.argmin(axis=0).astype(np.uint8), (best[1] - best[0]) / 255


def _by_edge(scores: Tensor, constants: int) -> Tensor:
    """(N, scores, H, W) to (N, offsets, constants, H, W); edges whose second end lies outside mean nothing."""
    return scores.reshape(-1, len(OFFSETS), constants, *scores.shape[2:])


def _loss(scores: Tensor, masks: Tensor, margins: Tensor) -> Tensor:
    fitting = _fitting(masks)
    total = scores.new_zeros(())
    for number, offset in fitting:
        first, second = _ends(masks, offset)
        weight = torch.minimum(*_ends(margins, offset)) + _LEAST_WEIGHT
        told = _ends(scores[:, number], offset)[0]
        total = total + (nn.functional.cross_entropy(told, first ^ second, reduction="none") * weight).mean()
    return total / len(fitting)


def _fitting(images: Tensor) -> list[tuple[int, tuple[int, int]]]:
    """List number and offset of those edges that fit into images, (..., H, W)."""
    height, width = images.shape[-2:]
    return [(number, (down, right)) for number, (down, right) in enumerate(OFFSETS) if down < height and right < width]


def _ends(values: Tensor, offset: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cut out what belongs to the first and to the second end of all edges of an offset: (..., H, W)."""
    down, right = offset
    height, width = values.shape[-2:]
    first = values[..., : height - down, max(0, -right) : width - max(0, right)]
    second = values[..., down:, max(0, right) : width - max(0, -right)]
    return first, second
