"""The training loop: vanilla PyTorch to the bit, the same wherever it is stopped, and able to learn from ciphertext."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppfed.ciphers.registry import make_cipher
from ppfed.ciphers.spec import CipherSpec, Scope
from ppfed.errors import DataError, UsageError
from ppfed.images.types import Int64Array, PlainImages, UInt8Array
from ppfed.keys.master import KEY_BYTES, MasterKey
from ppfed.networks.classifier import build_network
from ppfed.networks.config import NetworkConfig
from ppfed.networks.state import load_network_state, network_state
from ppfed.training.augment import NO_AUGMENTATION, Augmentation
from ppfed.training.loop import (
    ImageTensors,
    Trainer,
    TrainingConfig,
    epoch_generator,
    evaluate,
    pick_device,
    predict_logits,
)
from ppfed.training.settings import Precision, Schedule

CPU = torch.device("cpu")
NETWORK = NetworkConfig(classes=2, height=8, width=8, base_maps=4)


def halves(count: int, seed: int) -> tuple[UInt8Array, Int64Array]:
    """Two classes that the negative-positive transform leaves apart: the upper or the lower half has high contrast."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count, dtype=np.int64)
    pixels = random.integers(110, 146, (count, 8, 8, 3), dtype=np.uint8)
    strong = random.integers(0, 40, (count, 4, 8, 3), dtype=np.uint8)
    for half in (0, 1):
        pixels[labels == half, 4 * half : 4 * half + 4] = strong[labels == half]
    return pixels, labels


def tensors(count: int, seed: int = 0) -> ImageTensors:
    return ImageTensors.from_numpy(*halves(count, seed), CPU)


class Recorder(nn.Module):
    """Remembers each batch, and its learning rate; images carry their number in their first two values."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.batches: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1).long()
        self.batches.append((flat[:, 0] * 256 + flat[:, 1]).tolist())
        return self.bias.expand(len(images), 2)


class Oracle(nn.Module):
    """Logits that are the first values of the image."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :].float() / 64


def numbered(count: int) -> ImageTensors:
    numbers = torch.arange(count)
    pixels = torch.stack([numbers // 256, numbers % 256, numbers * 0], dim=1).to(torch.uint8)
    return ImageTensors(pixels[:, None, None, :], torch.zeros(count, dtype=torch.int64))


@given(st.integers(1, 700), st.integers(2, 140), st.integers(0, 50), st.integers(0, 2**31), st.sampled_from([1, 2, 3]))
@settings(deadline=None, max_examples=40)
def test_an_epoch_takes_every_image_once_in_nearly_equal_batches(
    count: int, batch_size: int, epoch: int, seed: int, epochs: int
) -> None:
    network, steps = Recorder(), []
    config = TrainingConfig(epochs=60, batch_size=batch_size, augmentation=NO_AUGMENTATION, seed=seed)
    results = Trainer(network, config, CPU).train_epochs(
        numbered(count), epoch, epochs, lambda step, of: steps.append((step, of))
    )
    assert [result.epoch for result in results] == list(range(epoch, epoch + epochs))

    per_epoch = math.ceil(count / batch_size)
    assert steps == [(step + 1, per_epoch) for step in range(per_epoch)] * epochs
    for first in range(0, per_epoch * epochs, per_epoch):
        batches = network.batches[first : first + per_epoch]
        assert sorted(number for batch in batches for number in batch) == list(range(count))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        if count > 1 and batch_size > 2:
            assert min(sizes) > 1
    # Another epoch has another order: two orders of 30 and more agree by chance once in 30!.
    if count >= 30 and epochs > 1:
        assert network.batches[:per_epoch] != network.batches[per_epoch : 2 * per_epoch]


@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 0.99))
def test_the_linear_schedule_rises_then_falls(progress: float, peak: float, warmup: float) -> None:
    rate = TrainingConfig(learning_rate=peak, warmup=warmup).learning_rate_at(progress)
    # numpy's interpolation rounds elsewhere: a few units in the last place of the peak.
    expected = np.interp(progress, [0, warmup, 1], [0, peak, 0]) if warmup else peak * (1 - progress)
    assert rate == pytest.approx(expected, abs=1e-12)
    assert 0 <= rate <= peak * (1 + 1e-12)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1), (149, 0.1), (149.99, 0.1), (150, 0.01), (224.99, 0.01), (225, 0.001), (299.99, 0.001)],
)
def test_the_papers_schedule(epoch: float, rate: float) -> None:
    config = TrainingConfig(epochs=300, learning_rate=0.1, schedule=Schedule.PAPER)
    # 0.1 * 0.1 is not 0.01 to the last bit.
    assert config.learning_rate_at(epoch / 300) == pytest.approx(rate, rel=1e-12)


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=1100), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_evaluation_counts_as_numpy_does(logits: list[tuple[int, int, int]], seed: int) -> None:
    pixels = np.array(logits, dtype=np.uint8).reshape(-1, 1, 1, 3)
    labels = np.random.default_rng(seed).integers(0, 3, len(pixels), dtype=np.int64)
    result = evaluate(Oracle(), ImageTensors.from_numpy(pixels, labels, CPU))

    values = pixels[:, 0, 0].astype(np.float64) / 64
    assert result.count == len(pixels)
    assert result.correct == int((values.argmax(1) == labels).sum())
    if len(pixels):
        assert result.accuracy == result.correct / len(pixels)
        loss = np.log(np.exp(values).sum(1)) - values[np.arange(len(values)), labels]
        # 32-bit logits and sums of about a thousand terms of order 1.
        assert result.loss == pytest.approx(loss.mean(), abs=1e-5)
    else:
        assert math.isnan(result.accuracy)
        assert math.isnan(result.loss)


