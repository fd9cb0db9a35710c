"""Adaptation networks: what stands between encrypted images and the classifier.

Each takes the input features at full resolution and gives feature maps at full resolution, (N, maps, H, W).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ppfed.ciphers.spec import BLOCK_PX
from ppfed.networks.config import AdaptationKind, InputFeatures, check_adaptation


def features_of(images: Tensor, features: InputFeatures) -> Tensor:
    """Make the input features of a batch.

    Parameters
    ----------
    images : uint8 tensor, (N, H, W, C)
    features : InputFeatures

    Returns
    -------
    float32 tensor, (N, C, H, W), channels_last
    """
    # NHWC memory seen as NCHW is PyTorch's channels_last: no copy. The negative-positive transform is a mirror
    # about 127.5, so that is the zero of the network's input.
    values = images.permute(0, 3, 1, 2).to(torch.float32)
    if features is InputFeatures.VALUES:
        return values / 127.5 - 1.0
    folded, middle = (values - 127.5).abs(), 63.75
    if features in (InputFeatures.FOLD_TWICE, InputFeatures.SORTED_FOLD_TWICE):
        # The fold is w + 0.5 or 127.5 - w; folding it about 64 makes these one. Arithmetic instead of bits, so that
        # it has a gradient with respect to the values.
        folded, middle = 63.5 - (folded - 64.0).abs(), 31.5
    if features in (InputFeatures.SORTED_FOLD, InputFeatures.SORTED_FOLD_TWICE):
        folded = _sorted_over_channels(folded)
    return folded / middle - 1.0


def adaptation_network(
    kind: AdaptationKind, channels: int, maps: tuple[int, ...], height: int, width: int
) -> nn.Sequential:
    """Build an adaptation network.

    Parameters
    ----------
    kind : AdaptationKind
    channels : int
        Of the input features.
    maps : tuple of int
        Feature maps of its layers; the last is what the classifier gets. Empty leaves the adaptation network out.
    height, width : int
        Of the images, in pixels; multiples of 4 for the block networks.

    Raises
    ------
    ValueError
        If blocks do not fit the size, or a block network has fewer than two layers.
    """
    check_adaptation(kind, maps, height, width)
    if not maps:
        return nn.Sequential()
    if kind is AdaptationKind.PIXEL:
        return nn.Sequential(*_pointwise((channels, *maps)))
    *inner, last = maps
    first: list[nn.Module]
    if kind is AdaptationKind.BLOCK:
        first = [nn.Conv2d(channels, inner[0], BLOCK_PX, BLOCK_PX, bias=False), *_normalised(inner[0])]
    else:
        rows, columns = height // BLOCK_PX, width // BLOCK_PX
        first = [
            BlockWise(channels, inner[0], rows, columns),
            *_normalised(inner[0]),
            PositionMixing(rows, columns),
        ]
    return nn.Sequential(*first, *_pointwise((*inner, last * BLOCK_PX**2)), nn.PixelShuffle(BLOCK_PX))


class BlockWise(nn.Module):
    """A linear map of its own for each block position: a sub-network per block (arXiv 2001.07761)."""

    def __init__(self, channels: int, maps: int, rows: int, columns: int) -> None:
        super().__init__()
        self.shape = (rows, columns)
        values = channels * BLOCK_PX**2
        self.weight = nn.Parameter(torch.empty(rows * columns, values, maps))
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=(2.0 / values) ** 0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, maps, H / 4, W / 4)."""
        blocks = nn.functional.pixel_unshuffle(features, BLOCK_PX).flatten(2)
        mapped = torch.einsum("nvb,bvm->nmb", blocks, self.weight)
        return mapped.reshape(*mapped.shape[:2], *self.shape)


class PositionMixing(nn.Module):
    """A learned matrix over block positions: it can undo a shuffle of the blocks."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        # No order of the blocks is preferred at the start: the identity would say that they are not shuffled.
        self.weight = nn.Parameter(torch.empty(rows * columns, rows * columns))
        if not self.weight.is_meta:
            nn.init.orthogonal_(self.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, maps, rows, columns) to the same shape."""
        return (maps.flatten(2) @ self.weight).reshape(maps.shape)


def _pointwise(maps: tuple[int, ...]) -> list[nn.Module]:
    """1x1 convolutions with stride 1, batch norm and ReLU after each.

    The papers do not name an activation; without one the convolutions would fold into one linear map.
    """
    layers: list[nn.Module] = []
    for old, new in pairwise(maps):
        layers += [nn.Conv2d(old, new, kernel_size=1, bias=False), *_normalised(new)]
    return layers


def _normalised(maps: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]


def _sorted_over_channels(values: Tensor) -> Tensor:
    """Sort (N, C, H, W) over C, ascending; C is 1 or 3, and minima and maxima are much faster than ``torch.sort``."""
    if values.shape[1] == 1:
        return values
    first, second, third = values.unbind(1)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    least, rest = torch.minimum(low, third), torch.maximum(low, third)
    ordered = torch.stack([least, torch.minimum(rest, high), torch.maximum(rest, high)], 1)
    return ordered.contiguous(memory_format=torch.channels_last)
