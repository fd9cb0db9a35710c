"""Chosen weights: images are read off a gradient exactly, and nothing where weights were not chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppfed.attacks.sent.chosen_weights import ReadImages, can_choose, chosen_network, read_images
from ppfed.attacks.sent.gradient_inversion import gradient_by_name
from ppfed.attacks.values.fold import fold
from ppfed.images.types import UInt8Array
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import Backbone, InputFeatures, NetworkConfig
from ppfed.training.gradients import partial_gradient
from ppfed.training.settings import BatchNormMode

from ...photographs import pieces

CLASSES = 10
LOCAL, SHARED = BatchNormMode.LOCAL, BatchNormMode.SHARED


def config(height: int, width: int, channels: int = 3, **others: Any) -> NetworkConfig:
    return NetworkConfig(CLASSES, height, width, channels, **{"base_maps": 16, **others})


def read(
    network: ImageClassifier,
    images: UInt8Array,
    labels: Tensor,
    mode: BatchNormMode = LOCAL,
    smoothing: float = 0.0,
) -> ReadImages:
    """Let an owner answer, and read its answer without its labels."""
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    sent = partial_gradient(network, torch.from_numpy(images), labels, loss, micro_batch=64, batch_norm=mode)
    gradient = gradient_by_name(network, sent.gradient)
    return read_images(network, gradient, sent.moments, None, images.shape, batch_norm=mode, label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("count", "height", "width", "mode", "smoothing", "others"),
    [
        (1, 32, 32, LOCAL, 0.0, {}),
        (8, 32, 32, LOCAL, 0.0, {}),
        (2, 32, 32, SHARED, 0.0, {}),
        (2, 24, 30, LOCAL, 0.1, {}),
        (2, 16, 16, LOCAL, 0.0, {"adaptation": ()}),
    ],
)
def test_images_with_labels_of_their_own_are_read_exactly(
    count: int, height: int, width: int, mode: BatchNormMode, smoothing: float, others: dict[str, Any]
) -> None:
    images = np.ascontiguousarray(pieces(count)[:, :height, :width])
    labels = torch.arange(count)
    found = read(chosen_network(config(height, width, **others), len(images), 0), images, labels, mode, smoothing)
    assert found.labels.tolist() == labels.tolist()
    # Float32 adds up to far less than half a grey level; a dark spot 4 deviations below the mean is cut off.
    assert np.mean(np.abs(found.images.astype(int) - images) <= 1) > 0.99


def test_noise_is_read_as_well_as_pictures() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = read(chosen_network(config(32, 32), len(images), 1), images, torch.tensor([2, 7]))
    assert np.array_equal(found.images, images)


def test_of_folded_features_the_fold_is_read() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    network = chosen_network(config(16, 16, features=InputFeatures.SORTED_FOLD), len(images), 0)
    found = read(network, images, torch.tensor([2, 7]))
    assert found.images.min() >= 127
    # Sorted from far to near mid-grey on one side, the other way on the other.
    assert np.abs(np.sort(fold(images).astype(int)) - np.sort(fold(found.images))).max() <= 1


def test_images_that_share_a_label_come_out_as_their_mean() -> None:
    images = pieces(3, side=16)
    found = read(chosen_network(config(16, 16), len(images), 0), images, torch.tensor([5, 5, 1]))
    assert found.labels.tolist() == [1, 5, 5]
    mean = images[:2].mean(0)
    assert np.abs(found.images[0].astype(int) - images[2]).mean() < 0.1
    assert np.abs(found.images[1] - mean).mean() < 1
    # Which is neither of them.
    assert np.abs(found.images[1] - images[0].astype(float)).mean() > 5


def test_weights_that_were_not_chosen_give_nothing() -> None:
    images = pieces(2, side=16)
    sent = read(build_network(config(16, 16), 0), images, torch.tensor([3, 4]))
    assert np.abs(sent.images.astype(float) - images).mean() > 25


def test_networks_without_such_weights_are_refused() -> None:
    assert can_choose(config(32, 32))
    for other in (
        config(96, 96),
        config(32, 32, base_maps=8),
        config(32, 32, adaptation=(2, 32)),
        config(32, 32, backbone=Backbone.CONVMIXER),
    ):
        assert not can_choose(other)
        with pytest.raises(ValueError, match="no weights"):
            chosen_network(other, 2, 0)
