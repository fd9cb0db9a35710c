"""What an arm trains on, and that an arm is the training it says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppfed.ciphers.registry import cipher_names, make_cipher
from ppfed.images.source import Split
from ppfed.images.types import EncryptedImages, UInt8Array
from ppfed.networks.classifier import build_network
from ppfed.training.augment import Augmentation
from ppfed.training.loop import ImageTensors, TrainingConfig, epoch_generator, evaluate
from scenarios.arms import ArmRun, Progress, experiment_key
from scenarios.declaration import Arm, Budget
from scenarios.material import Material, digits
from scenarios.results import Result

BUDGET = Budget(size=8, epochs=3, base_maps=2, batch_size=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def material() -> Material:
    return digits(8, 200, 100)


def arm_run(material: Material, folder: Path, seed: int = 0, **arm: Any) -> ArmRun:
    told: list[Progress] = []
    return ArmRun(Arm(name="arm", **arm), BUDGET, material, seed, folder, CPU, told.append)


def run(material: Material, folder: Path, seed: int = 0, **arm: Any) -> Result:
    return arm_run(material, folder, seed, **arm).run()


def test_a_plain_centralized_arm_is_a_plain_training(material: Material, tmp_path: Path) -> None:
    """Against a loop written with PyTorch's own parts."""
    found = run(material, tmp_path, cipher="plain", seed=3)

    config = arm_run(material, tmp_path, cipher="plain", seed=3).settings()
    network = build_network(config.network_config(), 3)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    images, labels = torch.from_numpy(material.train.pixels), torch.from_numpy(material.train_labels)
    training = TrainingConfig.of(config.training)
    losses = []
    for epoch in range(3):
        network.train()
        generator = epoch_generator(3, epoch)
        batches = torch.randperm(200, generator=generator).tensor_split(7)
        total = 0.0
        for step, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate_at((epoch + step / 7) / 3)
            moved = Augmentation()(images[rows], generator)
            loss = nn.functional.cross_entropy(network(moved), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / 200)
    # The same operations in the same order; the sum of losses alone is rounded elsewhere.
    assert [row.train_loss for row in found.curve] == pytest.approx(losses, rel=1e-5)
    held_out = ImageTensors.from_numpy(material.held_out.pixels, material.held_out_labels, CPU)
    assert found.accuracy == evaluate(network, held_out).accuracy


def test_an_arms_own_recipe_is_what_trains(material: Material, tmp_path: Path) -> None:
    recipe = {"learning_rate": 0.05, "schedule": "paper", "average_passes": 0.5, "alternate_flip": True}
    training = arm_run(material, tmp_path, **recipe).settings().training
    assert {name: getattr(training, name) for name in recipe} == recipe
    # Two thirds of three passes, and crops of images that are large enough.
    budget = BUDGET.model_copy(update={"size": 16})
    arm = Arm(name="arm", budget_part=0.667, first_crop=0.5)
    training = ArmRun(arm, budget, material, 0, tmp_path, CPU, lambda _progress: None).settings().training
    assert (training.rounds, training.first_crop) == (2, 0.5)

    averaged = run(material, tmp_path / "averaged", budget_part=0.667, average_passes=0.5)
    usual = run(material, tmp_path / "usual", budget_part=0.667)
    assert [row.passes for row in averaged.curve] == [1, 2]
    # The same path of the weights; what is measured along it is another network.
    assert [row.train_loss for row in averaged.curve] == [row.train_loss for row in usual.curve]
    assert averaged.curve[-1].held_out_loss != usual.curve[-1].held_out_loss


def stored(arm: ArmRun, split: Split) -> list[ImageTensors]:
    """Return what each owner's store holds."""
    owners, settings = arm._owners(), arm.settings()
    parts = arm._held_out_parts(len(owners))
    prepared = [arm._prepare(number, rows, parts[number], settings) for number, rows in enumerate(owners)]
    return [ImageTensors.from_shards(list(one.store.shards(split)), settings.shape, CPU) for one in prepared]


@pytest.mark.parametrize("split", Split)
def test_owners_together_hold_what_a_centralized_arm_holds(material: Material, tmp_path: Path, split: Split) -> None:
    centralized = arm_run(material, tmp_path / "a", scope="fixed", colour_shuffle=True)
    pooled = arm_run(
        material, tmp_path / "b", scope="fixed", colour_shuffle=True, mode="pooled", owners=4, partition="dirichlet-0.5"
    )
    if split is Split.TRAIN:
        (rows,) = centralized._owners()
        whole = centralized._images_of(rows)(0)
    else:
        whole = centralized._held_out(experiment_key(0))
    parts = stored(pooled, split)
    assert len(parts) == 4
    # As multisets of (image, label).
    expected = sorted(
        (bytes(image), int(label)) for image, label in zip(whole.images.numpy(), whole.labels, strict=True)
    )
    found = [(bytes(i), int(la)) for part in parts for i, la in zip(part.images.numpy(), part.labels, strict=True)]
    assert sorted(found) == expected


def decrypted(pixels: UInt8Array, arm: ArmRun, epoch: int = 0) -> UInt8Array:
    spec = arm._arm.spec
    assert spec is not None
    key = experiment_key(arm._seed)
    ids = arm._ids(Split.TRAIN, epoch)
    return make_cipher(spec, key).decrypt(EncryptedImages(pixels, ids, spec, key.fingerprint)).pixels


