"""The classifier: ResNet-18 or a ConvMixer, with the paper's adaptation network in front."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppfed.networks.adaptation import adaptation_network, features_of
from ppfed.networks.config import BLOCKS_PER_STAGE, STAGES, Backbone, NetworkConfig
from ppfed.networks.convmixer import ConvMixer

_SAFE_CHANNELS = 16


class ImageClassifier(nn.Module):
    """Input features, adaptation network, backbone.

    ResNet-18's parameters have the names and shapes of torchvision's, below ``resnet.``; a ConvMixer's are below
    ``convmixer.``. There is the one that ``config.backbone`` names.

    Raises
    ------
    ValueError
        If blocks or patches do not fit the size.
    """

    resnet: ResNet18
    convmixer: ConvMixer

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.adaptation = adaptation_network(
            config.adaptation_kind, config.channels, config.adaptation, config.height, config.width
        )
        maps = config.adaptation[-1] if config.adaptation else config.channels
        if config.backbone is Backbone.RESNET18:
            self.resnet = ResNet18(maps, config.classes, config.base_maps, large_stem=config.large_stem)
        else:
            self.convmixer = ConvMixer(maps, config.classes, config.base_maps, config.height, config.width)

    @property
    def backbone(self) -> ResNet18 | ConvMixer:
        """The part behind the adaptation network: (N, maps, H, W) to logits."""
        return self.resnet if self.config.backbone is Backbone.RESNET18 else self.convmixer

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Parameters
        ----------
        images : uint8 tensor, (N, H, W, C)
            Encrypted, channels last, values from 0 to 255.

        Returns
        -------
        float tensor, (N, classes)
            Logits.

        Raises
        ------
        ValueError
            If the images have another number of dimensions or channels.
        """
        # Height and width may be others: a pass over crops sees smaller images.
        if images.ndim != 4 or images.shape[3] != self.config.channels:
            expected = f"(N, {self.config.height}, {self.config.width}, {self.config.channels})"
            raise ValueError(
                f"images have shape {expected}, channels last, with values from 0 to 255, not {tuple(images.shape)}"
            )
        if self.training or not self.config.mirrored_views:
            return self._classify(images)
        return (self._classify(images) + self._classify(images.flip(2))) / 2

    def _classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(self.adaptation(features_of(images, self.config.features)))
        return logits


def build_network(config: NetworkConfig, seed: int) -> ImageClassifier:
    """Build a network whose initial weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageClassifier(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class Shortcut(nn.Conv2d):
    """The 1x1 convolution that fits a shortcut to a block's output.

    With fewer than 16 input channels in channels_last memory and a stride of 2, the backward pass of PyTorch 2.13 on
    the CPU writes past its buffers when it has several threads (segmentation fault, or worse). Leaving out the pixels
    that the stride skips before the convolution computes the same.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(N, old, H, W) to (N, new, H / stride, W / stride)."""
        if maps.device.type != "cpu" or self.in_channels >= _SAFE_CHANNELS:
            return super().forward(maps)
        down, right = self.stride
        return nn.functional.conv2d(maps[:, :, ::down, ::right], self.weight)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, old: int, new: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(old, new, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(new)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(new, new, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(new)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or old != new:
            self.downsample = nn.Sequential(Shortcut(old, new, 1, stride, bias=False), nn.BatchNorm2d(new))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, old, H, W) to (N, new, H / stride, W / stride)."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        out = self.relu(self.bn1(self.conv1(maps)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        activated: Tensor = self.relu(out)
        return activated


class ResNet18(nn.Module):
    """ResNet-18 with the CIFAR stem (one 3x3 convolution) or the ImageNet stem."""

    def __init__(self, maps: int, classes: int, base_maps: int, *, large_stem: bool) -> None:
        super().__init__()
        if large_stem:
            self.conv1 = nn.Conv2d(maps, base_maps, 7, 2, 3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = nn.Conv2d(maps, base_maps, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(base_maps)
        self.relu = nn.ReLU(inplace=True)
        widths = [base_maps << stage for stage in range(STAGES)]
        self.layer1 = _stage(base_maps, widths[0], 1)
        self.layer2 = _stage(widths[0], widths[1], 2)
        self.layer3 = _stage(widths[1], widths[2], 2)
        self.layer4 = _stage(widths[2], widths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """(N, maps, H, W) to logits, (N, classes)."""
        out = self.maxpool(self.relu(self.bn1(self.conv1(maps))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.fc(self.avgpool(out).flatten(1))
        return logits


def _stage(old: int, new: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(old, new, stride), *(BasicBlock(new, new, 1) for _ in range(BLOCKS_PER_STAGE - 1)))
