"""Metrics: each against its definition, counted image by image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfed.evaluation.metrics import Metrics, measure

NAMES = ("healthy", "benign", "malignant", "unclear")


def answers(labels: list[int], predicted: list[int], classes: int) -> Metrics:
    """Measure a model that is sure of each answer."""
    return measure(NAMES[:classes], np.array(labels), np.eye(classes)[predicted])


def ratio(count: int, of: int) -> float | None:
    return count / of if of else None


@given(st.data())
def test_every_figure_is_its_definition(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    label = st.integers(0, classes - 1)
    images = data.draw(st.lists(st.tuples(label, st.permutations(range(classes))), min_size=1, max_size=30))
    labels = [true for true, _ in images]
    # A permutation has one largest value, and equal ones between images.
    probabilities = np.array([ranks for _, ranks in images], dtype=float)
    predicted = probabilities.argmax(1).tolist()
    pairs = list(zip(labels, predicted, strict=True))

    found = measure(NAMES[:classes], np.array(labels), probabilities)

    assert (found.images, found.correct) == (len(pairs), sum(true == said for true, said in pairs))
    assert found.accuracy == found.correct / len(pairs)
    assert found.confusion.tolist() == [
        [pairs.count((true, said)) for said in range(classes)] for true in range(classes)
    ]
    for one, name in enumerate(NAMES[:classes]):
        metrics = found.classes[one]
        right = pairs.count((one, one))
        others = [said for true, said in pairs if true != one]
        assert (metrics.name, metrics.images, metrics.answers) == (name, labels.count(one), predicted.count(one))
        # Exact quotients of small whole numbers, but for the last bit.
        assert metrics.recall == pytest.approx(ratio(right, labels.count(one)))
        assert metrics.precision == pytest.approx(ratio(right, predicted.count(one)))
        assert metrics.specificity == pytest.approx(ratio(len(others) - others.count(one), len(others)))
        mine = [row[one] for true, row in zip(labels, probabilities, strict=True) if true == one]
        theirs = [row[one] for true, row in zip(labels, probabilities, strict=True) if true != one]
        wins = sum((a > b) + (a == b) / 2 for a in mine for b in theirs)
        assert metrics.auc == (pytest.approx(wins / len(mine) / len(theirs)) if mine and theirs else None)
    recalls = [metrics.recall for metrics in found.classes if metrics.recall is not None]
    assert found.balanced_accuracy == pytest.approx(sum(recalls) / len(recalls))


@pytest.mark.parametrize(
    ("correct", "images", "interval"),
    [
        # Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_the_interval_is_wilsons(correct: int, images: int, interval: tuple[float, float]) -> None:
    found = answers([0] * images, [0] * correct + [1] * (images - correct), 2)
    # Published to four places.
    assert found.interval == pytest.approx(interval, abs=5e-5)


def test_two_classes_are_sensitivity_and_specificity() -> None:
    healthy, malignant = answers([0] * 8 + [1] * 4, [0] * 6 + [1] * 2 + [1] * 3 + [0], 2).classes
    assert (malignant.recall, malignant.specificity, malignant.precision) == (0.75, 0.75, 0.6)
    assert (healthy.recall, healthy.specificity) == (0.75, 0.75)


@pytest.mark.parametrize("answer", [0, 1])
def test_a_model_with_one_answer_is_seen(answer: int) -> None:
    # The accuracy is 90 % for the first answer.
    found = answers([0] * 90 + [1] * 10, [answer] * 100, 2).one_answer
    assert found is not None
    others = 10 if answer == 0 else 90
    assert (found.name, found.answers, found.others, found.wrong) == (NAMES[answer], 100, others, others)


def test_nearly_one_answer_is_seen_too() -> None:
    found = answers([0] * 50 + [1] * 50, [0] * 96 + [1] * 4, 2).one_answer
    assert found is not None
    assert (found.name, found.answers, found.wrong) == ("healthy", 96, 46)


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [
        # A good model on a source where nearly all images are of one class.
        ([0] * 96 + [1] * 4, [0] * 97 + [1] * 3),
        ([0] * 100, [0] * 100),
        ([0, 1], [0, 1]),
        ([0] * 50 + [1] * 50, [0] * 80 + [1] * 20),
    ],
)
def test_a_model_that_tells_images_apart_is_left_alone(labels: list[int], predicted: list[int]) -> None:
    assert answers(labels, predicted, 2).one_answer is None


def test_no_images_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="no images"):
        measure(NAMES, np.empty(0, np.int64), np.empty((0, 4)))
