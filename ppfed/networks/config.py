"""Which network: the choices and sizes that owners and coordinator agree on. It needs no torch.

The networks themselves are in ``classifier.py``, ``adaptation.py`` and ``convmixer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ppfed.ciphers.spec import BLOCK_PX, CipherSpec, Scope

PATCH_SIDE = BLOCK_PX
"""Side in pixels of a ConvMixer's patches: that of the ciphers' blocks, so that one weight of the embedding reads one
value of a block."""

STAGES = 4
"""Of ResNet-18; each has twice the maps of the one before."""
BLOCKS_PER_STAGE = 2

MIXER_DEPTH = 8
MIXER_KERNEL_SIDE = 5
MIXER_WIDENING = 4
"""Times ``base_maps`` is a ConvMixer's width."""

_LARGE_SIDE = 96
_BATCH_NORM = 4
"""Values of batch norm for each map: scale, shift, mean and variance."""


class InputFeatures(StrEnum):
    """What the network is shown of the pixel values.

    With fresh masks a value v is as likely as 255 - v, so its distance from 127.5 is all that a ciphertext tells about
    it (a sufficient statistic); with the colour shuffle it is the sorted triple of a pixel's distances. Folding spares
    the network to learn that, and needs no key. Where the top bit is masked as well (``np2-v1``), the same holds for
    how far the lower seven bits are from their nearer end. Where one mask serves all images, a fold throws away what
    could be learned.
    """

    VALUES = "values"
    """The values, scaled to -1 to 1 with 127.5 as zero."""
    FOLD = "fold"
    """The distance from mid-grey, scaled to -1 to 1."""
    SORTED_FOLD = "sorted-fold"
    """The same, sorted over the channels of each pixel."""
    FOLD_TWICE = "fold-twice"
    """min(w, 127 - w) of the lower seven bits w, scaled to -1 to 1: the same for v, v ^ 0xff, v ^ 0x80 and v ^ 0x7f."""
    SORTED_FOLD_TWICE = "sorted-fold-twice"
    """The same, sorted over the channels of each pixel."""


def best_features(cipher: CipherSpec) -> InputFeatures:
    """Choose what to show of images under a cipher: all that it leaves, and nothing that only the key could tell."""
    if cipher.scope is not Scope.IMAGE:
        return InputFeatures.VALUES
    match cipher.name:
        case "np-v1":
            return InputFeatures.SORTED_FOLD if cipher.colour_shuffle else InputFeatures.FOLD
        case "np2-v1":
            return InputFeatures.SORTED_FOLD_TWICE if cipher.colour_shuffle else InputFeatures.FOLD_TWICE
        case _:
            return InputFeatures.VALUES


class AdaptationKind(StrEnum):
    """Which adaptation network."""

    PIXEL = "pixel"
    """1x1 convolutions (Sirichotedumrong et al., ICIP 2019, section 3.5)."""
    BLOCK = "block"
    """One map for all blocks, then a sub-pixel convolution (Tanaka, arXiv 1804.00490)."""
    BLOCK_WISE = "block-wise"
    """A map for each block position, mixed over positions, then a sub-pixel convolution (arXiv 2001.07761)."""


class Backbone(StrEnum):
    """What classifies, behind features and adaptation network."""

    RESNET18 = "resnet18"
    """ResNet-18 (He et al., CVPR 2016), as in the paper."""
    CONVMIXER = "convmixer"
    """A small ConvMixer: its patch embedding can absorb the key of a block cipher (``ppfed/networks/convmixer.py``)."""


def takes_any_size(backbone: Backbone, adaptation_kind: AdaptationKind) -> bool:
    """Whether one network classifies images of several sizes: none of its weights belongs to a place or a patch."""
    return backbone is Backbone.RESNET18 and adaptation_kind is AdaptationKind.PIXEL


