"""Weights that carry an image unharmed into a ResNet-18, and the way back to its pixels.

The attacks with chosen weights share them. Each stage halves the sides and puts four neighbouring values into as many
maps, so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppfed.images.types import Int64Array, UInt8Array
from ppfed.networks.classifier import BasicBlock, ImageClassifier, Shortcut
from ppfed.networks.config import AdaptationKind, Backbone, InputFeatures, NetworkConfig
from ppfed.training.gradients import Moments, batch_norm_layers
from ppfed.training.settings import BatchNormMode

LIFT = 4.0
"""Added to what carries the image, in standard deviations: a ReLU cuts off what lies farther below the mean. More would
cost an owner that computes in bfloat16 digits of the image."""

Carriers = Sequence[tuple[nn.BatchNorm2d, int]]
"""Batch-norm layers on the image's way, first to last, with the number of maps that carry it, which come first."""
Seen = Mapping[nn.Module, tuple[Tensor, Tensor]]
"""Mean and variance that a batch-norm layer normalised with, (channels,) each."""


@dataclass(frozen=True, eq=False)
class ReadImages:
    """What came out.

    Attributes
    ----------
    images : uint8 array, (N, H, W, C)
        In the order of ``labels``; which of those that share a label is which, nothing tells. A network that is shown
        folded values says nothing of which half a value was in: these images are then of the bright half. With sorted
        features the colours of each pixel are in ascending order.
    labels : int64 array, (N,)
        Those given, or those counted.
    """

    images: UInt8Array
    labels: Int64Array


def can_carry(config: NetworkConfig) -> bool:
    """Tell whether an image gets through to the third stage: ResNet-18, below 96 pixels, wide enough for every pixel.

    Whether that stage has maps to spare for an attack is not asked.
    """
    maps = config.channels
    return (
        config.backbone is Backbone.RESNET18
        and not config.large_stem
        and config.adaptation_kind is AdaptationKind.PIXEL
        and all(width >= maps for width in config.adaptation)
        # The first stage has base_maps and carries C of them, the second twice as many and 4 C, the third 4 and 16 C.
        and 4 * config.base_maps >= 16 * maps
    )


def carry_image(network: ImageClassifier) -> None:
    """Change weights, so that the first 16 C maps of the third stage carry the image, lifted by ``LIFT``."""
    resnet, maps = network.resnet, network.config.channels
    with torch.no_grad():
        for layer in network.adaptation:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                nn.init.eye_(layer.weight[:maps, :maps, 0, 0])
        nn.init.zeros_(resnet.conv1.weight)
        nn.init.eye_(resnet.conv1.weight[:maps, :maps, 1, 1])
        blocks = blocks_of(network)
        for stage, carried in enumerate((maps, 4 * maps, 16 * maps)):
            for block in blocks[2 * stage : 2 * stage + 2]:
                _carry(block, carried)
        for number, (carrier, carried) in enumerate(carriers_to_third_stage(network)):
            carrier.bias[:carried] = LIFT
            # Where batch norm uses the statistics that the coordinator sends: all but the first see lifted values.
            running_statistics(carrier)[0][:carried] = LIFT if number else 0.0


def unshuffle(layer: nn.Conv2d, carried: int) -> None:
    """Make the first maps of a 3x3 convolution with stride 2 those of its input, four for each, and of nothing else."""
    with torch.no_grad():
        layer.weight[:carried] = 0
        for one in range(carried):
            # In the order of pixel_shuffle: the four neighbours of a map follow one another.
            which, down, right = one // 4, one // 2 % 2, one % 2
            layer.weight[one, which, 1 + down, 1 + right] = 1


def blocks_of(network: ImageClassifier) -> list[BasicBlock]:
    """List the blocks of a ResNet-18: two for each of four stages."""
    return [module for module in network.resnet.modules() if isinstance(module, BasicBlock)]


def shortcut_of(block: BasicBlock) -> Shortcut:
    """Find the convolution on the shortcut of a stage's first block."""
    (found,) = (module for module in block.modules() if isinstance(module, Shortcut))
    return found


