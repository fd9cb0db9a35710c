"""Bins: images that share a label are told apart exactly, and not where none is alone in a bin."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from ppfed.attacks.sent.bins import bins_for, bins_of_brightest, network_with_bins, windows_of_pass
from ppfed.attacks.sent.chosen_weights import ToldApartBy, chosen_network, read_images, told_apart_by
from ppfed.attacks.sent.gradient_inversion import gradient_by_name, moments_of_update
from ppfed.attacks.values.fold import fold
from ppfed.federation import Exchange
from ppfed.images.types import UInt8Array
from ppfed.leakage.sent import OwnerStep, paired, sent_by_owner
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import Backbone, InputFeatures, NetworkConfig
from ppfed.networks.state import network_state
from ppfed.training.augment import Augmentation
from ppfed.training.gradients import partial_gradient
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig
from ppfed.training.settings import BatchNormMode

from ...photographs import pieces

CPU = torch.device("cpu")
LOCAL, SHARED = BatchNormMode.LOCAL, BatchNormMode.SHARED


def config(height: int = 32, width: int = 32, channels: int = 1, **others: Any) -> NetworkConfig:
    """Grey images take a third of the maps, and a quarter of ResNet-18's width will do."""
    return NetworkConfig(10, height, width, channels, **{"base_maps": 16, **others})


def pictures(count: int) -> UInt8Array:
    """Photographs without those of the rocket, every fourth: pieces of clear sky measure alike."""
    some = pieces(2 * count)
    kept: UInt8Array = some[np.arange(len(some)) % 4 != 3][:count]
    return kept


def read(
    network: ImageClassifier, images: UInt8Array, labels: Tensor, mode: BatchNormMode = LOCAL, smoothing: float = 0.0
) -> UInt8Array:
    """Let an owner answer, read its answer without its labels, and pair what comes out with what went in."""
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    sent = partial_gradient(network, torch.from_numpy(images), labels, loss, micro_batch=64, batch_norm=mode)
    gradient = gradient_by_name(network, sent.gradient)
    found = read_images(network, gradient, sent.moments, None, images.shape, batch_norm=mode, label_smoothing=smoothing)
    assert found.labels.tolist() == sorted(labels.tolist())
    return paired(found.images, images)


def errors(found: UInt8Array, images: UInt8Array) -> NDArray[np.float64]:
    """Mean error of each image in grey levels."""
    wrong: NDArray[np.float64] = np.abs(found.astype(float) - images).reshape(len(images), -1).mean(1)
    return wrong


@pytest.mark.parametrize(
    ("labels", "channels", "height", "width", "mode", "smoothing", "others"),
    [
        ([3] * 9, 1, 32, 32, LOCAL, 0.0, {}),
        ([3] * 8, 1, 32, 32, SHARED, 0.0, {}),
        ([1, 1, 4, 4, 9, 0, 0, 0], 1, 24, 30, LOCAL, 0.1, {"adaptation": ()}),
        ([5] * 6, 3, 32, 32, LOCAL, 0.0, {"base_maps": 26}),
    ],
)
def test_images_that_share_a_label_are_read_exactly(
    labels: list[int], channels: int, height: int, width: int, mode: BatchNormMode, smoothing: float, others: Any
) -> None:
    images = np.ascontiguousarray(pictures(len(labels))[:, :height, :width, :channels])
    network = chosen_network(config(height, width, channels, **others), len(labels), 0)
    # Float32 adds up to far less than half a grey level.
    assert errors(read(network, images, torch.tensor(labels), mode, smoothing), images).max() < 0.1


def test_an_update_tells_what_a_gradient_tells() -> None:
    images = np.ascontiguousarray(pictures(8)[..., :1])
    labels = np.full(8, 2)
    network = chosen_network(config(), 8, 0)
    sent = sent_by_owner(OwnerStep(network, Exchange.UPDATES), images, labels, CPU)
    found = read_images(network, sent.gradient, sent.moments, torch.from_numpy(labels), images.shape)
    assert errors(paired(found.images, images), images).max() < 0.1


