"""What a coordinator makes of an owner's gradients or weights: the images, as encrypted as the owner had them.

Inverting gradients (Geiping et al., NeurIPS 2020): look for images whose gradient points where the owner's does. The
batch-norm moments that come along are matched too (Yin et al., CVPR 2021). All that is used is what the coordinator
gets in exchange ``gradients`` or ``updates``; no key.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppfed.attacks.sent.labels import recover_labels
from ppfed.ciphers.spec import DEFAULT_CIPHER, CipherSpec
from ppfed.images.types import Int64Array, UInt8Array
from ppfed.networks.adaptation import features_of
from ppfed.networks.classifier import ImageClassifier
from ppfed.networks.config import InputFeatures
from ppfed.training.gradients import Moments, batch_norm_layers, values_per_image
from ppfed.training.loop import TrainingConfig, ignore_step
from ppfed.training.settings import BatchNormMode

_DROPS = (3 / 8, 5 / 8, 7 / 8)
_FACTOR = 0.1
_HALF_RANGE = 127.5


@dataclass(frozen=True)
class GradientInversionConfig:
    """How to look for the images.

    Attributes
    ----------
    steps : int
        Of Adam.
    restarts : int
        From new noise; the result with the lowest objective counts.
    learning_rate : float
        In units of half the pixel range; divided by 10 after 3/8, 5/8 and 7/8 of the steps.
    signed : bool
        Whether Adam gets the signs of the pixels' gradients, as in the paper, or the gradients.
    smooth : InputFeatures or None
        What of the images is taken to be smooth, so that total variation is a prior: ``smooth_view`` knows it. None for
        no prior.
    total_variation : float
        Weight of that prior.
    moments : float
        Weight of the batch-norm moments, where they are known.
    batch_norm : BatchNormMode
        What the owner's batch norm normalised with.
    label_smoothing : float
        Of the owner's loss.
    """

    steps: int = 500
    restarts: int = 1
    learning_rate: float = 0.1
    signed: bool = True
    smooth: InputFeatures | None = None
    total_variation: float = 2e-2
    moments: float = 0.1
    batch_norm: BatchNormMode = BatchNormMode.LOCAL
    label_smoothing: float = 0.0


QUICK = GradientInversionConfig(steps=100)
CPU = GradientInversionConfig(steps=500)
GPU = GradientInversionConfig(steps=8000, restarts=4)


@dataclass(frozen=True, eq=False)
class GradientInversion:
    """What came out.

    Attributes
    ----------
    images : uint8 array, (N, H, W, C)
        In no particular order but that of ``labels``. A network that is shown folded values says nothing of which half
        a value was in: these images are then of the bright half, 128 to 255.
    labels : int64 array, (N,)
        Those given, or those recovered.
    objective : float
        Of the best restart.
    gradient_distance : float
        One minus the cosine of the angle between the images' gradient and the owner's, 0 to 2.
    """

    images: UInt8Array
    labels: Int64Array
    objective: float
    gradient_distance: float


def invert_gradient(
    network: ImageClassifier,
    gradient: Mapping[str, Tensor],
    labels: Tensor | None,
    shape: tuple[int, int, int, int],
    config: GradientInversionConfig,
    *,
    moments: Moments | None = None,
    device: torch.device,
    seed: int,
    on_step: Callable[[int, int], None] = ignore_step,
) -> GradientInversion:
    """Restore the images of a batch from the gradient of its mean loss.

    Parameters
    ----------
    network : ImageClassifier
        With the weights at which the owner computed the gradient; it is not changed.
    gradient : mapping of str to float tensor
        By parameter: ``gradient_by_name`` or ``gradient_of_update``.
    labels : int64 tensor, (N,), or None
        None recovers them from the gradient: exactly for one image, an estimate for more (``recover_labels``).
    shape : (N, height, width, channels)
        The number of images is known: every message tells it.
    config : GradientInversionConfig
    moments : Moments or None
        What batch norm saw of the batch.
    device : torch.device
    seed : int
        Of the noise that the search begins with.
    on_step : callable
        Called after each step with the number of steps done, and of all.

    Raises
    ------
    ValueError
        If a parameter's gradient is missing, or labels and shape differ in their number of images.
    """
    target = _Target(network, gradient, moments, config, device)
    if labels is None:
        labels = recover_labels(network, gradient, shape, config.batch_norm, config.label_smoothing, seed)
    if labels.shape != shape[:1]:
        raise ValueError(f"there are labels {tuple(labels.shape)} for images {shape}")
    wanted = labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    lowest, best = float("inf"), torch.empty(0)
    for restart in range(config.restarts):
        # On the CPU, so that a seed means the same on every device.
        start = torch.randn(shape, generator=generator).to(device)

        def done(step: int, restart: int = restart) -> None:
            on_step(restart * config.steps + step, config.restarts * config.steps)

        pixels = _descend(target, start, wanted, config, done)
        objective = float(target.objective(pixels, wanted).detach())
        if objective < lowest:
            lowest, best = objective, pixels
    if not len(best):
        raise ValueError("no restart ended with a finite objective")
    return GradientInversion(
        best.detach().round().to(torch.uint8).cpu().numpy(),
        labels.cpu().numpy(),
        lowest,
        float(target.gradient_distance(best, wanted).detach()),
    )


def smooth_view(cipher: CipherSpec | None) -> InputFeatures | None:
    """Say what of the images an owner trains on is smooth, where an encrypted image itself is noise.

    Parameters
    ----------
    cipher : CipherSpec or None
        None for plain images.

    Returns
    -------
    InputFeatures or None
        A fold of a smooth image is smooth, and negative-positive transform and colour shuffle leave the (sorted) fold
        as it is. None for ciphers that move pixels or change values otherwise.
    """
    if cipher is None:
        return InputFeatures.VALUES
    if cipher.name != DEFAULT_CIPHER:
        return None
    return InputFeatures.SORTED_FOLD if cipher.colour_shuffle else InputFeatures.FOLD


def gradient_by_name(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """Cut the gradient that an owner sends into parameters.

    Parameters
    ----------
    network : nn.Module
    flat : float tensor, (P,)
        ``PartialGradient.gradient``.
    """
    named = dict(network.named_parameters())
    parts = torch.split(flat, [one.numel() for one in named.values()])
    return {name: part.reshape(named[name].shape) for name, part in zip(named, parts, strict=True)}


def gradient_of_update(
    network: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    config: TrainingConfig,
    rates: Sequence[float],
) -> dict[str, Tensor]:
    """Take the gradient from the weights that an owner got and those that it sent back.

    One local step gives its gradient exactly. Several give the mean over the steps, as if the weights had not moved
    between them: an approximation that gets worse with each step. Steps are not unrolled.

    Parameters
    ----------
    network : nn.Module
        Names the parameters.
    before, after : mapping of str to float tensor
        ``network_state``.
    config : TrainingConfig
        Momentum, Nesterov and weight decay: the federation agreed on them. Owners begin each round without momentum.
    rates : sequence of float
        Learning rate of each local step, known from the schedule and the image counts.

    Raises
    ------
    ValueError
        If the rates are all 0, as in the first step of a warm-up: then the weights tell nothing.
    """
    way = momentum = 0.0
    for step, rate in enumerate(rates):
        momentum = 1.0 if step == 0 else config.momentum * momentum + 1.0
        way += rate * (1.0 + config.momentum * momentum if config.nesterov else momentum)
    if way == 0:
        raise ValueError("a step with learning rate 0 does not move the weights")
    return {
        name: ((before[name].double() - after[name].double()) / way - config.weight_decay * before[name].double()).to(
            before[name].dtype
        )
        for name, _ in network.named_parameters()
    }


def moments_of_update(
    network: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    shape: tuple[int, int, int, int],
    steps: int,
) -> Moments:
    """Take what batch norm saw from the running statistics that an owner got and those that it sent back.

    One local step gives its moments; several give their mean, in which later steps weigh more.

    Parameters
    ----------
    network : nn.Module
        Its batch-norm layers have a fixed momentum.
    before, after : mapping of str to float tensor
        ``network_state``.
    shape : (images of one step, height, width, channels)
    steps : int
    """
    images, height, width, channels = shape
    values = values_per_image(network, (height, width, channels))
    means, variances = [], []
    for name, layer in batch_norm_layers(network).items():
        kept = (1 - (layer.momentum or 0.0)) ** steps
        mean, unbiased = (
            (after[f"{name}.{what}"].double() - kept * before[f"{name}.{what}"].double()) / (1 - kept)
            for what in ("running_mean", "running_var")
        )
        number = images * values[name]
        means.append(mean)
        variances.append(unbiased.clamp(min=0) * ((number - 1) / number))
    return Moments(torch.cat(means).float(), torch.cat(variances).float())


class _Target:
    """The owner's message, and how far images are from it."""

    def __init__(
        self,
        network: ImageClassifier,
        gradient: Mapping[str, Tensor],
        moments: Moments | None,
        config: GradientInversionConfig,
        device: torch.device,
    ) -> None:
        self._config = config
        self._network = copy.deepcopy(network).to(device).train()
        self._parameters = dict(self._network.named_parameters())
        missing = next((name for name in self._parameters if name not in gradient), None)
        if missing is not None:
            raise ValueError(f"the gradient of {missing} is missing")
        flat = torch.cat([gradient[name].to(device).reshape(-1) for name in self._parameters])
        self._direction = flat / flat.norm()
        self._loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self._moments = (
            None if moments is None else (moments.mean.to(device).float(), moments.variance.to(device).float())
        )
        self._layers = batch_norm_layers(self._network)
        self._seen: dict[nn.Module, Tensor] = {}
        # The search must not drift with running statistics of its own making.
        for layer in self._layers.values():
            layer.train(config.batch_norm is BatchNormMode.LOCAL)
            layer.momentum = 0.0
            layer.register_forward_pre_hook(self._see)
        self._channels = [layer.num_features for layer in self._layers.values()]
        # With folded features both halves of the range look the same: the search stays in the bright one, away from
        # the kink at mid-grey, where the gradient vanishes.
        self.darkest = 0.0 if network.config.features is InputFeatures.VALUES else 128.0

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen[layer] = inputs[0]

    def gradient_distance(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """One minus the cosine of the angle between gradients (Geiping et al., equation 4)."""
        loss = self._loss(self._network(pixels), labels)
        parts = torch.autograd.grad(loss, list(self._parameters.values()), create_graph=True)
        flat = torch.cat([part.reshape(-1) for part in parts])
        distance: Tensor = 1 - flat @ self._direction / flat.norm()
        return distance

    def objective(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Sum up what the search minimises."""
        total = self.gradient_distance(pixels, labels)
        if self._moments is not None and self._config.moments:
            total = total + self._config.moments * self._moment_distance(*self._moments)
        if self._config.smooth is not None and self._config.total_variation:
            total = total + self._config.total_variation * _total_variation(features_of(pixels, self._config.smooth))
        return total

    def _moment_distance(self, means: Tensor, variances: Tensor) -> Tensor:
        """Squared error of means and deviations in units of the layer's variance, mean over channels and layers."""
        total = means.new_zeros(())
        # Moments are in the order of the layers' names; a block's shortcut runs before them.
        for layer, mean, variance in zip(
            self._layers.values(),
            torch.split(means, self._channels),
            torch.split(variances, self._channels),
            strict=True,
        ):
            own_variance, own_mean = torch.var_mean(self._seen[layer], dim=(0, 2, 3), correction=0)
            scale = variance.mean() + 1e-8
            error = (own_mean - mean) ** 2 + ((own_variance + 1e-8).sqrt() - (variance + 1e-8).sqrt()) ** 2
            total = total + (error / scale).mean()
        return total / len(self._channels)


def _descend(
    target: _Target,
    start: Tensor,
    labels: Tensor,
    config: GradientInversionConfig,
    on_step: Callable[[int], None],
) -> Tensor:
    """Run Adam within the range of pixels; returns float pixels, (N, H, W, C)."""
    low = target.darkest / _HALF_RANGE - 1
    variable = start.add((low + 1) / 2).clamp(low, 1).requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(config.steps * drop) for drop in _DROPS], _FACTOR)
    for step in range(config.steps):
        objective = target.objective((variable + 1) * _HALF_RANGE, labels)
        (slope,) = torch.autograd.grad(objective, variable)
        variable.grad = slope.sign() if config.signed else slope
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            variable.clamp_(low, 1)
        on_step(step + 1)
    return (variable.detach() + 1) * _HALF_RANGE


def _total_variation(maps: Tensor) -> Tensor:
    """Mean absolute difference between neighbours, (N, C, H, W)."""
    return maps.diff(dim=2).abs().mean() + maps.diff(dim=3).abs().mean()
