"""The networks that studies attack and compare: described by their images, and trained briefly."""

from __future__ import annotations

from dataclasses import replace

import torch

from ppfed.ciphers.spec import CipherSpec
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import Backbone, InputFeatures, NetworkConfig
from ppfed.training.augment import Augmentation
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig
from ppfed.training.settings import Padding
from scenarios.declaration import bundled
from scenarios.material import Material


def described(
    material: Material, base_maps: int, features: InputFeatures = InputFeatures.VALUES, *, mirrored_views: bool = False
) -> NetworkConfig:
    """Describe a ResNet-18 for the images of a material."""
    height, width, channels = material.train.shape
    return NetworkConfig(
        len(material.classes),
        height,
        width,
        channels,
        base_maps=base_maps,
        features=features,
        mirrored_views=mirrored_views,
    )


def described_for_ciphertexts(
    material: Material, base_maps: int, cipher: CipherSpec, *, mirrored_views: bool = False
) -> NetworkConfig:
    """Describe the ResNet-18 that the scenario ``frontier`` shows images under a cipher.

    It has the adaptation network of the cipher's authors, and is shown all that the cipher leaves.

    Raises
    ------
    ValueError
        If that scenario has no such arm.
    """
    channels = material.train.shape[2]
    for arm in bundled()["frontier"].arms:
        if (arm.spec, arm.channels, arm.backbone) == (cipher, channels, Backbone.RESNET18):
            config = described(material, base_maps, arm.features, mirrored_views=mirrored_views)
            return replace(config, adaptation=arm.adaptation, adaptation_kind=arm.adaptation_kind)
    raise ValueError(f"the scenario has no ResNet-18 for {channels} channels under {cipher}")


def train(config: NetworkConfig, data: ImageTensors, epochs: int, seed: int, device: torch.device) -> ImageClassifier:
    """Train a new network at the default rates, with flips and reflected shifts.

    Parameters
    ----------
    config : NetworkConfig
    data : ImageTensors on ``device``
    epochs, seed : int
    device : torch.device
    """
    network = build_network(config, seed).to(device)
    training = TrainingConfig(epochs=epochs, augmentation=Augmentation(padding=Padding.REFLECT), seed=seed)
    for _ in Trainer(network, training, device).train_epochs(data, 0, epochs):
        pass
    return network
