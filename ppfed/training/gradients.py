"""Exchange ``gradients``: one optimizer step over images that lie at several owners.

Each owner computes the mean gradient of the loss over its part of the step's batch, and the moments that its batch-norm
layers saw. Weighted by image counts these add up to what one machine with all images would have computed, so the step
that follows is that machine's step, up to rounding (docs/architecture.md).
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ppfed.errors import ModelError
from ppfed.training.loop import Trainer, autocast
from ppfed.training.settings import FEWEST_IMAGES, BatchNormMode, Precision

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class Turns:
    """Which of an owner's images belong to which step of a pass: each image to one, at least ``fewest`` to a step.

    An owner that cannot fill every step takes part in as many as it can, evenly spaced.

    Attributes
    ----------
    images : int
        How many the owner has to train on.
    steps : int
        Of a pass, the same for all owners.
    fewest : int
        Least images over which the owner computes a gradient.
    shift : int
        Where the owner begins, so that small owners do not all take part in the same steps.
    """

    images: int
    steps: int
    fewest: int = FEWEST_IMAGES
    shift: int = 0

    @property
    def parts(self) -> int:
        """How many steps the owner takes part in."""
        return min(self.steps, self.images // self.fewest)

    def part(self, step: int) -> int | None:
        """Return which part of its images the owner uses in a step, counted from 0; None where it is not its turn."""
        place = (step - self.shift) % self.steps
        # Part p has place floor(p * steps / parts): the smallest p that can have this place, if it does.
        part = -(-place * self.parts // self.steps)
        return part if part < self.parts and part * self.steps // self.parts == place else None

    def count(self, step: int) -> int:
        """Return how many images the owner uses in a step."""
        part = self.part(step)
        if part is None:
            return 0
        whole, rest = divmod(self.images, self.parts)
        return whole + (part < rest)

    def rows(self, step: int, seed: int, epoch: int) -> Tensor:
        """Choose the owner's images of a step: the order depends on the seed and the pass alone.

        Parameters
        ----------
        step : int
            Counted from 0; one in which the owner takes part.
        seed : int
        epoch : int
            The pass, counted from 0.

        Returns
        -------
        int64 tensor, (count(step),), on the CPU
        """
        part = self.part(step)
        if part is None:
            raise ValueError("it is not this owner's turn")
        order = torch.randperm(self.images, generator=_generator(seed, epoch, 0))
        return order.tensor_split(self.parts)[part]


def steps_of_pass(images: int, batch_size: int) -> int:
    """Count the steps of a pass over the images of all owners together."""
    return max(1, -(-images // batch_size))


def owner_offset(owner: str) -> int:
    """Give each owner an order of images, and a turn to begin with, of its own: the same in every run."""
    return zlib.crc32(owner.encode()) & 0xFFFF


def step_generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """Randomness of one step's augmentation: a step that is asked for again is the same step."""
    # A trailing zero would not change what NumPy's SeedSequence makes of the numbers.
    return _generator(seed, epoch, step + 1)


def _generator(seed: int, epoch: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, epoch, number, 1]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


