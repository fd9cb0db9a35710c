"""Learned inversion: a network that the attacker trains on pairs turns ciphertexts back into pictures.

Pairs cost an attacker nothing where masks are fresh: it encrypts images of its own under keys of its own, which look to
a network like anybody's (arXiv 2010.06198; docs/leakage.md). Where one key stream serves all images, it needs leaked
pairs of that stream.

Whoever measures with it must train on other images than it restores; nothing here can check that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor, nn

from ppfed.attacks.learned.one_cycle import OneCycle
from ppfed.attacks.learned.unet import UNet, padded, unet_multiple
from ppfed.ciphers.spec import BLOCK_PX, CipherSpec, Scope, cipher_info
from ppfed.images.types import UInt8Array
from ppfed.networks.adaptation import adaptation_network, features_of
from ppfed.networks.config import AdaptationKind, InputFeatures
from ppfed.training.loop import autocast, epoch_generator, ignore_step

Encrypt = Callable[[UInt8Array, int], UInt8Array]
"""Makes ciphertexts of plain images in an epoch, uint8 (N, H, W, C) both: the attacker's keys, new ones in each epoch,
or always the same leaked ciphertexts."""

_RESTORED_PIXELS = 1 << 18
"""Restored at once: what fits into the cache of a small machine counts for more than what fits into its memory."""


class Front(StrEnum):
    """What stands before the U-Net: it undoes what the cipher does to values, where that can be undone."""

    PIXEL = "pixel"
    """1x1 convolutions: the same for all pixels, as with fresh masks."""
    POSITION = "position"
    """A linear map of colours of its own for each pixel, then 1x1 convolutions: for one mask that serves all images."""
    BLOCK = "block"
    """One map for all blocks of 4x4 pixels."""
    BLOCK_WISE = "block-wise"
    """A map for each block and a mixing of blocks: for one block scramble that serves all images."""


def best_front(cipher: CipherSpec) -> Front:
    """Choose a front by what the cipher works on: pixels or blocks, with fresh choices for each image or not.

    Raises
    ------
    UsageError
        If there is no cipher of that name.
    """
    works_on_blocks = cipher_info(cipher.name).sides_px > 1
    if cipher.scope is Scope.IMAGE:
        return Front.BLOCK if works_on_blocks else Front.PIXEL
    if not works_on_blocks:
        return Front.POSITION
    # LE does the same to all blocks of all images, so that every block is an example for every other.
    return Front.BLOCK if cipher.name == "le-v1" else Front.BLOCK_WISE


@dataclass(frozen=True)
class InversionPreset:
    """What is spent on learned inversion.

    Attributes
    ----------
    name : str
    images : int
        So many images of the attacker's own are wanted; more are used too, at the same cost.
    steps : int
        Of the optimizer. Fewer images are therefore seen more often.
    batch_size : int
    learning_rate : float
        Of AdamW, at the peak of its one cycle.
    pixel_maps, block_maps : tuple of int
        Feature maps of the front's layers.
    widths : tuple of int
        Feature maps of the U-Net, from full resolution down, halving at each.
    """

    name: str
    images: int
    steps: int
    batch_size: int = 128
    learning_rate: float = 3e-3
    pixel_maps: tuple[int, ...] = (16, 32)
    block_maps: tuple[int, ...] = (128, 32)
    widths: tuple[int, ...] = (24, 48, 96)

    def epochs(self, count: int) -> int:
        """Count the passes over so many images that make up ``steps``, rounded up."""
        return -(-self.steps // self.steps_per_epoch(count))

    def steps_per_epoch(self, count: int) -> int:
        """Count the batches that so many images make."""
        return max(1, -(-count // self.batch_size))


QUICK = InversionPreset("quick", images=512, steps=120, batch_size=32, learning_rate=1e-2, widths=(16, 32))
"""Seconds: shows that the attack works, not how well."""
CPU = InversionPreset("cpu", images=20_000, steps=785)
"""Six to fifteen minutes on one core with images of 32x32: 5 passes over 20,000 (docs/leakage.md)."""
GPU = InversionPreset(
    "gpu",
    images=50_000,
    steps=12_000,
    batch_size=256,
    learning_rate=2e-3,
    pixel_maps=(64, 64),
    block_maps=(512, 64),
    widths=(64, 128, 256, 512),
)
"""Minutes on one GPU."""


@dataclass(frozen=True)
class InversionConfig:
    """Which network to build.

    Attributes
    ----------
    channels : int
        Of ciphertexts and of restored images, 1 or 3.
    features : InputFeatures
        What it is shown of the ciphertexts.
    front : Front
    front_maps, widths : tuple of int
        As in ``InversionPreset``.
    height, width : int
        Of the images, padded; only the fronts ``position`` and ``block-wise`` are bound to them.
    """

    channels: int
    features: InputFeatures
    front: Front
    front_maps: tuple[int, ...]
    widths: tuple[int, ...]
    height: int
    width: int

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this many pixels; images are padded to it."""
        return max(unet_multiple(self.widths), 1 if self.front in (Front.PIXEL, Front.POSITION) else BLOCK_PX)


class InversionNetwork(nn.Module):
    """A front, and a U-Net."""

    def __init__(self, config: InversionConfig) -> None:
        super().__init__()
        self.config = config
        self.front = _front(config)
        self.unet = UNet(config.front_maps[-1], config.widths, config.channels)

    def forward(self, ciphertexts: Tensor) -> Tensor:
        """Restore.

        Parameters
        ----------
        ciphertexts : uint8 tensor, (N, H, W, C)
            Height and width are multiples of ``config.multiple``.

        Returns
        -------
        float tensor, (N, C, H, W)
            Values over 255; not clipped.
        """
        restored: Tensor = self.unet(self.front(features_of(ciphertexts, self.config.features))) + 0.5
        return restored


