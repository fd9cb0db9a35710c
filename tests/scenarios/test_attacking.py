"""What of an arm is attacked, and that an attack costs no training twice."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppfed.errors import DataError
from ppfed.leakage.record import CIPHERTEXT_KEY, ORIGINAL_KEY, AttackName
from scenarios.arms import ArmRun, Progress
from scenarios.attacking import (
    LEAKAGE_FILE,
    PICTURES_FILE,
    ArmAttack,
    evenly,
    load_pictures,
    membership_rows,
    mixed,
    rows_without,
    save_pictures,
)
from scenarios.declaration import Arm, Budget
from scenarios.material import Material, digits
from scenarios.results import Result

BUDGET = Budget(size=8, epochs=2, base_maps=2, batch_size=32, targets=20, attacker_images=100, attack_preset="quick")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def material() -> Material:
    return digits(8, 100, 50, attacker_images=100)


def arm_run(material: Material, folder: Path, told: list[Progress], **arm: Any) -> ArmRun:
    folder.mkdir(exist_ok=True)
    return ArmRun(Arm(name="arm", **arm), BUDGET, material, 0, folder, CPU, told.append, data_title="digits")


def run(material: Material, folder: Path, **arm: Any) -> Result:
    return arm_run(material, folder, [], **arm).run()


def attacker(material: Material, folder: Path, **arm: Any) -> ArmAttack:
    one = arm_run(material, folder, [], **arm)
    return ArmAttack(one._arm, BUDGET, one.settings(), material, "digits", 0, CPU)


@given(st.integers(1, 500), st.integers(1, 500))
def test_rows_are_chosen_at_even_distances(count: int, most: int) -> None:
    rows = evenly(count, most)
    assert len(rows) == len(set(rows.tolist())) == min(count, most)
    assert rows.min() >= 0
    assert rows.max() < count
    # Rounding moves each end of a distance by half a row at most.
    assert len(rows) < 2 or np.ptp(np.diff(rows)) <= 1


def test_as_many_training_images_as_held_out_ones_are_told_apart() -> None:
    members, others = membership_rows(1000, 50)
    assert (len(members), len(others)) == (50, 50)
    assert members.max() == 999


def test_the_attacker_has_none_of_the_images_that_it_attacks(material: Material, tmp_path: Path) -> None:
    assert material.attacker is not None
    assert material.attacker_labels is not None
    mixed = np.concatenate([material.attacker.pixels, material.held_out.pixels])
    labels = np.concatenate([material.attacker_labels, material.held_out_labels])
    both = Material(
        material.classes,
        material.train,
        material.train_labels,
        material.held_out,
        material.held_out_labels,
        type(material.train)(mixed),
        labels,
    )
    images = attacker(both, tmp_path, attacks=("all",))._images()
    assert len(images.targets) == BUDGET.targets
    own = {image.tobytes() for image in images.own.pixels}
    assert not own.intersection(image.tobytes() for image in images.targets.pixels)
    # Held-out images that are not attacked may be the attacker's.
    assert len(images.own) == len(images.own_labels) == len(mixed) - BUDGET.targets


def test_an_attacker_without_any_other_image_is_refused() -> None:
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="among those"):
        rows_without(images, images[:1])


def test_pictures_are_for_the_user_alone_and_keep_their_names_and_order(tmp_path: Path) -> None:
    randomness = np.random.default_rng(0)
    pictures = {
        name: randomness.integers(0, 256, (3, 4, 4, channels), dtype=np.uint8)
        for name, channels in (("original", 3), ("ciphertext", 3), ("file", 1), ("jigsaw, 4 x 4", 3))
    }
    path = tmp_path / "pictures.npz"
    save_pictures(path, pictures)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = load_pictures(path)
    assert list(found) == list(pictures)
    assert all(np.array_equal(found[name], pictures[name]) for name in pictures)
    assert load_pictures(tmp_path / "none.npz") == {}


def test_an_encrypted_arm_is_attacked_as_declared(material: Material, tmp_path: Path) -> None:
    result = run(material, tmp_path / "arm", colour_shuffle=True, attacks=("collusion", "fold"))
    record = result.leakage
    assert record is not None
    assert record.cipher is not None
    assert record.cipher.colour_shuffle
    assert [one.attack for one in record.attacks] == [AttackName.FOLD, AttackName.COLLUSION]
    assert record.attacks[1].resemblance.ssim.mean == 1.0
    assert record.attacks[0].resemblance.ssim.mean < 1.0
    assert record.data == "20 held-out images of digits"
    pictures = load_pictures(tmp_path / "arm" / PICTURES_FILE)
    targets = material.held_out.pixels[mixed(len(material.held_out), BUDGET.targets, 0)]
    assert np.array_equal(pictures[ORIGINAL_KEY], targets[: len(pictures[ORIGINAL_KEY])])
    assert not np.array_equal(pictures[CIPHERTEXT_KEY], pictures[ORIGINAL_KEY])


def test_plain_images_are_a_copy_of_themselves(material: Material, tmp_path: Path) -> None:
    record = run(material, tmp_path / "arm", cipher="plain", attacks=("all",)).leakage
    assert record is not None
    assert record.cipher is None
    assert record.attacks == ()
    assert record.ciphertext.ssim.mean == 1.0
    assert record.ciphertext.reidentified == 1.0


def test_mixed_training_images_are_compared_with_their_originals(material: Material, tmp_path: Path) -> None:
    arm = arm_run(material, tmp_path / "arm", [], cipher="pixel-block-mixing", attacks=("all",))
    rows = arm._owners()[0]
    trained_on = arm._images_of(rows)(0).images.numpy()
    result = arm.run()
    record = result.leakage
    assert record is not None
    assert record.ciphertext.ssim.mean < 0.99 < record.perfect.ssim.mean
    # What an image still has of itself tells which it is; none is as it was.
    assert record.by_candidates is not None
    assert record.by_candidates.reidentified > 0.9
    assert record.by_candidates.certain < 0.1
    pictures = load_pictures(tmp_path / "arm" / PICTURES_FILE)
    chosen = mixed(100, BUDGET.targets, 0)[: len(pictures[ORIGINAL_KEY])]
    # What is measured is what the network saw, and nothing else is mixed.
    assert np.array_equal(pictures[CIPHERTEXT_KEY], trained_on[chosen])
    assert np.array_equal(pictures[ORIGINAL_KEY], material.train.pixels[chosen])
    assert torch.equal(arm._held_out(arm._key_of(0)).images, torch.from_numpy(material.held_out.pixels))


def test_an_arm_that_declares_no_attack_has_no_record(material: Material, tmp_path: Path) -> None:
    result = run(material, tmp_path / "arm")
    assert result.leakage is None
    assert result.membership is not None
    assert not (tmp_path / "arm" / PICTURES_FILE).exists()


def test_a_scale_that_attacks_nothing_attacks_nothing(material: Material, tmp_path: Path) -> None:
    told: list[Progress] = []
    budget = BUDGET.model_copy(update={"attack": False})
    arm = Arm(name="arm", attacks=("all",))
    without = digits(8, 100, 50)
    assert ArmRun(arm, budget, without, 0, tmp_path, CPU, told.append).run().leakage is None
    assert told[-1].done == told[-1].total


def test_a_network_that_knows_its_images_by_heart_gives_them_away(material: Material, tmp_path: Path) -> None:
    """Labels without sense can only be learned by heart: then training images have the smaller loss."""
    random_labels = np.random.default_rng(0).permutation(material.train_labels)
    changed = Material(material.classes, material.train, random_labels, material.held_out, material.held_out_labels)
    budget = BUDGET.model_copy(update={"epochs": 40, "base_maps": 8, "learning_rate": 0.1})
    arm = Arm(name="arm", cipher="plain", adaptation=(), augmentation="none")
    found = ArmRun(arm, budget, changed, 0, tmp_path, CPU, lambda _progress: None).run().membership
    assert found is not None
    # 40 passes learn all of 100 images; on held-out ones it is no better than guessing.
    assert found.auc > 0.9


def test_an_interrupted_attack_costs_no_training(material: Material, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage:
            raise StoppedError

    declared = {"colour_shuffle": True, "attacks": ("fold",)}
    whole = run(material, tmp_path / "whole", **declared)
    halted = arm_run(material, tmp_path / "halted", [], **declared)
    halted._tell = stop
    with pytest.raises(StoppedError):
        halted.run()
    told: list[Progress] = []
    resumed = arm_run(material, tmp_path / "halted", told, **declared).run()
    assert all(one.done >= BUDGET.epochs for one in told)
    assert any(one.stage for one in told)
    assert told[-1].done == told[-1].total
    assert timeless(resumed) == timeless(whole)


def test_an_attack_that_was_finished_is_not_repeated(material: Material, tmp_path: Path) -> None:
    first = run(material, tmp_path / "arm", attacks=("fold",))
    pictures = (tmp_path / "arm" / PICTURES_FILE).read_bytes()
    told: list[Progress] = []
    again = arm_run(material, tmp_path / "arm", told, attacks=("fold",)).run()
    assert not any(one.stage for one in told)
    assert again.leakage == first.leakage
    assert (tmp_path / "arm" / PICTURES_FILE).read_bytes() == pictures
    assert stat.S_IMODE((tmp_path / "arm" / LEAKAGE_FILE).stat().st_mode) == 0o600


def timeless(result: Result) -> Result:
    curve = tuple(row.model_copy(update={"seconds": 0.0}) for row in result.curve)
    record = result.leakage
    if record is not None:
        attacks = tuple(one.model_copy(update={"seconds": 0.0}) for one in record.attacks)
        record = record.model_copy(update={"attacks": attacks})
    return result.model_copy(update={"seconds": 0.0, "curve": curve, "leakage": record})