def running_statistics(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return running mean and variance."""
    if layer.running_mean is None or layer.running_var is None:
        raise AssertionError("the layers of an ImageClassifier keep running statistics")
    return layer.running_mean, layer.running_var


def carriers_to_third_stage(network: ImageClassifier) -> list[tuple[nn.BatchNorm2d, int]]:
    """List the batch-norm layers on the image's way to the third stage's output, as ``Carriers``."""
    maps = network.config.channels
    second, third = (blocks_of(network)[place] for place in (2, 4))
    return [
        *((layer, maps) for layer in network.adaptation if isinstance(layer, nn.BatchNorm2d)),
        (network.resnet.bn1, maps),
        (second.bn1, 4 * maps),
        (second.bn2, 4 * maps),
        (third.bn1, 16 * maps),
        (third.bn2, 16 * maps),
    ]


def seen_by_layers(network: ImageClassifier, moments: Moments, batch_norm: BatchNormMode) -> Seen:
    """Return mean and variance that each layer normalised with: a batch's, or those that the coordinator sent."""
    layers = batch_norm_layers(network).values()
    if batch_norm is BatchNormMode.SHARED:
        return {layer: running_statistics(layer) for layer in layers if isinstance(layer, nn.BatchNorm2d)}
    channels = [layer.num_features for layer in layers]
    means, variances = torch.split(moments.mean, channels), torch.split(moments.variance, channels)
    return dict(zip(layers, zip(means, variances, strict=True), strict=True))


def before_batch_norm(layer: nn.BatchNorm2d, maps: Tensor, seen: Seen) -> Tensor:
    """Undo a batch norm of weight 1 and bias ``LIFT`` of which only deviations from the lift are known.

    Parameters
    ----------
    layer : nn.BatchNorm2d
    maps : float64 tensor, (n, carried, rows, columns)
        Of the layer's first maps, less the lift.
    seen : Seen

    Returns
    -------
    float64 tensor, (n, carried, rows, columns)
    """
    carried = maps.shape[1]
    mean, variance = (values[:carried, None, None].double() for values in seen[layer])
    return maps * (variance + layer.eps).sqrt() + mean


def unpacked(carriers: Carriers, deviations: Tensor, seen: Seen, size: tuple[int, int]) -> Tensor:
    """Go back from what carries the image to the input features: undo batch norm, put neighbours side by side.

    Parameters
    ----------
    carriers : Carriers
        Up to what was read.
    deviations : float64 tensor, (n, carried, rows, columns)
        From the lift.
    seen : Seen
    size : (height, width) of the images

    Returns
    -------
    float64 tensor, (n, C, height, width)
    """
    maps = deviations
    for number, (layer, carried) in reversed(list(enumerate(carriers))):
        if maps.shape[1] > carried:
            maps = nn.functional.pixel_shuffle(maps, 2)
        maps = before_batch_norm(layer, maps, seen)
        if number:
            maps = maps - LIFT
    # Where a side does not halve evenly, what lies outside was padding.
    return maps[:, :, : size[0], : size[1]]


def pixels_of(features: InputFeatures, found: Tensor) -> UInt8Array:
    """Undo ``features_of``, as far as it can be undone: of folded values, the bright half.

    Parameters
    ----------
    features : InputFeatures
    found : float tensor, (n, C, height, width)

    Returns
    -------
    uint8 array, (n, height, width, C)
    """
    if features is InputFeatures.VALUES:
        values = (found + 1) * 127.5
    elif features in (InputFeatures.FOLD, InputFeatures.SORTED_FOLD):
        values = 127.5 + (found + 1) * 63.75
    else:
        values = 255.0 - (found + 1) * 31.5
    pixels: UInt8Array = values.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def _carry(block: BasicBlock, carried: int) -> None:
    """Let the first maps of a block's output carry the image, and keep it out of all others."""
    if block.downsample is None:
        # Past the convolutions. Their first one becomes the trap in the last block that carries the image.
        block.conv1.weight[:, :carried] = 0
        block.bn2.weight[:carried] = 0
        return
    coming = carried // 4
    block.conv1.weight[:, :coming] = 0
    unshuffle(block.conv1, carried)
    block.conv2.weight[:carried] = 0
    block.conv2.weight[:, :carried] = 0
    nn.init.eye_(block.conv2.weight[:carried, :carried, 1, 1])
    shortcut = shortcut_of(block)
    shortcut.weight[:carried] = 0
    shortcut.weight[:, :coming] = 0