def test_evaluation_leaves_the_network_as_it_was() -> None:
    network = build_network(NETWORK, 0)
    before = copy.deepcopy(network.state_dict())
    first = evaluate(network, tensors(10))
    assert evaluate(network, tensors(10)) == first
    assert_same_state(network.state_dict(), before)


def vanilla(network: nn.Module, data: ImageTensors, config: TrainingConfig) -> list[float]:
    """What anybody would write, with ppfed's order of images and augmentation."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    losses = []
    network.train()
    for epoch in range(4):
        generator = epoch_generator(config.seed, epoch)
        order = torch.randperm(33, generator=generator)
        total = 0.0
        # 33 images, at most 8 in a batch: five batches, as equal as they can be.
        for step, (start, stop) in enumerate([(0, 7), (7, 14), (14, 21), (21, 27), (27, 33)]):
            progress = (epoch + step / 5) / 4
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * progress / 0.2 if progress < 0.2 else 0.1 * (1.0 - progress) / (1.0 - 0.2)
            images = config.augmentation(data.images[order[start:stop]], generator)
            labels = data.labels[order[start:stop]]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * (stop - start)
        losses.append(total / 33)
    return losses


CONFIG = TrainingConfig(epochs=4, batch_size=8, learning_rate=0.1, seed=5)


def assert_same_state(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    assert [name for name, tensor in left.items() if not torch.equal(tensor, right[name])] == []


def trained(config: TrainingConfig = CONFIG, data: ImageTensors | None = None) -> dict[str, Tensor]:
    network = build_network(NETWORK, 1)
    for _ in Trainer(network, config, CPU).train_epochs(data or tensors(33), 0, config.epochs):
        pass
    return network.state_dict()


def test_it_is_vanilla_training_to_the_bit() -> None:
    data, reference, network = tensors(33), build_network(NETWORK, 1), build_network(NETWORK, 1)
    losses = vanilla(reference, data, CONFIG)
    results = list(Trainer(network, CONFIG, CPU).train_epochs(data, 0, 4))
    assert_same_state(network.state_dict(), reference.state_dict())
    # The loop adds 32-bit losses on the device, the reference 64-bit ones: 33 roundings of 2^-24.
    assert [result.loss for result in results] == pytest.approx(losses, rel=1e-5)


class Watched(nn.Module):
    """A layer that keeps the dtypes that it computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8 * 8 * 3, 2)
        self.seen: dict[bool, torch.dtype] = {}

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layer(images.flatten(1).float() / 255)
        self.seen[self.training] = out.dtype
        return out


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (Precision.AUTO, torch.float32),
        (Precision.FLOAT32, torch.float32),
        (Precision.BFLOAT16, torch.bfloat16),
    ],
)
def test_steps_compute_in_the_precision_that_was_chosen_and_measuring_does_not(
    precision: Precision, dtype: torch.dtype
) -> None:
    network, data = Watched(), tensors(33)
    trainer = Trainer(network, replace(CONFIG, precision=precision), CPU)
    list(trainer.train_epochs(data, 0, 1))
    evaluate(network, data)
    assert network.seen == {True: dtype, False: torch.float32}
    assert {one.dtype for one in network.parameters()} == {torch.float32}
    assert {one.dtype for one in trainer.momentum().values()} == {torch.float32}