class PositionWise(nn.Module):
    """A linear map of colours of its own for each pixel: it can undo one mask, and one colour shuffle."""

    def __init__(self, channels: int, maps: int, height: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps, channels, height, width))
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, maps, H, W)."""
        return torch.einsum("nchw,mchw->nmhw", features, self.weight)


@dataclass(frozen=True, eq=False)
class Inversion:
    """A trained attack.

    Attributes
    ----------
    network : InversionNetwork
        In evaluation mode, on its device.
    """

    network: InversionNetwork

    @torch.no_grad()
    def restore(self, ciphertexts: UInt8Array) -> UInt8Array:
        """Restore pictures.

        Parameters
        ----------
        ciphertexts : uint8 array, (N, H, W, C)
            Of any size with the fronts ``pixel`` and ``block``; of the size trained on with the others.

        Returns
        -------
        uint8 array, (N, H, W, C)

        Raises
        ------
        ValueError
            If the number of channels, or the size where it matters, is not the one trained on.
        """
        config = self.network.config
        count, height, width, channels = ciphertexts.shape
        if channels != config.channels:
            raise ValueError(f"this network restores {config.channels} channels, not {channels}")
        enlarged = padded(ciphertexts, config.multiple)
        size = enlarged.shape[1:3]
        if config.front in (Front.POSITION, Front.BLOCK_WISE) and size != (config.height, config.width):
            raise ValueError(f"this network restores images of {config.height}x{config.width}, not {size[0]}x{size[1]}")
        device = next(self.network.parameters()).device
        restored = np.empty_like(enlarged)
        batch = max(1, _RESTORED_PIXELS // (size[0] * size[1]))
        for start in range(0, count, batch):
            rows = slice(start, start + batch)
            with autocast(device):
                values = self.network(torch.from_numpy(enlarged[rows]).to(device))
            levels = (values.float() * 255).round().clamp(0, 255).to(torch.uint8)
            restored[rows] = levels.permute(0, 2, 3, 1).cpu().numpy()
        return np.ascontiguousarray(restored[:, :height, :width])


def train_inversion(
    plain: UInt8Array,
    encrypt: Encrypt,
    preset: InversionPreset,
    *,
    features: InputFeatures = InputFeatures.VALUES,
    front: Front = Front.PIXEL,
    device: torch.device,
    seed: int,
    on_step: Callable[[int, int], None] = ignore_step,
) -> Inversion:
    """Train a network to restore plain images from ciphertexts: AdamW, one cycle, mean absolute error.

    Parameters
    ----------
    plain : uint8 array, (N, H, W, C)
        The attacker's own images, or those of leaked pairs. The caller keeps them apart from what is restored later.
    encrypt : callable
        Called with ``plain`` and the epoch, counted from 0; returns the ciphertexts, in the same order and shape.
        With fresh masks it should use a new key or new ids each time: free augmentation.
    preset : InversionPreset
    features : InputFeatures
        What the network is shown; ``ppfed.networks.adaptation.best_features`` chooses.
    front : Front
        ``best_front`` chooses.
    device : torch.device
    seed : int
        Of the first weights and of the order of the images.
    on_step : callable
        Called after each step with the number of steps done, and of all steps.

    Returns
    -------
    Inversion

    Raises
    ------
    ValueError
        If there are fewer than two images, or the ciphertexts have another shape than the images.
    """
    if len(plain) < 2:
        raise ValueError("batch norm needs two images at least")
    channels = plain.shape[3]
    config = InversionConfig(
        channels=channels,
        features=features,
        front=front,
        front_maps=preset.pixel_maps if front in (Front.PIXEL, Front.POSITION) else preset.block_maps,
        widths=preset.widths,
        height=0,
        width=0,
    )
    targets = torch.from_numpy(padded(plain, config.multiple))
    config = replace(config, height=targets.shape[1], width=targets.shape[2])
    network = build_inversion(config, seed).to(device)
    epochs, per_epoch = preset.epochs(len(plain)), preset.steps_per_epoch(len(plain))
    training = OneCycle(network, preset.learning_rate, epochs * per_epoch)
    step = 0
    for epoch in range(epochs):
        hidden = encrypt(plain, epoch)
        if hidden.shape != plain.shape:
            raise ValueError(f"ciphertexts have shape {hidden.shape}, and the images {plain.shape}")
        inputs = torch.from_numpy(padded(hidden, config.multiple))
        for rows in _batches(len(plain), per_epoch, seed, epoch):
            wanted = targets[rows].to(device).permute(0, 3, 1, 2).float() / 255
            with autocast(device):
                loss = nn.functional.l1_loss(network(inputs[rows].to(device)).float(), wanted)
            training.step(loss)
            step += 1
            on_step(step, epochs * per_epoch)
    network.eval()
    return Inversion(network)


def build_inversion(config: InversionConfig, seed: int) -> InversionNetwork:
    """Build a network whose first weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InversionNetwork(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _front(config: InversionConfig) -> nn.Sequential:
    channels, maps = config.channels, config.front_maps
    if config.front is Front.POSITION:
        position = PositionWise(channels, channels, config.height, config.width)
        return nn.Sequential(position, *adaptation_network(AdaptationKind.PIXEL, channels, maps, 0, 0))
    kind = AdaptationKind(config.front.value)
    return adaptation_network(kind, channels, maps, config.height, config.width)


def _batches(count: int, batches: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Rows in random order, in batches of nearly equal size: no small remainder that would upset batch norm."""
    yield from torch.randperm(count, generator=epoch_generator(seed, epoch)).tensor_split(batches)
