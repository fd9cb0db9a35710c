"""What a coordinator that chooses the weights reads off an owner's gradient: the images, as encrypted as they were.

The network is the federation's, its weights are the coordinator's to choose, in exchange ``gradients`` as in
``updates`` (Fowl et al., Robbing the Fed, ICLR 2022; Boenisch et al., EuroS&P 2023, for networks they may shape more
freely). No search and no training is needed. There are two ways, and the network's width and the size of the batch
decide which is taken.

**By brightness** (``bins.py``), where the network is wide enough: images are told apart whatever their labels.

**By label**, otherwise. Most feature maps carry the image unharmed to a convolution of the third stage, where 4x4
neighbouring pixels lie in as many maps. That convolution, the trap, has weights of zero for these maps. So nothing
behind it depends on the image: what arrives at its output in the backward pass follows from weights and labels alone,
and anybody can compute it. And yet the gradient of those zeros is a sum over positions of just that, times the image.
The other maps start as a constant. Zero padding lets them tell positions from one another, and random weights make of
that as many different linear equations as there are weights. Images that share a label within a batch share their
equations: their mean comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn

from ppfed.attacks.sent.bins import bins_for, network_with_bins, read_bins
from ppfed.attacks.sent.carried import (
    LIFT,
    ReadImages,
    blocks_of,
    can_carry,
    carriers_to_third_stage,
    carry_image,
    pixels_of,
    seen_by_layers,
    shortcut_of,
    unpacked,
)
from ppfed.attacks.sent.labels import recover_labels
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import NetworkConfig
from ppfed.training.gradients import Moments, batch_norm_layers
from ppfed.training.settings import BatchNormMode

_FEWEST_CODES = 4
"""Maps beside those of the image, at each stage: they tell positions apart."""
_STEP = 4
"""Pixels from one position of the trap to the next, both ways."""
_CUTOFF = 1e-6
"""Singular values below this part of the largest are rounding errors of float32."""
_TRAPS = {"resnet.layer3.1.conv1": 1, "resnet.layer4.0.conv1": 2}
"""Convolutions with zeros for the maps that carry the image, and their strides."""


class ToldApartBy(StrEnum):
    """What tells the images of a batch apart."""

    BRIGHTNESS = "brightness"
    LABEL = "label"


def can_choose(config: NetworkConfig) -> bool:
    """Tell whether weights for this attack are known: ResNet-18, below 96 pixels, wide enough to carry every pixel."""
    return can_carry(config) and 4 * config.base_maps >= _STEP**2 * config.channels + _FEWEST_CODES


def told_apart_by(config: NetworkConfig, images: int) -> ToldApartBy:
    """Tell which way is taken for batches of so many images: by brightness, if there are bins enough for them."""
    return ToldApartBy.LABEL if bins_for(config, images) is None else ToldApartBy.BRIGHTNESS


def chosen_network(config: NetworkConfig, images: int, seed: int) -> ImageClassifier:
    """Choose weights that let an owner's gradient be read.

    Parameters
    ----------
    config : NetworkConfig
        The federation's; one for which ``can_choose`` holds.
    images : int
        In a batch, as the federation agreed.
    seed : int
        Of the random weights.

    Raises
    ------
    ValueError
        If no such weights are known.
    """
    if not can_choose(config):
        raise ValueError("no weights are known that read images off gradients of this network")
    bins = bins_for(config, images)
    if bins is not None:
        return network_with_bins(config, bins, seed)
    network = build_network(config, seed)
    with torch.no_grad():
        nn.init.ones_(network.resnet.bn1.bias)
        carry_image(network)
        last, carried = blocks_of(network)[6], _STEP**2 * config.channels
        last.conv1.weight[:, :carried] = 0
        shortcut_of(last).weight[:, :carried] = 0
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
        From ``chosen_network`` for batches of this size, as the owner got it; it is not changed.
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
    bins = bins_for(own.config, shape[0])
    if bins is not None:
        return read_bins(
            own, bins, gradient, moments, labels, shape, batch_norm=batch_norm, label_smoothing=label_smoothing
        )
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
        told = known.permute(0, 2, 3, 1).reshape(-1, carried) - LIFT * equations @ counts.double().repeat_interleave(
            height * width
        ).unsqueeze(1)
        scale = equations.norm()
        left.append(equations / scale)
        right.append(told / scale)
    sums = torch.linalg.lstsq(torch.cat(left), torch.cat(right), rcond=_CUTOFF, driver="gelsd").solution
    means = sums.reshape(len(classes), height, width, carried) / counts[:, None, None, None]
    features = unpacked(
        carriers_to_third_stage(own),
        means.permute(0, 3, 1, 2),
        seen_by_layers(own, moments, batch_norm),
        (shape[1], shape[2]),
    )
    return ReadImages(pixels_of(own.config.features, features)[members.numpy()], labels.cpu().numpy())


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
