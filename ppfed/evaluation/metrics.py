"""What the answers to labelled images say about a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, recall_score, roc_auc_score

from ppfed.images.types import Int64Array

CONFIDENCE = 0.95
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class ClassMetrics:
    """How one class fares against all others. What would be a division by zero is None.

    Attributes
    ----------
    name : str
    images : int
        Images of this class.
    answers : int
        Images that the model puts into it.
    recall : float or None
        Part of its images that the model recognises; with two classes, the sensitivity to this one.
    precision : float or None
        Part of the model's answers that are right.
    specificity : float or None
        Part of the other classes' images that the model does not put into it.
    auc : float or None
        Area under the ROC curve of its probability: how often a random image of the class gets a higher one than a
        random other.
    """

    name: str
    images: int
    answers: int
    recall: float | None
    precision: float | None
    specificity: float | None
    auc: float | None


@dataclass(frozen=True)
class OneAnswer:
    """A model that gives nearly all images the same class, whatever they show.

    Attributes
    ----------
    name : str
        The class.
    answers : int
        Images that were put into it.
    others, wrong : int
        Images of other classes, and how many of these were put into it.
    """

    name: str
    answers: int
    others: int
    wrong: int


@dataclass(frozen=True, eq=False)
class Metrics:
    """What the answers to labelled images say about a model.

    Attributes
    ----------
    images, correct : int
    interval : (float, float)
        Where the accuracy on all such images lies with 95 % confidence: Wilson's score interval (J. Am. Stat. Assoc.
        22:209, 1927), which does not leave 0 to 1 and holds for few images.
    balanced_accuracy : float
        Mean recall of the classes that there are images of.
    classes : tuple of ClassMetrics
        In the model's order.
    confusion : int64 array, (classes, classes)
        Number of images by true class (rows) and the model's (columns).
    one_answer : OneAnswer or None
        None for a model that tells images apart.
    """

    images: int
    correct: int
    interval: tuple[float, float]
    balanced_accuracy: float
    classes: tuple[ClassMetrics, ...]
    confusion: Int64Array
    one_answer: OneAnswer | None

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return self.correct / self.images


def measure(classes: tuple[str, ...], labels: Int64Array, probabilities: npt.NDArray[np.float64]) -> Metrics:
    """Compare the model's answers with the truth.

    Parameters
    ----------
    classes : tuple of str
    labels : int64 array, (N,)
        Positions in ``classes``; one at least.
    probabilities : float64 array, (N, classes)

    Raises
    ------
    ValueError
        If there are no images.
    """
    if not len(labels):
        raise ValueError("there are no images to measure")
    answers = probabilities.argmax(1)
    every = range(len(classes))
    confusion: Int64Array = confusion_matrix(labels, answers, labels=every)
    precision, recall, _, support = precision_recall_fscore_support(labels, answers, labels=every, zero_division=np.nan)
    answered = confusion.sum(0)
    correct = int(confusion.trace())
    interval = binomtest(correct, len(labels)).proportion_ci(CONFIDENCE, method="wilson")
    return Metrics(
        images=len(labels),
        correct=correct,
        interval=(float(interval.low), float(interval.high)),
        balanced_accuracy=float(recall_score(labels, answers, labels=np.unique(labels), average="macro")),
        classes=tuple(
            ClassMetrics(
                name=name,
                images=int(support[label]),
                answers=int(answered[label]),
                recall=_known(recall[label]),
                precision=_known(precision[label]),
                specificity=_specificity(confusion, label),
                auc=_auc(labels == label, probabilities[:, label]),
            )
            for label, name in enumerate(classes)
        ),
        confusion=confusion,
        one_answer=_one_answer(classes, confusion),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _specificity(confusion: Int64Array, label: int) -> float | None:
    others = int(confusion.sum() - confusion[label].sum())
    wrong = int(confusion[:, label].sum() - confusion[label, label])
    return (others - wrong) / others if others else None


def _auc(is_class: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.float64]) -> float | None:
    return float(roc_auc_score(is_class, probabilities)) if is_class.any() and not is_class.all() else None


def _one_answer(classes: tuple[str, ...], confusion: Int64Array) -> OneAnswer | None:
    """Find the class that nearly all images are put into, those of other classes too.

    The second part tells it from a good model on a source where nearly all images are of one class.
    """
    answered = confusion.sum(0)
    label = int(answered.argmax())
    answers, others = int(answered[label]), int(confusion.sum() - confusion[label].sum())
    wrong = answers - int(confusion[label, label])
    if not others or answers < _NEARLY_ALL * confusion.sum() or wrong < _NEARLY_ALL * others:
        return None
    return OneAnswer(classes[label], answers, others, wrong)