def test_a_seed_fixes_the_training_and_nothing_else_moves() -> None:
    before = torch.get_rng_state()
    first = trained()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert_same_state(trained(), first)
    other = trained(replace(CONFIG, seed=6))
    assert not torch.equal(other["resnet.fc.weight"], first["resnet.fc.weight"])


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_stopped_after_any_epoch_it_goes_on_undisturbed(stop: int) -> None:
    network = build_network(NETWORK, 1)
    trainer = Trainer(network, CONFIG, CPU)
    losses = [result.loss for result in trainer.train_epochs(tensors(33), 0, stop)]
    kept = copy.deepcopy((network.state_dict(), trainer.momentum()))

    torch.rand(7)
    again = build_network(NETWORK, 99)
    again.load_state_dict(kept[0])
    second = Trainer(again, CONFIG, CPU)
    second.load_momentum(kept[1])
    evaluate(again, tensors(9))
    losses += [result.loss for result in second.train_epochs(tensors(33), stop, 4 - stop)]

    undisturbed = build_network(NETWORK, 1)
    assert [result.loss for result in Trainer(undisturbed, CONFIG, CPU).train_epochs(tensors(33), 0, 4)] == losses
    assert_same_state(again.state_dict(), undisturbed.state_dict())


FAST = replace(CONFIG, average_passes=0.7, first_crop=0.5, alternate_flip=True)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_with_every_option_too_it_goes_on_undisturbed(stop: int) -> None:
    network = build_network(NETWORK, 1)
    trainer = Trainer(network, FAST, CPU)
    losses = [result.loss for result in trainer.train_epochs(tensors(33), 0, stop)]
    kept = network_state(network), trainer.momentum(), trainer.average()

    again = Trainer(build_network(NETWORK, 99), FAST, CPU)
    load_network_state(again.network, kept[0])
    again.load_momentum(kept[1])
    again.load_average(kept[2])
    losses += [result.loss for result in again.train_epochs(tensors(33), stop, 4 - stop)]

    undisturbed = Trainer(build_network(NETWORK, 1), FAST, CPU)
    assert [result.loss for result in undisturbed.train_epochs(tensors(33), 0, 4)] == losses
    assert_same_state(network_state(again.network), network_state(undisturbed.network))
    assert_same_state(again.average(), undisturbed.average())
    assert not torch.equal(again.average()["resnet.fc.weight"], network_state(again.network)["resnet.fc.weight"])


def test_the_average_is_the_exponential_one_of_weights_and_statistics() -> None:
    config = replace(CONFIG, average_passes=0.7)
    network = build_network(NETWORK, 1)
    trainer = Trainer(network, config, CPU)
    states: list[dict[str, Tensor]] = []
    list(trainer.train_epochs(tensors(33), 0, 4, lambda *_: states.append(network_state(network))))
    # Five steps a pass; the first step's weights begin it.
    decay = 1 - 1 / (0.7 * 5)
    for name, found in trainer.average().items():
        expected = states[0][name].double()
        for state in states[1:]:
            expected = decay * expected + (1 - decay) * state[name].double()
        # 20 float32 roundings of values of order 1.
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    # The path of the weights is the same as without an average.
    assert_same_state(network.state_dict(), trained())
    assert trainer.trained is not network


def test_without_an_average_the_network_is_what_was_trained() -> None:
    trainer = Trainer(build_network(NETWORK, 1), CONFIG, CPU)
    assert trainer.trained is trainer.network
    assert trainer.average() == {}


@given(st.integers(1, 300), st.floats(0.25, 1))
def test_crops_grow_to_whole_images(epochs: int, first: float) -> None:
    config = TrainingConfig(epochs=epochs, first_crop=first)
    parts = [config.crop_at(epoch) for epoch in range(epochs)]
    assert parts == sorted(parts)
    # Eighths, rounded: half of one at most.
    assert abs(parts[0] - first) <= 1 / 16
    assert all(part * 8 == int(part * 8) for part in parts)
    assert all(part == 1 for part in parts[math.ceil(0.75 * epochs) :])
    assert {TrainingConfig(epochs=epochs).crop_at(epoch) for epoch in range(epochs)} == {1.0}


