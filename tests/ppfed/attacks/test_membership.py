"""Membership inference: found where a network has learned images by heart, at chance where it has not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ppfed.attacks.membership import (
    MembershipOutcome,
    difficulty_calibrated_attack,
    likelihood_ratio_attack,
    losses,
    scaled_confidences,
    threshold_attack,
)
from ppfed.networks.classifier import ImageClassifier, build_network
from ppfed.networks.config import NetworkConfig
from ppfed.training.augment import NO_AUGMENTATION
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig

CPU = torch.device("cpu")
# An attacker who knows nothing stays within four standard deviations but once in 16,000 times.
FAR = 4


def test_separable_losses_are_told_apart() -> None:
    outcome = threshold_attack(np.linspace(0, 1, 50), np.linspace(2, 3, 70))
    assert outcome == MembershipOutcome(auc=1, advantage=1, tpr_at_1_percent_fpr=1, members=50, others=70)
    # The other way round: higher losses of members are no sign of membership.
    assert threshold_attack(np.linspace(2, 3, 50), np.linspace(0, 1, 70)).auc == 0


def test_equal_losses_are_chance() -> None:
    outcome = threshold_attack(np.ones(10), np.ones(20))
    assert (outcome.auc, outcome.advantage, outcome.tpr_at_1_percent_fpr) == (0.5, 0, 0)


def test_one_distribution_is_chance() -> None:
    rng = np.random.default_rng(0)
    outcome = threshold_attack(rng.exponential(size=1000), rng.exponential(size=1000))
    assert abs(outcome.auc - 0.5) < FAR * outcome.auc_chance_spread
    # The largest difference of two empirical distributions of 1,000 exceeds 1.95 * sqrt(2 / 1000) once in 1,000 times.
    assert outcome.advantage < 0.0873
    # 10 of 1,000 are expected, with a deviation of sqrt(10 + 10): the threshold is as random as what passes it.
    assert outcome.tpr_at_1_percent_fpr < 0.01 + FAR * np.sqrt(20) / 1000


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
)
def test_the_area_is_the_chance_that_a_member_ranks_above_another(members: list[int], others: list[int]) -> None:
    own, strange = np.array(members, float), np.array(others, float)
    outcome = threshold_attack(own, strange)
    wins = (own[:, None] < strange) + 0.5 * (own[:, None] == strange)
    # Rounding of sums of at most 400 terms in float64.
    assert outcome.auc == pytest.approx(wins.mean(), abs=1e-12)
    best = max((own <= limit).mean() - (strange <= limit).mean() for limit in range(-1, 10))
    assert outcome.advantage == pytest.approx(best, abs=1e-12)


def test_the_spread_of_chance_is_that_of_simulated_chance() -> None:
    rng = np.random.default_rng(1)
    outcomes = [threshold_attack(rng.normal(size=30), rng.normal(size=50)) for _ in range(400)]
    spread = np.std([outcome.auc for outcome in outcomes])
    # A deviation estimated from 400 is off by 1 / sqrt(800) = 3.5 % on average.
    assert spread == pytest.approx(outcomes[0].auc_chance_spread, rel=FAR * 0.035)


@pytest.mark.parametrize(
    "change",
    [
        {"auc": 1.1},
        {"auc": float("nan")},
        {"advantage": -0.1},
        {"members": 0},
        {"others": 0},
        {"tpr_at_1_percent_fpr": 0.5},
        {"extra": 1},
    ],
)
def test_an_outcome_out_of_bounds_is_refused(change: dict[str, float]) -> None:
    good = {"auc": 0.6, "advantage": 0.2, "tpr_at_1_percent_fpr": 0.05, "members": 3, "others": 4}
    outcome = MembershipOutcome.model_validate(good)
    assert MembershipOutcome.model_validate_json(outcome.model_dump_json()) == outcome
    with pytest.raises(ValidationError):
        MembershipOutcome.model_validate(good | change)


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_scores_that_cannot_be_ranked_are_refused(members: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match=r"there must be|not finite"):
        threshold_attack(np.array(members), np.array(others))


IMAGES, SHADOWS = 600, 8
Attack = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], MembershipOutcome]


def confidences(gain: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a target (row 0) and shadow networks; being a member adds ``gain``, and images differ in difficulty."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(scale=5, size=IMAGES)
    inside = rng.random((SHADOWS + 1, IMAGES)) < 0.5
    # Every image has shadow networks of either kind.
    inside[1], inside[2] = True, False
    values = difficulty + gain * inside + rng.normal(size=inside.shape)
    return values, inside, difficulty


def test_likelihood_ratios_see_through_difficulty() -> None:
    values, inside, _ = confidences(gain=2, seed=2)
    threshold = threshold_attack(-values[0][inside[0]], -values[0][~inside[0]])
    online = likelihood_ratio_attack(values[0], values[1:], inside[1:], inside[0])
    calibrated = difficulty_calibrated_attack(values[0], values[1:], inside[1:], inside[0])
    outside = np.where(inside, values - 2, values)
    offline = likelihood_ratio_attack(values[0], outside[1:], np.zeros_like(inside[1:]), inside[0])
    # Theory: normal scores whose means are 2 apart give Phi(2 / sqrt(2 * variance)): 0.61 for variance 26, 0.92 for
    # variance 1; estimated means add at most a third to the variance, which leaves 0.87.
    assert threshold.auc < 0.7
    assert online.auc > 0.85
    assert offline.auc > 0.85
    assert calibrated.auc > 0.85
    assert online.tpr_at_1_percent_fpr > 3 * threshold.tpr_at_1_percent_fpr


@pytest.mark.parametrize("attack", [likelihood_ratio_attack, difficulty_calibrated_attack])
def test_shadow_networks_are_at_chance_where_membership_changes_nothing(attack: Attack) -> None:
    values, inside, _ = confidences(gain=0, seed=3)
    outcome = attack(values[0], values[1:], inside[1:], inside[0])
    assert abs(outcome.auc - 0.5) < FAR * outcome.auc_chance_spread


def test_without_shadow_networks_of_its_members_a_likelihood_ratio_is_the_calibrated_confidence() -> None:
    values, inside, _ = confidences(gain=1, seed=9)
    nowhere = np.zeros_like(inside[1:])
    assert difficulty_calibrated_attack(values[0], values[1:], nowhere, inside[0]) == likelihood_ratio_attack(
        values[0], values[1:], nowhere, inside[0]
    )


def test_calibration_compares_with_the_networks_without_the_image_alone() -> None:
    values, inside, _ = confidences(gain=1, seed=10)
    # What a network says of its own images does not enter.
    otherwise = np.where(inside[1:], 1e6, values[1:])
    assert difficulty_calibrated_attack(values[0], otherwise, inside[1:], inside[0]) == difficulty_calibrated_attack(
        values[0], values[1:], inside[1:], inside[0]
    )


def test_one_shadow_network_is_enough_for_a_ranking() -> None:
    values, inside, difficulty = confidences(gain=4, seed=4)
    shadow = (difficulty + np.random.default_rng(5).normal(size=IMAGES))[None]
    outcome = likelihood_ratio_attack(values[0], shadow, np.zeros_like(shadow, bool), inside[0])
    # Phi(4 / sqrt(2 * 2)) = 0.98.
    assert outcome.auc > 0.95


def test_shadow_networks_that_allow_no_comparison_are_refused() -> None:
    values, inside, _ = confidences(gain=1, seed=6)
    everywhere, nowhere = inside[1:].copy(), inside[1:].copy()
    everywhere[:, 3], nowhere[:, 3] = True, False
    with pytest.raises(ValueError, match="no shadow network"):
        likelihood_ratio_attack(values[0], values[1:], nowhere, inside[0])
    for attack in (likelihood_ratio_attack, difficulty_calibrated_attack):
        with pytest.raises(ValueError, match="all shadow networks"):
            attack(values[0], values[1:], everywhere, inside[0])
        with pytest.raises(ValueError, match="differ in their number"):
            attack(values[0][1:], values[1:], inside[1:], inside[0])
        with pytest.raises(ValueError, match="not finite"):
            attack(values[0] * np.nan, values[1:], inside[1:], inside[0])


def noise(count: int, seed: int) -> ImageTensors:
    rng = np.random.default_rng(seed)
    return ImageTensors.from_numpy(
        rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), rng.integers(0, 4, count), CPU
    )


@pytest.fixture(scope="module")
def overfit() -> ImageClassifier:
    """A network that has learned 64 noise images with random labels by heart."""
    network = build_network(NetworkConfig(4, 8, 8, base_maps=4), seed=0)
    config = TrainingConfig(epochs=60, batch_size=32, learning_rate=0.1, weight_decay=0, augmentation=NO_AUGMENTATION)
    list(Trainer(network, config, CPU).train_epochs(noise(64, seed=7), 0, config.epochs))
    return network


def test_what_was_learned_by_heart_is_found(overfit: ImageClassifier) -> None:
    members, others = noise(64, seed=7), noise(200, seed=8)
    outcome = threshold_attack(losses(overfit, members), losses(overfit, others))
    # Labels are random: others are classified at chance, members nearly always rightly.
    assert outcome.auc > 0.8
    by_confidence = threshold_attack(-scaled_confidences(overfit, members), -scaled_confidences(overfit, others))
    # Either is a monotone function of the other, up to the rounding of losses near 0.
    assert by_confidence.auc == pytest.approx(outcome.auc, abs=1e-6)


def test_an_untrained_network_tells_nothing() -> None:
    network = build_network(NetworkConfig(4, 8, 8, base_maps=4), seed=0)
    outcome = threshold_attack(losses(network, noise(64, seed=7)), losses(network, noise(200, seed=8)))
    assert abs(outcome.auc - 0.5) < FAR * outcome.auc_chance_spread


def test_losses_and_confidences_are_those_of_the_probabilities(overfit: ImageClassifier) -> None:
    data = noise(20, seed=8)
    overfit.eval()
    with torch.no_grad():
        chosen = overfit(data.images).double().softmax(1)[torch.arange(20), data.labels].numpy()
    # Batches of another size are summed in another order: float32.
    assert losses(overfit, data) == pytest.approx(-np.log(chosen), rel=1e-4, abs=1e-4)
    assert scaled_confidences(overfit, data) == pytest.approx(np.log(chosen / (1 - chosen)), rel=1e-3, abs=1e-3)
