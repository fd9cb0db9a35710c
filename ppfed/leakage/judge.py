"""A network trained on plain images, which tells what is left of an image for a classifier to see.

Its features give a distance in the manner of LPIPS (Zhang et al., CVPR 2018) that needs no download: theirs compares a
network trained on ImageNet with weights learned from people's judgements; ours is a small ResNet-18 trained on the few
plain images at hand, and every channel counts the same. So the numbers compare attacks with each other on the same
images and judge, and with nothing that others have published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ppfed.errors import DataError
from ppfed.images.types import Int64Array, UInt8Array
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import NetworkConfig
from ppfed.training.augment import Augmentation
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig, predict_logits
from ppfed.training.settings import Padding

_BATCH = 128
_PRESENTATIONS = 40_000
"""Images shown in training, repeats counted: two minutes for 32x32 pixels on one CPU core."""
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 40
_STEPS_AN_EPOCH = 8
_SMALLEST_BATCH = 8
_ZERO = 1e-10
"""Keeps the direction of a vector of zeros defined; LPIPS adds the same."""


@dataclass(frozen=True)
class JudgePreset:
    """What is spent on a judge.

    Attributes
    ----------
    epochs : int
        Passes over the images.
    base_maps : int
        Feature maps of the ResNet-18's first stage.
    batch_size : int
    learning_rate : float
        At its peak.
    """

    epochs: int
    base_maps: int = 8
    batch_size: int = _BATCH
    learning_rate: float = 0.1


def judge_preset(images: int) -> JudgePreset:
    """Choose by the number of plain images: few are shown more often, in smaller batches."""
    epochs = round(_PRESENTATIONS / max(images, 1))
    return JudgePreset(
        epochs=min(max(epochs, _FEWEST_EPOCHS), _MOST_EPOCHS),
        batch_size=min(max(images // _STEPS_AN_EPOCH, _SMALLEST_BATCH), _BATCH),
    )


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier of plain images.

    Attributes
    ----------
    network : ImageClassifier
    device : torch.device
        Where it lies.
    """

    network: ImageClassifier
    device: torch.device

    def class_accuracy(self, images: UInt8Array, labels: Int64Array) -> float:
        """How often it names the class.

        Parameters
        ----------
        images : uint8 array, (N, H, W, C) or (N, H, W, 1)
            Of the size that it was trained on.
        labels : int64 array, (N,)

        Returns
        -------
        float
            0 to 1.
        """
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images have {len(labels)} labels")
        named = torch.cat([predict_logits(self.network, batch).argmax(1).cpu() for batch in self._batches(images)])
        return float(np.mean(named.numpy() == labels))

    def distance(self, images: UInt8Array, others: UInt8Array) -> npt.NDArray[np.float64]:
        """Distance of features.

        After each of the four stages, the vectors of all places are brought to unit norm over the channels; their
        squared distance is averaged over places, then over stages.

        Parameters
        ----------
        images, others : uint8 array, (N, H, W, C) or (N, H, W, 1)
            Of the size that it was trained on.

        Returns
        -------
        float64 array, (N,)
            0 for equal images; at most 2, as activations are never negative.
        """
        if len(images) != len(others):
            raise ValueError(f"{len(images)} images cannot be compared with {len(others)}")
        parts = []
        for one, other in zip(self._batches(images), self._batches(others), strict=True):
            pairs = zip(self.stages(one), self.stages(other), strict=True)
            apart = [(_directions(mine) - _directions(theirs)).square().sum(1).mean((1, 2)) for mine, theirs in pairs]
            parts.append(torch.stack(apart).mean(0).cpu().numpy().astype(np.float64))
        return np.concatenate(parts)

    @torch.no_grad()
    def stages(self, images: Tensor) -> list[Tensor]:
        """Activations after each stage of the ResNet.

        Parameters
        ----------
        images : uint8 tensor, (N, H, W, C), on the judge's device

        Returns
        -------
        list of float32 tensor, (N, maps, height, width)
        """
        resnet = self.network.resnet
        maps: list[Tensor] = []

        def keep(_module: nn.Module, _given: object, out: Tensor) -> None:
            maps.append(out)

        self.network.eval()
        with ExitStack() as hooks:
            for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
                hooks.callback(stage.register_forward_hook(keep).remove)
            self.network(images)
        return maps

    def _batches(self, images: UInt8Array) -> Iterator[Tensor]:
        config = self.network.config
        if images.shape[1:3] != (config.height, config.width) or images.shape[3] not in (1, config.channels):
            raise ValueError(
                f"the judge was trained on images of {(config.height, config.width, config.channels)}, "
                f"these are {images.shape[1:]}"
            )
        shape = (-1, -1, -1, config.channels)
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
            yield batch.to(self.device).expand(shape).contiguous()


def train_judge(
    plain: UInt8Array,
    labels: Int64Array,
    classes: int,
    *,
    device: torch.device,
    seed: int,
    preset: JudgePreset | None = None,
    augmentation: Augmentation | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Judge:
    """Train a judge with the project's training loop.

    Parameters
    ----------
    plain : uint8 array, (N, H, W, C)
        Images that no attack is measured on.
    labels : int64 array, (N,)
    classes : int
    device : torch.device
    seed : int
        The same seed on the same device and number of threads gives the same judge.
    preset : JudgePreset or None
        None takes ``judge_preset``.
    augmentation : Augmentation or None
        None shifts and mirrors left and right; give another where a mirror image changes the class.
    on_step : callable or None
        Called after each step with the number of steps done, and of all steps.

    Raises
    ------
    DataError
        If there are fewer than two images: batch norm needs two.
    ValueError
        If labels do not fit.
    """
    if len(plain) < 2:
        raise DataError(f"a judge cannot be trained on {len(plain)} images.", hint="Give it more plain images.")
    if len(labels) != len(plain) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"the labels of {len(plain)} images must be as many numbers from 0 to {classes - 1}")
    preset = preset or judge_preset(len(plain))
    _, height, width, channels = plain.shape
    network = build_network(
        NetworkConfig(classes, height, width, channels, adaptation=(), base_maps=preset.base_maps), seed
    ).to(device)
    config = TrainingConfig(
        epochs=preset.epochs,
        batch_size=preset.batch_size,
        learning_rate=preset.learning_rate,
        augmentation=augmentation or Augmentation(padding=Padding.REFLECT),
        seed=seed,
    )
    trainer = Trainer(network, config, device)
    data = ImageTensors.from_numpy(plain, labels, device)
    done = 0

    def count(_step: int, steps: int) -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, steps * preset.epochs)

    for _ in trainer.train_epochs(data, 0, preset.epochs, count):
        pass
    network.eval()
    return Judge(network, device)


def _directions(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True).sqrt() + _ZERO)