@dataclass(frozen=True)
class NetworkConfig:
    """Which network to build.

    Attributes
    ----------
    classes : int
        Number of classes.
    height, width : int
        Size of the images in pixels; large ones (96 pixels and more on both sides) get the ImageNet stem.
    channels : int
        1 or 3.
    adaptation : tuple of int
        Feature maps of the adaptation network's layers (paper, section 3.5: 8, 32); empty leaves it out.
    base_maps : int
        Feature maps of the first stage: 64 in ResNet-18, less for tests and small machines. A ConvMixer is four times
        as wide.
    features : InputFeatures
        What the network is shown of the pixel values.
    adaptation_kind : AdaptationKind
        Which adaptation network; the paper's is ``pixel``.
    mirrored_views : bool
        In evaluation mode, average the logits of the image and of its mirror image.
    backbone : Backbone
    """

    classes: int
    height: int
    width: int
    channels: int = 3
    adaptation: tuple[int, ...] = (8, 32)
    base_maps: int = 64
    features: InputFeatures = InputFeatures.VALUES
    adaptation_kind: AdaptationKind = AdaptationKind.PIXEL
    mirrored_views: bool = False
    backbone: Backbone = Backbone.RESNET18

    @property
    def large_stem(self) -> bool:
        """Whether images are large enough for the ImageNet stem (7x7 convolution with stride 2, max pooling)."""
        return min(self.height, self.width) >= _LARGE_SIDE


def check_adaptation(kind: AdaptationKind, maps: tuple[int, ...], height: int, width: int) -> None:
    """Raise ValueError if an adaptation network cannot have these layers on images of this size."""
    if kind is AdaptationKind.PIXEL or not maps:
        return
    if height % BLOCK_PX or width % BLOCK_PX:
        raise ValueError(f"block adaptation networks need sides that are multiples of {BLOCK_PX} pixels")
    if len(maps) < 2:
        raise ValueError("a block adaptation network needs two layers at least")


def check_patches(height: int, width: int) -> None:
    """Raise ValueError if a ConvMixer's patches do not fit images of this size."""
    if height % PATCH_SIDE or width % PATCH_SIDE:
        raise ValueError(f"backbone convmixer needs sides that are multiples of {PATCH_SIDE} pixels")


def count_weights(config: NetworkConfig) -> int:
    """Count the weights and running statistics of the network that ``build_network`` would build, by arithmetic.

    So that whoever only checks settings need not load torch.

    Raises
    ------
    ValueError
        If blocks or patches do not fit the size.
    """
    maps = config.adaptation[-1] if config.adaptation else config.channels
    backbone = _count_resnet if config.backbone is Backbone.RESNET18 else _count_mixer
    return _count_adaptation(config) + backbone(config, maps)


def _count_adaptation(config: NetworkConfig) -> int:
    kind, maps = config.adaptation_kind, config.adaptation
    check_adaptation(kind, maps, config.height, config.width)
    if not maps:
        return 0
    if kind is AdaptationKind.PIXEL:
        return _count_pointwise((config.channels, *maps))
    positions = config.height // BLOCK_PX * (config.width // BLOCK_PX)
    first = _convolution(config.channels, maps[0], BLOCK_PX)
    if kind is AdaptationKind.BLOCK_WISE:
        first = positions * first + positions**2
    return first + _BATCH_NORM * maps[0] + _count_pointwise((*maps[:-1], maps[-1] * BLOCK_PX**2))


def _count_pointwise(maps: tuple[int, ...]) -> int:
    return sum(_normalised(old, new, 1) for old, new in pairwise(maps))


def _count_resnet(config: NetworkConfig, maps: int) -> int:
    widths = [config.base_maps << stage for stage in range(STAGES)]
    total = _normalised(maps, widths[0], 7 if config.large_stem else 3)
    for old, new in pairwise([widths[0], *widths]):
        rest = (BLOCKS_PER_STAGE - 1) * 2 * _normalised(new, new, 3)
        shortcut = 0 if old == new else _normalised(old, new, 1)
        total += _normalised(old, new, 3) + _normalised(new, new, 3) + shortcut + rest
    return total + (widths[-1] + 1) * config.classes


def _count_mixer(config: NetworkConfig, maps: int) -> int:
    check_patches(config.height, config.width)
    dim = MIXER_WIDENING * config.base_maps
    embedding = _convolution(maps, dim, PATCH_SIDE) + (1 + _BATCH_NORM) * dim
    layer = _convolution(1, dim, MIXER_KERNEL_SIDE) + _convolution(dim, dim, 1) + 2 * (1 + _BATCH_NORM) * dim
    return embedding + MIXER_DEPTH * layer + (dim + 1) * config.classes


def _normalised(old: int, new: int, side: int) -> int:
    return _convolution(old, new, side) + _BATCH_NORM * new


def _convolution(old: int, new: int, side: int) -> int:
    return old * new * side**2
