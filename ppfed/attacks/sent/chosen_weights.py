"""What a coordinator that chooses the weights reads off an owner's gradient: the images, as encrypted as they were.

It solves linear equations, and needs neither search nor training.

The network is the federation's, its weights are the coordinator's to choose, in exchange ``gradients`` as in
``updates`` (Fowl et al., Robbing the Fed, ICLR 2022; Boenisch et al., EuroS&P 2023, for networks they may shape more
freely). Here most feature maps carry the image unharmed to a convolution of the third stage, where 4x4 neighbouring
pixels lie in as many maps. That convolution, the trap, has weights of zero for these maps. So nothing behind it depends
on the image: what arrives at its output in the backward pass follows from weights and labels alone, and anybody can
compute it. And yet the gradient of those zeros is a sum over positions of just that, times the image. The other maps
start as a constant. Zero padding lets them tell positions from one another, and random weights make of that as many
different equations as there are weights.

Images that share a label within a batch share their equations: their mean comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ppfed.attacks.sent.labels import recover_labels
from ppfed.images.types import Int64Array, UInt8Array
from ppfed.networks.classifier import BasicBlock, ImageClassifier, Shortcut, build_network
from ppfed.networks.config import AdaptationKind, Backbone, InputFeatures, NetworkConfig
from ppfed.training.gradients import Moments, batch_norm_layers
from ppfed.training.settings import BatchNormMode

_LIFT = 4.0
"""Added to what carries the image, in standard deviations: a ReLU cuts off what lies farther below the mean. More would
cost an owner that computes in bfloat16 digits of the image."""
_FEWEST_CODES = 4
"""Maps beside those of the image, at each stage: they tell positions apart."""
_STEP = 4
"""Pixels from one position of the trap to the next, both ways."""
_CUTOFF = 1e-6
"""Singular values below this part of the largest are rounding errors of float32."""
_TRAPS = {"resnet.layer3.1.conv1": 1, "resnet.layer4.0.conv1": 2}
"""Convolutions with zeros for the maps that carry the image, and their strides."""


@dataclass(frozen=True, eq=False)
class ReadImages:
    """What came out.

    Attributes
    ----------
    images : uint8 array, (N, H, W, C)
        In the order of ``labels``; those that share a label are the mean of these. A network that is shown folded
        values says nothing of which half a value was in: these images are then of the bright half. With sorted features
        the colours of each pixel are in ascending order.
    labels : int64 array, (N,)
        Those given, or those counted.
    """

    images: UInt8Array
    labels: Int64Array


def can_choose(config: NetworkConfig) -> bool:
    """Tell whether weights for this attack are known: ResNet-18, below 96 pixels, wide enough to carry every pixel."""
    maps = config.channels
    return (
        config.backbone is Backbone.RESNET18
        and not config.large_stem
        and config.adaptation_kind is AdaptationKind.PIXEL
        and all(width >= maps for width in config.adaptation)
        # The first stage has base_maps and carries C of them, the second twice as many and 4 C, the third 4 and 16 C.
        and 4 * config.base_maps >= _STEP**2 * maps + _FEWEST_CODES
    )


def chosen_network(config: NetworkConfig, seed: int) -> ImageClassifier:
    """Choose weights that let an owner's gradient be read.

    Parameters
    ----------
    config : NetworkConfig
        The federation's; one for which ``can_choose`` holds.
    seed : int
        Of the random weights.

    Raises
    ------
    ValueError
        If no such weights are known.
    """
    if not can_choose(config):
        raise ValueError("no weights are known that read images off gradients of this network")
    network = build_network(config, seed)
    resnet, maps = network.resnet, config.channels
    with torch.no_grad():
        for layer in network.adaptation:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                nn.init.eye_(layer.weight[:maps, :maps, 0, 0])
        nn.init.zeros_(resnet.conv1.weight)
        nn.init.eye_(resnet.conv1.weight[:maps, :maps, 1, 1])
        nn.init.ones_(resnet.bn1.bias[maps:])
        blocks = _blocks(network)
        for stage, carried in enumerate((maps, 4 * maps, 16 * maps)):
            for block in blocks[2 * stage : 2 * stage + 2]:
                _carry(block, carried)
        blocks[6].conv1.weight[:, : 16 * maps] = 0
        _shortcut(blocks[6]).weight[:, : 16 * maps] = 0
        for number, (carrier, carried) in enumerate(_carriers(network)):
            carrier.bias[:carried] = _LIFT
            # Where batch norm uses the statistics that the coordinator sends: all but the first see lifted values.
            _running(carrier)[0][:carried] = _LIFT if number else 0.0
    return network


def read_images(
    network: ImageClassifier,
    gradient: Mapping[str, Tensor],
    moments: Moments,
    labels: Tensor | None,
    shape: tuple[int, int, int, int],
    *,
    batch_norm: BatchNormMode = BatchNormMode.LOCAL,
    label_smoothing: float = 0.0,
) -> ReadImages:
    """Read the images of a batch off the gradient of its mean loss.

    Parameters
    ----------
    network : ImageClassifier
        From ``chosen_network``, as the owner got it; it is not changed.
    gradient : mapping of str to float tensor
        By parameter: ``gradient_by_name`` or ``gradient_of_update``.
    moments : Moments
        What batch norm saw of the batch.
    labels : int64 tensor, (N,), or None
        None counts them: exactly, as the network predicts the same for every image.
    shape : (N, height, width, channels)
    batch_norm : BatchNormMode
        What the owner's batch norm normalised with.
    label_smoothing : float
        Of the owner's loss.

    Raises
    ------
    ValueError
        If labels and shape differ in their number of images.
    """
    own = copy.deepcopy(network).cpu()
    if labels is None:
        labels = recover_labels(own, gradient, shape, batch_norm, label_smoothing)
    if labels.shape != shape[:1]:
        raise ValueError(f"there are labels {tuple(labels.shape)} for images {shape}")
    classes, members, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    firsts = torch.stack([torch.nonzero(members == one)[0, 0] for one in range(len(classes))])
    arriving = _arriving(own, labels.cpu(), shape, batch_norm, label_smoothing)
    carried = 16 * shape[3]
    height, width = (-(-side // _STEP) for side in shape[1:3])
    left, right = [], []
    for name, stride in _TRAPS.items():
        equations = _equations(arriving[name][firsts].double(), stride, (height, width))
        known = gradient[f"{name}.weight"][:, :carried].cpu().double()
        # Unknown is what is above the lift, or below it: it has mean 0, so that what nothing tells comes out as a mean.
        told = known.permute(0, 2, 3, 1).reshape(-1, carried) - _LIFT * equations @ counts.double().repeat_interleave(
            height * width
        ).unsqueeze(1)
        scale = equations.norm()
        left.append(equations / scale)
        right.append(told / scale)
    sums = torch.linalg.lstsq(torch.cat(left), torch.cat(right), rcond=_CUTOFF, driver="gelsd").solution
    means = sums.reshape(len(classes), height, width, carried) / counts[:, None, None, None]
    features = _unpacked(own, means.permute(0, 3, 1, 2), moments, batch_norm, shape[1:3])
    pixels = _values(network.config.features, features).permute(0, 2, 3, 1)[members]
    return ReadImages(pixels.round().clamp(0, 255).to(torch.uint8).numpy(), labels.cpu().numpy())


def _carry(block: BasicBlock, carried: int) -> None:
    """Let the first maps of a block's output carry the image, and keep it out of all others."""
    if block.downsample is None:
        # Past the convolutions. Their first one becomes the trap in the last block that carries the image.
        block.conv1.weight[:, :carried] = 0
        block.bn2.weight[:carried] = 0
        return
    coming = carried // 4
    block.conv1.weight[:carried] = 0
    block.conv1.weight[:, :coming] = 0
    for one in range(carried):
        # In the order of pixel_shuffle: the four neighbours of a map follow one another.
        which, down, right = one // 4, one // 2 % 2, one % 2
        block.conv1.weight[one, which, 1 + down, 1 + right] = 1
    block.conv2.weight[:carried] = 0
    block.conv2.weight[:, :carried] = 0
    nn.init.eye_(block.conv2.weight[:carried, :carried, 1, 1])
    shortcut = _shortcut(block)
    shortcut.weight[:carried] = 0
    shortcut.weight[:, :coming] = 0


