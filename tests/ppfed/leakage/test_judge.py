"""The judge: trained on some digits, it knows others, and tells near images from far ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import nn

from ppfed.errors import DataError
from ppfed.images.types import Int64Array, UInt8Array
from ppfed.leakage.judge import Judge, JudgePreset, judge_preset, train_judge
from ppfed.leakage.metrics import resemblance
from ppfed.training.augment import Augmentation
from ppfed.training.settings import Padding

CPU = torch.device("cpu")
UPRIGHT = Augmentation(shift=1, horizontal_flip=False, padding=Padding.REFLECT)


@dataclass(frozen=True, eq=False)
class Digits:
    """Handwritten digits, 8x8 pixels, grey; some to train on and others to judge."""

    train: UInt8Array
    train_labels: Int64Array
    held_out: UInt8Array
    held_out_labels: Int64Array


@pytest.fixture(scope="module")
def digits() -> Digits:
    loaded = load_digits()
    pixels = np.round(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = loaded.target.astype(np.int64)
    return Digits(pixels[:600], labels[:600], pixels[600:800], labels[600:800])


@pytest.fixture(scope="module")
def judge(digits: Digits) -> Judge:
    return train(digits, seed=0, preset=JudgePreset(epochs=8, base_maps=6, batch_size=32, learning_rate=0.05))


def train(digits: Digits, *, seed: int, preset: JudgePreset) -> Judge:
    return train_judge(
        digits.train, digits.train_labels, 10, device=CPU, seed=seed, preset=preset, augmentation=UPRIGHT
    )


def test_it_names_classes_of_plain_images_and_not_of_noise(judge: Judge, digits: Digits) -> None:
    held_out = digits.held_out
    # Far above chance, 0.1, and four standard errors (0.022) below the 0.89 that so short a training reached.
    assert judge.class_accuracy(held_out, digits.held_out_labels) > 0.8
    noise = np.random.default_rng(0).integers(0, 256, held_out.shape, dtype=np.uint8)
    # Chance is 0.1 with a standard error of 0.021 for 200 images; classes are equally many, so no guess does better.
    assert judge.class_accuracy(noise, digits.held_out_labels) < 0.1 + 5 * 0.021
    named = judge.network(torch.from_numpy(held_out)).argmax(1).numpy()
    assert judge.class_accuracy(held_out, digits.held_out_labels) == np.mean(named == digits.held_out_labels)


def test_distance_is_that_of_the_normalised_stages(judge: Judge, digits: Digits) -> None:
    """Against a plain forward pass, stage by stage and place by place."""
    one, other = digits.held_out[:3], digits.held_out[3:6]

    def stages(pixels: np.ndarray) -> list[np.ndarray]:
        resnet = judge.network.resnet
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            maps = nn.functional.relu(resnet.bn1(resnet.conv1(values)))
            out = []
            for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
                maps = stage(maps)
                out.append(maps.double().numpy())
        assert torch.equal(resnet.fc(maps.mean((2, 3))), judge.network(torch.from_numpy(pixels)))
        return out

    expected = []
    for row in range(3):
        parts = []
        for mine, theirs in zip(stages(one[row : row + 1]), stages(other[row : row + 1]), strict=True):
            places = []
            for y, x in np.ndindex(mine.shape[2:]):
                a, b = mine[0, :, y, x], theirs[0, :, y, x]
                # A place where nothing fires has no direction: zero.
                a, b = (vector / (np.linalg.norm(vector) or 1) for vector in (a, b))
                places.append(np.sum((a - b) ** 2))
            parts.append(np.mean(places))
        expected.append(np.mean(parts))
    # The judge computes in single precision: 24 bits, a thousand additions.
    assert judge.distance(one, other) == pytest.approx(expected, rel=1e-4)


def test_distance_grows_with_damage(judge: Judge, digits: Digits) -> None:
    plain = digits.held_out
    blurred = [
        np.stack([gaussian_filter(image.astype(float), (width, width, 0)) for image in plain]).round().astype(np.uint8)
        for width in (0.5, 1.0, 2.0)
    ]
    means = [float(judge.distance(images, plain).mean()) for images in (plain, *blurred)]
    assert means == sorted(means)
    assert means[0] == 0
    other = np.roll(plain, 1, axis=0)
    assert np.array_equal(judge.distance(plain, other), judge.distance(other, plain))
    assert judge.distance(plain, other).max() < 2
    # More than one batch gives the same as one by one, up to the order of sums in single precision.
    assert judge.distance(other[:150], plain[:150])[140:] == pytest.approx(
        judge.distance(other[140:150], plain[140:150]), rel=1e-4
    )


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_seed_decides(epochs: int, digits: Digits) -> None:
    """Of the initial weights, and of the training."""
    preset = JudgePreset(epochs=epochs, base_maps=2, batch_size=100)
    networks = [train(digits, seed=seed, preset=preset).network for seed in (0, 0, 1)]
    weights = [torch.cat([value.flatten().double() for value in net.state_dict().values()]) for net in networks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_resemblance_takes_distance_and_accuracy_of_the_chosen_sign(judge: Judge, digits: Digits) -> None:
    originals, labels = digits.held_out[:60], digits.held_out_labels[:60]
    damaged = np.clip(originals.astype(int) + np.random.default_rng(0).integers(-60, 60, originals.shape), 0, 255)
    restored = damaged.astype(np.uint8)
    found = resemblance(255 - restored, originals, labels=labels, judge=judge)
    distances = judge.distance(restored, originals)
    assert found.feature_distance is not None
    assert found.feature_distance.mean == pytest.approx(distances.mean())
    assert found.feature_distance.spread == pytest.approx(distances.std())
    assert found.class_accuracy == judge.class_accuracy(restored, labels)
    assert resemblance(restored, originals, judge=judge).class_accuracy is None
    assert resemblance(restored, originals, labels=labels).feature_distance is None


def test_grey_images_stand_for_colour(digits: Digits) -> None:
    preset = JudgePreset(epochs=1, base_maps=2, batch_size=32)
    train = np.repeat(digits.train[:64], 3, axis=3)
    colour = train_judge(train, digits.train_labels[:64], 10, device=CPU, seed=0, preset=preset)
    held_out = np.repeat(digits.held_out[:5], 3, axis=3)
    assert np.array_equal(colour.distance(held_out[..., :1], held_out), np.zeros(5))


def test_progress_and_preset(digits: Digits) -> None:
    steps: list[tuple[int, int]] = []
    train_judge(
        digits.train[:20],
        digits.train_labels[:20],
        10,
        device=CPU,
        seed=0,
        preset=JudgePreset(epochs=2, base_maps=2, batch_size=8),
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(step, 6) for step in range(1, 7)]
    presets = [judge_preset(images) for images in (2, 100, 1000, 10_000, 100_000)]
    assert [preset.epochs for preset in presets] == sorted((preset.epochs for preset in presets), reverse=True)
    assert [preset.batch_size for preset in presets] == sorted(preset.batch_size for preset in presets)


def test_what_does_not_fit_is_refused(judge: Judge, digits: Digits) -> None:
    images, labels = digits.held_out[:4], digits.held_out_labels[:4]
    with pytest.raises(ValueError, match="was trained on"):
        judge.class_accuracy(np.repeat(images, 3, axis=3), labels)
    with pytest.raises(ValueError, match="was trained on"):
        judge.distance(images[:, :7], images[:, :7])
    with pytest.raises(ValueError, match="labels"):
        judge.class_accuracy(images, labels[:3])
    with pytest.raises(ValueError, match="compared"):
        judge.distance(images, images[:3])
    with pytest.raises(DataError, match="1 images"):
        train_judge(images[:1], labels[:1], 10, device=CPU, seed=0)
    with pytest.raises(ValueError, match="0 to 1"):
        train_judge(images, np.array([0, 1, 2, 1]), 2, device=CPU, seed=0)