@dataclass(frozen=True, eq=False)
class Moments:
    """What the inputs of all batch-norm layers were like over some images, layer after layer.

    Attributes
    ----------
    mean, variance : float tensor, (channels of all layers,), on the CPU
        The variance is the population's: divided by the number of values.
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class PartialGradient:
    """What an owner contributes to a step.

    Attributes
    ----------
    gradient : float tensor, (P,), on the CPU
        Mean over the images of the gradient of the loss, by parameter, in the order of ``named_parameters``.
    moments : Moments
    images : int
    loss : float
        Mean over the images.
    """

    gradient: Tensor
    moments: Moments
    images: int
    loss: float


def partial_gradient(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: nn.Module,
    *,
    micro_batch: int,
    batch_norm: BatchNormMode = BatchNormMode.LOCAL,
    precision: Precision = Precision.AUTO,
) -> PartialGradient:
    """Compute the mean gradient over a batch, in micro-batches that fit into memory.

    Parameters
    ----------
    network : nn.Module
        Takes uint8 images; its weights and running statistics stay as they are.
    images : uint8 tensor, (N, H, W, C), on the network's device
        Augmented already.
    labels : int64 tensor, (N,)
    loss : nn.Module
        Mean loss of logits and labels.
    micro_batch : int
        Most images at once, 4 or more: the parts are of nearly equal size, so that each has two.
    batch_norm : BatchNormMode
    precision : Precision
        Of the computation; the gradient is float32.
    """
    network.train()
    network.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    moments: list[tuple[int, Moments]] = []
    batches = -(-len(images) // micro_batch)
    with _measuring(network, batch_norm) as measured:
        for some, wanted in zip(images.tensor_split(batches), labels.tensor_split(batches), strict=True):
            share = len(some) / len(images)
            with autocast(images.device, precision):
                part = loss(_full(network(some)), wanted) * share
            part.backward()
            total = total + part.detach()
            moments.append((len(some), measured.take()))
    gradient = torch.cat(
        [
            (torch.zeros_like(one) if one.grad is None else one.grad).reshape(-1).cpu()
            for _, one in network.named_parameters()
        ]
    )
    network.zero_grad(set_to_none=True)
    return PartialGradient(gradient, merge_moments(moments), len(images), float(total))


def merge_moments(parts: Sequence[tuple[int, Moments]]) -> Moments:
    """Compute the moments of a union from those of its parts, by the law of total variance.

    Parameters
    ----------
    parts : sequence of (image count, Moments)

    Returns
    -------
    Moments of float64
    """
    total = sum(count for count, _ in parts)
    mean = sum(
        (one.mean.cpu().double() * (count / total) for count, one in parts), torch.zeros((), dtype=torch.float64)
    )
    variance = torch.zeros_like(mean)
    for count, one in parts:
        variance += (one.variance.cpu().double() + (one.mean.cpu().double() - mean) ** 2) * (count / total)
    return Moments(mean, variance)


def apply_step(
    trainer: Trainer,
    parts: Sequence[PartialGradient],
    progress: float,
    values: Mapping[str, int],
    *,
    clip: float | None = None,
) -> float:
    """Take the step that ``Trainer`` would have taken over the union of the owners' images.

    Parameters
    ----------
    trainer : Trainer
        Its network and momentum are changed.
    parts : sequence of PartialGradient
    progress : float
        Which part of all epochs is done, 0 to 1: the learning rate depends on it.
    values : mapping of str to int
        From ``values_per_image``.
    clip : float or None
        Longest Euclidean norm of an owner's gradient; a longer one is shortened to it.

    Returns
    -------
    float
        Mean loss over the union.
    """
    images = sum(part.images for part in parts)
    gradient = torch.zeros_like(parts[0].gradient, dtype=torch.float64)
    for part in parts:
        own = part.gradient.double()
        norm = float(own.norm())
        if clip is not None and norm > clip:
            own = own * (clip / norm)
        gradient += own * (part.images / images)
    parameters = [one for _, one in trainer.network.named_parameters()]
    for parameter, own in zip(parameters, torch.split(gradient, [one.numel() for one in parameters]), strict=True):
        # Memory format as the parameter's, so that the step's arithmetic runs in place.
        parameter.grad = torch.empty_like(parameter).copy_(own.reshape(parameter.shape))
    trainer.descend(trainer.config.learning_rate_at(progress))
    trainer.network.zero_grad(set_to_none=True)
    _move_statistics(trainer.network, merge_moments([(part.images, part.moments) for part in parts]), images, values)
    return sum(part.loss * part.images for part in parts) / images


def values_per_image(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Count how many values of a channel each batch-norm layer sees for one image.

    Parameters
    ----------
    network : nn.Module
    shape : (height, width, channels) of an image

    Returns
    -------
    dict of str to int
        By layer name.
    """
    # In training mode, as a network may do more when it predicts; but batch norm of one image would fail.
    ghost = copy.deepcopy(network).to("meta").train()
    layers = batch_norm_layers(ghost)
    counts = dict.fromkeys(layers, 0)

    def counter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            counts[name] += inputs[0].shape.numel() // inputs[0].shape[1]

        return count

    for name, layer in layers.items():
        layer.eval().register_forward_pre_hook(counter(name))
    ghost(torch.zeros((1, *shape), dtype=torch.uint8, device="meta"))
    return counts


def batch_norm_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers by name, in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def count_moments(network: nn.Module) -> int:
    """Count the channels of all batch-norm layers: the length of a mean, and of a variance, in ``Moments``."""
    return sum(layer.num_features for layer in batch_norm_layers(network).values())


def _move_statistics(network: nn.Module, moments: Moments, images: int, values: Mapping[str, int]) -> None:
    """Move running statistics towards a batch's moments, with the momentum and the unbiased variance of torch."""
    start = 0
    with torch.no_grad():
        for name, layer in batch_norm_layers(network).items():
            if layer.momentum is None or layer.running_mean is None or layer.running_var is None:
                raise ModelError(f"{name} keeps no running statistics with a fixed momentum", hint="Use another layer.")
            own = slice(start, start + layer.num_features)
            start += layer.num_features
            number = images * values[name]
            unbiased = moments.variance[own] * (number / (number - 1))
            for kept, fresh in ((layer.running_mean, moments.mean[own]), (layer.running_var, unbiased)):
                kept.mul_(1 - layer.momentum).add_(fresh.to(kept.device, kept.dtype), alpha=layer.momentum)


def _full(values: Tensor) -> Tensor:
    """See half precision as float32; other values stay as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class _Measured:
    """Collects what the batch-norm layers see in one forward pass."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = batch_norm_layers(network)
        self._seen: dict[str, list[tuple[int, Moments]]] = {name: [] for name in self._layers}

    def see(self, name: str, inputs: Tensor) -> None:
        values = _full(inputs.detach())
        axes = [axis for axis in range(values.ndim) if axis != 1]
        variance, mean = torch.var_mean(values, dim=axes, correction=0)
        self._seen[name].append((values.numel() // values.shape[1], Moments(mean, variance)))

    def take(self) -> Moments:
        """Return the moments of the last forward pass, and forget them."""
        found = []
        for name, seen in self._seen.items():
            if not seen:
                raise ModelError(f"the network does not use its layer {name}", hint="Use another network.")
            found.append(seen[0][1] if len(seen) == 1 else merge_moments(seen))
            seen.clear()
        if not found:
            return Moments(torch.empty(0), torch.empty(0))
        return Moments(torch.cat([one.mean for one in found]).cpu(), torch.cat([one.variance for one in found]).cpu())


@contextmanager
def _measuring(network: nn.Module, mode: BatchNormMode) -> Iterator[_Measured]:
    """Measure batch-norm inputs while the running statistics stay as they are."""
    measured = _Measured(network)
    layers = batch_norm_layers(network)
    momenta = {name: layer.momentum for name, layer in layers.items()}
    hooks = []
    for name, layer in layers.items():

        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            measured.see(name, inputs[0])

        hooks.append(layer.register_forward_pre_hook(hook))
        layer.train(mode is BatchNormMode.LOCAL)
        layer.momentum = 0.0
    try:
        yield measured
    finally:
        for handle in hooks:
            handle.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
            layer.train()