@pytest.mark.parametrize("scope", ["fixed", "image"])
def test_a_client_augments_before_it_encrypts_and_anew_each_pass(
    material: Material, tmp_path: Path, scope: str
) -> None:
    arm = arm_run(material, tmp_path, scope=scope, augmentation="client", colour_shuffle=True)
    images_of = arm._images_of(arm._owners()[0])
    plain = [decrypted(images_of(epoch).images.numpy(), arm, epoch) for epoch in (0, 1)]
    assert not np.array_equal(plain[0], plain[1])
    for pixels in plain:
        # Shifted by a pixel at most and filled with zeros: each image's inner part is found in the original.
        for moved, original in zip(pixels[:20], material.train.pixels[:20], strict=True):
            padded = np.pad(original, ((1, 1), (1, 1), (0, 0)))
            views = [padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
            flipped = np.pad(original[:, ::-1], ((1, 1), (1, 1), (0, 0)))
            views += [flipped[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
            assert any(np.array_equal(moved, view) for view in views)
    # The training loop must not augment a second time.
    settings = arm.settings()
    assert (settings.training.shift, settings.training.horizontal_flip) == (0, False)


def test_a_pass_of_a_client_can_be_repeated(material: Material, tmp_path: Path) -> None:
    arms = [arm_run(material, tmp_path, augmentation="client") for _ in range(2)]
    first, second = (arm._images_of(arm._owners()[0])(2).images for arm in arms)
    assert torch.equal(first, second)


def test_one_owners_wrong_key_spoils_its_images_alone(material: Material, tmp_path: Path) -> None:
    right = arm_run(material, tmp_path / "a", mode="pooled", owners=4, scope="fixed")
    wrong = arm_run(material, tmp_path / "b", mode="pooled", owners=4, scope="fixed", wrong_key_owners=1)
    first, second = stored(right, Split.TRAIN), stored(wrong, Split.TRAIN)
    assert bool((first[0].images != second[0].images).flatten(1).any(1).all())
    for one, other in zip(first[1:], second[1:], strict=True):
        assert torch.equal(one.images, other.images)
    # What accuracy is measured with is under the agreed key in both.
    for one, other in zip(stored(right, Split.HELD_OUT), stored(wrong, Split.HELD_OUT), strict=True):
        assert torch.equal(one.images, other.images)


def test_held_out_images_are_the_same_in_every_arm_of_a_seed(material: Material, tmp_path: Path) -> None:
    key = experiment_key(0)
    first = arm_run(material, tmp_path)._held_out(key)
    second = arm_run(material, tmp_path, mode="alone", owners=4, adaptation=())._held_out(key)
    assert torch.equal(first.images, second.images)
    other = arm_run(material, tmp_path, seed=1)._held_out(experiment_key(1))
    assert not torch.equal(first.images, other.images)


def test_each_owner_alone_is_the_mean_of_owners(material: Material, tmp_path: Path) -> None:
    result = run(material, tmp_path, mode="alone", owners=2)
    assert len(result.owner_accuracies) == 2
    assert result.accuracy == pytest.approx(sum(result.owner_accuracies) / 2)
    assert sum(result.owner_images) == 200
    assert (result.bytes_to_coordinator, result.bytes_from_coordinator) == (0, 0)


def test_the_bytes_of_uploaded_images_are_counted(material: Material, tmp_path: Path) -> None:
    each = 8 * 8 * 3 + 12 + 8
    assert run(material, tmp_path / "a").bytes_to_coordinator == 300 * each
    client = run(material, tmp_path / "b", augmentation="client")
    assert client.bytes_to_coordinator == (3 * 200 + 100) * each


def test_an_arm_goes_on_from_its_checkpoint(material: Material, tmp_path: Path) -> None:
    whole = run(material, tmp_path / "whole", colour_shuffle=True)

    class StoppedError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done > 1.5:
            raise StoppedError

    halted = arm_run(material, tmp_path / "halted", colour_shuffle=True)
    halted._tell = stop
    with pytest.raises(StoppedError):
        halted.run()
    resumed = run(material, tmp_path / "halted", colour_shuffle=True)
    assert timeless(resumed) == timeless(whole)


def timeless(result: Result) -> Result:
    curve = tuple(row.model_copy(update={"seconds": 0.0}) for row in result.curve)
    return result.model_copy(update={"seconds": 0.0, "curve": curve})


def test_settings_reach_the_federation(material: Material, tmp_path: Path) -> None:
    arm = Arm(
        name="arm",
        mode="updates",
        owners=3,
        local_epochs=2,
        update_format="bfloat16",
        features="fold",
        backbone="convmixer",
        padding="reflect",
        mirrored_views=True,
    )
    budget = BUDGET.model_copy(update={"epochs": 4})
    settings = ArmRun(arm, budget, material, 5, tmp_path, CPU, lambda _progress: None).settings()
    assert (settings.exchange, settings.owners) == ("updates", 3)
    assert (settings.training.rounds, settings.training.local_epochs) == (2, 2)
    assert (settings.training.padding, settings.training.update_format) == ("reflect", "bfloat16")
    assert settings.network_config().features == "fold"
    assert settings.network_config().backbone == "convmixer"
    assert settings.network_config().mirrored_views
    assert settings.training.seed == 5


def test_plain_images_are_in_no_registry() -> None:
    assert "plain" not in cipher_names()


def test_experiment_keys_repeat_and_differ() -> None:
    assert experiment_key(0).fingerprint == experiment_key(0).fingerprint
    assert len({experiment_key(seed, number).fingerprint for seed in range(3) for number in range(2)}) == 6