class Watcher(nn.Module):
    """Remembers the images it is shown, by the number in their corner pixels, and whether they are mirrored."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.sizes: list[tuple[int, int]] = []
        self.mirrored: dict[int, bool] = {}

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append((images.shape[1], images.shape[2]))
        for image in images:
            left, right = int(image[0, 0, 0]), int(image[0, -1, 0])
            self.mirrored[max(left, right)] = right > left
        return self.bias.expand(len(images), 2)


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_flips_alternate_and_depend_on_seed_and_pass_alone(seed: int, count: int, first: int) -> None:
    images = torch.zeros(count, 8, 8, 3, dtype=torch.uint8)
    images[:, :, 0] = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None]
    data = ImageTensors(images, torch.zeros(count, dtype=torch.int64))
    still = Augmentation(shift=0)
    config = TrainingConfig(epochs=8, batch_size=8, augmentation=still, alternate_flip=True, seed=seed)
    network = Watcher()
    trainer = Trainer(network, config, CPU)
    seen = []
    for epoch in range(3):
        list(trainer.train_epochs(data, epoch, 1))
        seen.append(dict(network.mirrored))
    assert seen[1] == {number: not mirrored for number, mirrored in seen[0].items()}
    assert seen[2] == seen[0]
    assert len(seen[0]) == count
    # As it was 24 images all alike by chance: once in 2^23.
    assert count < 24 or len(set(seen[0].values())) == 2

    # Whoever begins with a later pass, or with batches of another size, sees the same.
    other = Watcher()
    list(Trainer(other, replace(config, batch_size=5), CPU).train_epochs(data, first, 1))
    assert other.mirrored == seen[first % 2]


def test_passes_see_crops_of_the_declared_size() -> None:
    network = Watcher()
    data = ImageTensors(torch.zeros(6, 16, 8, 3, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    config = TrainingConfig(epochs=4, batch_size=6, first_crop=0.5)
    list(Trainer(network, config, CPU).train_epochs(data, 0, 4))
    # Growing by 1/2 in 3 of 4 passes: 1/2, 2/3 and 5/6, rounded to eighths.
    assert network.sizes == [(8, 4), (10, 5), (14, 7), (16, 8)]


def test_it_goes_on_from_momentum_as_checkpoints_keep_it() -> None:
    """Contiguous, while the network lies in channels_last: the fused optimizer does not look at strides on the CPU."""
    network = build_network(NETWORK, 1)
    trainer = Trainer(network, CONFIG, CPU)
    list(trainer.train_epochs(tensors(33), 0, 2))
    kept = {name: buffer.contiguous() for name, buffer in trainer.momentum().items()}
    assert kept.keys() == dict(network.named_parameters()).keys()

    again = build_network(NETWORK, 99)
    again.load_state_dict(network.state_dict())
    second = Trainer(again, CONFIG, CPU)
    second.load_momentum(kept)
    for one in (trainer, second):
        list(one.train_epochs(tensors(33), 2, 2))
    assert_same_state(again.state_dict(), network.state_dict())


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("colour_shuffle", [False, True])
def test_it_learns_from_encrypted_images(scope: Scope, colour_shuffle: bool) -> None:
    cipher = make_cipher(CipherSpec(scope=scope, colour_shuffle=colour_shuffle), MasterKey(bytes(KEY_BYTES)))
    (train, train_labels), (held_out, held_out_labels) = halves(192, 1), halves(96, 2)
    network = build_network(NETWORK, 0)
    config = TrainingConfig(epochs=5, batch_size=16, learning_rate=0.05)
    encrypted = ImageTensors.from_numpy(cipher.encrypt(PlainImages(train)).pixels, train_labels, CPU)
    losses = [result.loss for result in Trainer(network, config, CPU).train_epochs(encrypted, 0, 5)]
    assert losses[-1] < losses[0]
    result = evaluate(
        network, ImageTensors.from_numpy(cipher.encrypt(PlainImages(held_out)).pixels, held_out_labels, CPU)
    )
    # Guessing gets 48 of 96 right, with a standard deviation of 4.9: five of them above.
    assert result.correct >= 73


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[UInt8Array, Int64Array]:
    pixels, labels = halves(33, 0)
    path = tmp_path / "pixels"
    pixels.tofile(path)
    labels.flags.writeable = False
    return np.memmap(path, dtype=np.uint8, mode="r", shape=pixels.shape), labels


def test_a_read_only_mapped_array_is_shared_and_trains(mapped: tuple[UInt8Array, Int64Array]) -> None:
    pixels, labels = mapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageTensors.from_numpy(pixels, labels, CPU)
        assert len(ImageTensors.from_numpy(pixels[:0], labels[:0], CPU)) == 0
    assert data.images.data_ptr() == pixels.ctypes.data
    assert (data.images.dtype, data.images.shape, data.labels.dtype) == (torch.uint8, (33, 8, 8, 3), torch.int64)
    # Training would crash here if it wrote to its images.
    assert_same_state(trained(data=data), trained())


def test_no_images_are_refused() -> None:
    trainer = Trainer(build_network(NETWORK, 0), CONFIG, CPU)
    with pytest.raises(DataError, match="no images to train on"):
        list(trainer.train_epochs(tensors(0), 0, 1))
    assert predict_logits(trainer.network, tensors(0).images).shape == (0, 2)


def test_devices_are_picked_by_name() -> None:
    assert pick_device("cpu") == CPU
    assert torch.empty(0, device=pick_device()).numel() == 0
    with pytest.raises(UsageError, match="there is no device 'abacus' here"):
        pick_device("abacus")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_learns_on_a_gpu() -> None:
    device = torch.device("cuda")
    network = build_network(NETWORK, 0)
    train, held_out = (ImageTensors.from_numpy(*halves(count, count), device) for count in (192, 96))
    list(Trainer(network, TrainingConfig(epochs=5, batch_size=16), device).train_epochs(train, 0, 5))
    # As on the CPU: five standard deviations above guessing.
    assert evaluate(network, held_out).correct >= 73