def test_of_folded_features_the_fold_is_read() -> None:
    images = np.ascontiguousarray(pictures(6)[..., :1])
    found = read(chosen_network(config(features=InputFeatures.FOLD), 6, 0), images, torch.full((6,), 7))
    assert np.abs(fold(images).astype(int) - fold(found)).mean() < 0.1


def test_more_images_leave_fewer_windows() -> None:
    chosen = [bins_for(config(), images) for images in (16, 32, 80)]
    assert [len(bins.windows) for bins in chosen if bins] == [4, 2, 1]
    images = np.ascontiguousarray(pictures(32)[..., :1])
    found = read(chosen_network(config(), 32, 0), images, torch.full((32,), 7))
    seen = errors(found[:, :24, :24], images[:, :24, :24])
    # Pieces of three photographs are alike enough that some share their bins.
    assert np.mean(seen < 0.1) > 0.7
    # Two windows see all but two corners.
    assert errors(found[:, :8, 24:], images[:, :8, 24:]).mean() > 10


def test_images_that_measure_alike_are_not_told_apart() -> None:
    images = np.ascontiguousarray(pictures(4)[..., :1])
    images[1] = images[0]
    found = read(chosen_network(config(), 4, 0), images, torch.full((4,), 7))
    wrong = errors(found, images)
    assert wrong[2:].max() < 0.1
    assert wrong[:2].min() > 5


def test_weights_that_were_not_chosen_give_nothing() -> None:
    images = np.ascontiguousarray(pictures(4)[..., :1])
    found = read(build_network(config(), 0), images, torch.arange(4))
    assert errors(found, images).mean() > 25


def test_where_there_are_no_bins_labels_tell_apart() -> None:
    assert told_apart_by(NetworkConfig(10, 32, 32), 128) is ToldApartBy.BRIGHTNESS
    for other, images in (
        (config(), 1000),
        (config(channels=3), 2),
        (config(48, 48), 2),
        (config(8, 8), 2),
        (config(backbone=Backbone.CONVMIXER), 2),
    ):
        assert told_apart_by(other, images) is ToldApartBy.LABEL


def test_a_whole_pass_gives_away_the_brightest_images() -> None:
    images = np.ascontiguousarray(pictures(48)[..., :1])
    network = network_with_bins(config(), bins := bins_of_brightest(config(), 0.3), 0)
    training = TrainingConfig(epochs=10, batch_size=24, augmentation=Augmentation(0, False, False))
    before = network_state(network)
    own = copy.deepcopy(network)
    data = ImageTensors.from_numpy(images, np.arange(48) % 10, CPU)
    # Two steps with momentum, of the last pass.
    list(Trainer(own, training, CPU).train_epochs(data, 9, 1))
    after = network_state(own)
    change = {name: before[name] - after[name] for name in before}
    moments = moments_of_update(own, before, after, (24, *images.shape[1:]), 2)
    found = windows_of_pass(network, bins, change, moments, images.shape[1:])
    wrong = cdist(*(some.reshape(len(some), -1).astype(float) for some in (images[:, :24, :24], found)), "cityblock")
    # Batches differ in mean and variance, by which each was normalised: by some grey levels.
    assert np.sum(wrong.min(1) / 24**2 < 8) >= 15


def test_gradients_rounded_to_eight_bits_are_read_with_some_error() -> None:
    images = np.ascontiguousarray(pictures(6)[..., :1])
    network, labels = chosen_network(config(), 6, 0), torch.full((6,), 7)
    sent = partial_gradient(network, torch.from_numpy(images), labels, nn.CrossEntropyLoss(), micro_batch=64)
    gradient = gradient_by_name(network, sent.gradient.bfloat16().float())
    found = read_images(network, gradient, sent.moments, labels, images.shape)
    assert np.median(errors(paired(found.images, images), images)) < 3
