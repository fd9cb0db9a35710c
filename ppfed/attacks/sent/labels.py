"""Labels from a gradient: the last layer's bias tells how often each class was in the batch.

For a mean cross-entropy the bias gradient of a class is its mean predicted probability minus its mean target. For one
image it is negative for the true class alone (Zhao et al., iDLG, 2020, arXiv 2001.02610). For more, the predicted
probabilities are estimated with a batch of noise, and the rest is counting (after Wainakh et al., PETS 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from ppfed.networks.classifier import ImageClassifier
from ppfed.training.gradients import batch_norm_layers
from ppfed.training.settings import BatchNormMode

_NOISE_IMAGES = 64
_LAST_BIAS = ".fc.bias"
"""Of both backbones."""


def recover_labels(
    network: ImageClassifier,
    gradient: Mapping[str, Tensor],
    shape: tuple[int, int, int, int],
    batch_norm: BatchNormMode = BatchNormMode.LOCAL,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Tell which labels a batch had.

    Parameters
    ----------
    network : ImageClassifier
        With the weights at which the gradient was computed; it is not changed.
    gradient : mapping of str to float tensor
        By parameter.
    shape : (N, height, width, channels)
    batch_norm : BatchNormMode
        What the owner's batch norm normalised with.
    label_smoothing : float
        Of the owner's loss, below 1.
    seed : int
        Of the noise.

    Returns
    -------
    int64 tensor, (N,), on the CPU
        In ascending order: which image has which label is not in a gradient. Exact for one image; for more an estimate,
        good while the network's mean prediction for a class depends little on the images.
    """
    (last,) = (name for name in gradient if name.endswith(_LAST_BIAS))
    slope = gradient[last].detach().cpu().double()
    images, classes = shape[0], len(slope)
    if images == 1:
        return slope.argmin().reshape(1)
    predicted = _mean_prediction(network, shape, batch_norm, seed)
    shares = (predicted - slope - label_smoothing / classes) / (1 - label_smoothing)
    # Whole counts by largest remainder.
    wanted = (shares.clamp(min=0) / shares.clamp(min=0).sum()) * images
    counts = wanted.floor().long()
    counts[(wanted - counts).topk(images - int(counts.sum())).indices] += 1
    return torch.repeat_interleave(torch.arange(classes), counts)


@torch.no_grad()
def _mean_prediction(
    network: ImageClassifier, shape: tuple[int, int, int, int], batch_norm: BatchNormMode, seed: int
) -> Tensor:
    """Mean class probabilities over uniform noise, float64, on the CPU."""
    model = copy.deepcopy(network).cpu().train()
    for layer in batch_norm_layers(model).values():
        layer.train(batch_norm is BatchNormMode.LOCAL)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (_NOISE_IMAGES, *shape[1:]), generator=generator, dtype=torch.uint8)
    logits: Tensor = model(noise)
    return logits.double().softmax(1).mean(0)
