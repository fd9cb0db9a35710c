"""ConvMixer: a network that begins with a patch embedding (Trockman and Kolter, TMLR 2023, arXiv 2201.09792)."""

from __future__ import annotations

from torch import Tensor, nn

from ppfed.networks.config import MIXER_DEPTH, MIXER_KERNEL_SIDE, MIXER_WIDENING, PATCH_SIDE, check_patches


class ConvMixer(nn.Module):
    """Patch embedding, then 8 layers that mix positions and channels in turn, then the mean over positions.

    Depth 8, kernel 5 and, at ``base_maps = 64``, width 256 are those of the authors' public training script for
    CIFAR-10 (``locuslab/convmixer-cifar10``, ConvMixer-256/8, patches of 2x2). Patches of 4x4 are ours: then any key
    that permutes, negates or otherwise maps the values inside a block linearly, all blocks alike, is undone by other
    weights of the embedding, and what can be learned of such images is what can be learned of plain ones. Augmentation
    that moves the encrypted image by other than whole blocks, or mirrors it, takes that away.

    Parameters
    ----------
    maps : int
        Feature maps of the input.
    classes : int
    base_maps : int
        The width is four times this, so that one number scales both backbones.
    height, width : int
        Of the input, in pixels.

    Raises
    ------
    ValueError
        If patches do not fit the size.
    """

    def __init__(self, maps: int, classes: int, base_maps: int, height: int, width: int) -> None:
        super().__init__()
        check_patches(height, width)
        dim = MIXER_WIDENING * base_maps
        self.embedding = nn.Conv2d(maps, dim, PATCH_SIDE, PATCH_SIDE)
        self.activation = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.layers = nn.Sequential(*(MixerLayer(dim) for _ in range(MIXER_DEPTH)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(dim, classes)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, maps, H, W) to logits, (N, classes)."""
        out = self.layers(self.bn(self.activation(self.embedding(maps))))
        logits: Tensor = self.fc(self.avgpool(out).flatten(1))
        return logits


class MixerLayer(nn.Module):
    """A depthwise convolution with a shortcut mixes positions; a 1x1 convolution mixes channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, MIXER_KERNEL_SIDE, padding=MIXER_KERNEL_SIDE // 2, groups=dim)
        self.bn1 = nn.BatchNorm2d(dim)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.bn2 = nn.BatchNorm2d(dim)
        self.activation = nn.GELU()

    def forward(self, maps: Tensor) -> Tensor:
        """(N, dim, rows, columns) to the same shape."""
        mixed = maps + self.bn1(self.activation(self.depthwise(maps)))
        out: Tensor = self.bn2(self.activation(self.pointwise(mixed)))
        return out