def _blocks(network: ImageClassifier) -> list[BasicBlock]:
    """Two for each of four stages."""
    return [module for module in network.resnet.modules() if isinstance(module, BasicBlock)]


def _shortcut(block: BasicBlock) -> Shortcut:
    """Find the convolution on the shortcut of a stage's first block."""
    (found,) = (module for module in block.modules() if isinstance(module, Shortcut))
    return found


def _running(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return running mean and variance."""
    if layer.running_mean is None or layer.running_var is None:
        raise AssertionError("the layers of an ImageClassifier keep running statistics")
    return layer.running_mean, layer.running_var


def _carriers(network: ImageClassifier) -> list[tuple[nn.BatchNorm2d, int]]:
    """Batch-norm layers on the image's way to the trap, with the number of maps that carry it, first to last."""
    maps = network.config.channels
    second, third = (_blocks(network)[place] for place in (2, 4))
    return [
        *((layer, maps) for layer in network.adaptation if isinstance(layer, nn.BatchNorm2d)),
        (network.resnet.bn1, maps),
        (second.bn1, 4 * maps),
        (second.bn2, 4 * maps),
        (third.bn1, 16 * maps),
        (third.bn2, 16 * maps),
    ]


def _arriving(
    network: ImageClassifier,
    labels: Tensor,
    shape: tuple[int, int, int, int],
    batch_norm: BatchNormMode,
    label_smoothing: float,
) -> dict[str, Tensor]:
    """Compute what arrives at the traps' outputs in the backward pass: with any images, as it depends on none."""
    network.train()
    for layer in batch_norm_layers(network).values():
        layer.train(batch_norm is BatchNormMode.LOCAL)
        layer.momentum = 0.0
    seen: dict[str, Tensor] = {}

    def keep(name: str, _layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = output

    hooks = [network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in _TRAPS]
    loss = nn.functional.cross_entropy(
        network(torch.full(shape, 128, dtype=torch.uint8)), labels, label_smoothing=label_smoothing
    )
    for hook in hooks:
        hook.remove()
    return dict(zip(_TRAPS, torch.autograd.grad(loss, [seen[name] for name in _TRAPS]), strict=True))


def _equations(arriving: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Write the gradient of a 3x3 convolution with padding 1 as a matrix: from one input map of each class.

    Parameters
    ----------
    arriving : float64 tensor, (classes, outputs, rows, columns)
        At the output, for one image of each class.
    stride : int
    size : (height, width) of the input maps

    Returns
    -------
    float64 tensor, (outputs * 9, classes * height * width)
        A class's images enter as their sum.
    """
    classes, outputs = arriving.shape[:2]
    spread = arriving.new_zeros(classes, outputs, *size)
    spread[:, :, ::stride, ::stride] = arriving
    # An output at p meets the input at p + k - 1 with tap k: an input at q meets the output at q + 1 - k, so that the
    # window around it is read backwards.
    windows = nn.functional.unfold(spread.reshape(-1, 1, *size), 3, padding=1).flip(1)
    return windows.reshape(classes, outputs, 9, -1).permute(1, 2, 0, 3).reshape(outputs * 9, -1)


def _unpacked(
    network: ImageClassifier,
    deviations: Tensor,
    moments: Moments,
    batch_norm: BatchNormMode,
    size: tuple[int, int],
) -> Tensor:
    """Go back from what the trap saw to the input features: undo batch norm, put neighbours side by side.

    Parameters
    ----------
    deviations : float64 tensor, (n, 16 C, rows, columns)
        From the lift.
    size : (height, width) of the images

    Returns
    -------
    float64 tensor, (n, C, height, width)
    """
    layers = list(batch_norm_layers(network).values())
    channels = [layer.num_features for layer in layers]
    seen = dict(
        zip(
            layers,
            zip(torch.split(moments.mean, channels), torch.split(moments.variance, channels), strict=True),
            strict=True,
        )
    )
    carriers = _carriers(network)
    maps = deviations
    for number, (layer, carried) in reversed(list(enumerate(carriers))):
        if maps.shape[1] > carried:
            maps = nn.functional.pixel_shuffle(maps, 2)
        mean, variance = seen[layer] if batch_norm is BatchNormMode.LOCAL else _running(layer)
        scale = (variance[:carried].double() + layer.eps).sqrt()
        maps = maps * scale[:, None, None] + mean[:carried].double()[:, None, None]
        if number:
            maps = maps - _LIFT
    # Where a side is no multiple of four, what lies outside was padding.
    return maps[:, :, : size[0], : size[1]]


def _values(features: InputFeatures, found: Tensor) -> Tensor:
    """Undo ``features_of``, as far as it can be undone: of folded values, the bright half."""
    if features is InputFeatures.VALUES:
        return (found + 1) * 127.5
    if features in (InputFeatures.FOLD, InputFeatures.SORTED_FOLD):
        return 127.5 + (found + 1) * 63.75
    return 255.0 - (found + 1) * 31.5
