"""Learned inversion without pairs: the attacker has ciphertexts under one unknown key, and other images of its own.

A restorer learns to make of the ciphertexts what a critic cannot tell from the attacker's images: adversarial training
as in CycleGAN (Zhu et al., ICCV 2017) and in the attack of arXiv 2010.06198. Where those learn a second network that
encrypts, to keep the restorer from inventing pictures, ours cannot invent any: it is one linear map of colours for each
pixel, kept near to an orthogonal one. That is what undoes a mask and a colour shuffle that serve all images, and it is
of no use where each image has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ppfed.attacks.learned.inversion import PositionWise
from ppfed.images.types import UInt8Array
from ppfed.networks.adaptation import features_of
from ppfed.networks.config import InputFeatures
from ppfed.training.loop import autocast, ignore_step

Float32Array = npt.NDArray[np.float32]

_BETAS = (0.5, 0.9)
"""Less momentum than Adam's default, as is usual where two networks train against each other (DCGAN, 2016)."""
_SLOPE = 0.2
_FIRST_SCALE = 0.5
"""The maps start smaller than orthogonal, so that no sign is hard to leave."""


@dataclass(frozen=True)
class UnpairedPreset:
    """What is spent on inversion without pairs.

    Attributes
    ----------
    name : str
    steps : int
        Of both optimizers.
    batch_size : int
    restorer_rate, critic_rate : float
        Learning rates of Adam.
    widths : tuple of int
        Feature maps of the critic's layers; all but the first halve the resolution.
    orthogonality : float
        Weight of the mean squared distance of W W' from the identity.
    """

    name: str
    steps: int
    batch_size: int = 64
    restorer_rate: float = 0.03
    critic_rate: float = 2e-3
    widths: tuple[int, ...] = (24, 48, 64)
    orthogonality: float = 0.1


QUICK = UnpairedPreset("quick", steps=120, batch_size=32, widths=(16, 32))
"""Seconds, with images of 16x16."""
CPU = UnpairedPreset("cpu", steps=600)
"""Two minutes on one core with images of 32x32."""
GPU = UnpairedPreset("gpu", steps=4_000, batch_size=256, widths=(64, 128, 256))
"""Minutes on one GPU."""


@dataclass(frozen=True, eq=False)
class UnpairedInversion:
    """A trained attack.

    Attributes
    ----------
    weight : float32 array, (C, C, H, W)
        For each pixel the matrix that takes its encrypted colours, with 127.5 as zero, to the restored ones.
    """

    weight: Float32Array

    def restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        """Restore pictures of the same size under the same key.

        Parameters
        ----------
        ciphertexts : uint8 array, (N, H, W, C)

        Returns
        -------
        uint8 array, (N, H, W, C)

        Raises
        ------
        ValueError
            If the shape is not the one trained on.
        """
        channels, _, height, width = self.weight.shape
        if ciphertexts.shape[1:] != (height, width, channels):
            raise ValueError(f"trained on images of {(height, width, channels)}, not {ciphertexts.shape[1:]}")
        centred = ciphertexts.astype(np.float32) - 127.5
        restored = np.einsum("nhwc,mchw->nhwm", centred, self.weight) + 127.5
        levels: UInt8Array = np.clip(np.rint(restored), 0, 255).astype(np.uint8)
        return levels


def train_unpaired(
    ciphertexts: UInt8Array,
    own: UInt8Array,
    preset: UnpairedPreset,
    *,
    device: torch.device,
    seed: int,
    on_step: Callable[[int, int], None] = ignore_step,
) -> UnpairedInversion:
    """Train a restorer against a critic with the least-squares loss (LSGAN, Mao et al., ICCV 2017).

    Parameters
    ----------
    ciphertexts : uint8 array, (N, H, W, C)
        Of the target, under one unknown key.
    own : uint8 array, (M, H, W, C)
        Plain images of the attacker's own. The caller keeps them apart from the target's.
    preset : UnpairedPreset
    device : torch.device
    seed : int
        Of the first weights and of the order of the images.
    on_step : callable
        Called after each step with the number of steps done, and of all steps.

    Returns
    -------
    UnpairedInversion

    Raises
    ------
    ValueError
        If there are no images, or the two kinds differ in shape.
    """
    if ciphertexts.shape[1:] != own.shape[1:] or not len(ciphertexts) or not len(own):
        raise ValueError(f"ciphertexts have shape {ciphertexts.shape}, and the attacker's images {own.shape}")
    _, height, width, channels = own.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        restorer, critic = PositionWise(channels, channels, height, width), _critic(channels, preset.widths)
        nn.init.normal_(restorer.weight, std=_FIRST_SCALE * channels**-0.5)
    restorer, critic = restorer.to(device), critic.to(device)
    of_restorer = torch.optim.Adam(restorer.parameters(), lr=preset.restorer_rate, betas=_BETAS)
    of_critic = torch.optim.Adam(critic.parameters(), lr=preset.critic_rate, betas=_BETAS)
    generator = torch.Generator().manual_seed(seed)
    hidden, natural = torch.from_numpy(ciphertexts), torch.from_numpy(own)
    for step in range(preset.steps):
        real = features_of(_drawn(natural, preset.batch_size, generator).to(device), InputFeatures.VALUES)
        fake = restorer(features_of(_drawn(hidden, preset.batch_size, generator).to(device), InputFeatures.VALUES))
        with autocast(device):
            mistaken = _away_from(critic(real), 1.0) + _away_from(critic(fake.detach()), -1.0)
        _take(of_critic, mistaken)
        with autocast(device):
            exposed = _away_from(critic(fake), 1.0)
        _take(of_restorer, exposed + preset.orthogonality * _distance_from_orthogonal(restorer.weight))
        on_step(step + 1, preset.steps)
    return UnpairedInversion(restorer.weight.detach().cpu().numpy())


def _critic(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Judge patches (PatchGAN; Isola et al., CVPR 2017), with spectral norm (Miyato et al., ICLR 2018)."""
    first, *others = widths
    layers: list[nn.Module] = [spectral_norm(nn.Conv2d(channels, first, 3, padding=1)), nn.LeakyReLU(_SLOPE)]
    for old, new in pairwise((first, *others)):
        layers += [spectral_norm(nn.Conv2d(old, new, 4, stride=2, padding=1)), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))


def _drawn(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return images[torch.randint(len(images), (count,), generator=generator)]


def _away_from(verdicts: Tensor, wanted: float) -> Tensor:
    return (verdicts.float() - wanted).square().mean()


def _distance_from_orthogonal(weight: Tensor) -> Tensor:
    """Squared distance of W W' from the identity, (C, C, H, W), averaged over pixels."""
    products = torch.einsum("mchw,kchw->mkhw", weight, weight)
    identity = torch.eye(weight.shape[0], device=weight.device)[:, :, None, None]
    return (products - identity).square().sum((0, 1)).mean()


def _take(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
