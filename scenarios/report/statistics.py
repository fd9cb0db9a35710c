"""What accuracies of a few seeds allow to be said.

An accuracy differs from what the method would reach on all images for two reasons. Another seed trains another network:
that spread is seen when an arm is run under several seeds. And the held-out images are a sample: that error is
binomial, all seeds share it, and more seeds do not make it smaller. Intervals here hold both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_UPPER = (1 + CONFIDENCE) / 2
_NORMAL = float(stats.norm.ppf(_UPPER))
_MOST_SEEDS = 10_000
_MOST_IMAGES = 100_000_000

Component = tuple[float, float]
"""A variance that was estimated over seeds, and its degrees of freedom."""


@dataclass(frozen=True)
class Accuracies:
    """One arm's accuracies.

    Attributes
    ----------
    by_seed : dict of int to float
        From 0 to 1; at least one.
    images : int
        Held-out images that they were measured on.
    """

    by_seed: Mapping[int, float]
    images: int

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return math.fsum(self.by_seed.values()) / self.seeds

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds, with n - 1; None for a single seed."""
        return deviation(self.by_seed.values())

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy on all images lies, with 95 % confidence; cut to 0 to 1."""
        half = half_width(_over_seeds([self]), sampling_variance(self.mean, self.images))
        return max(self.mean - half, 0.0), min(self.mean + half, 1.0)


class Finding(StrEnum):
    """What may be said of a difference."""

    BEYOND = "beyond"
    """Its interval leaves out zero."""
    WITHIN = "within"
    """Its interval holds zero."""
    ONE_SEED = "one seed"
    """It is larger than the held-out images explain, and nobody knows how much seeds differ."""


@dataclass(frozen=True)
class Difference:
    """How far the second of two arms is above the first.

    Attributes
    ----------
    value : float
        Second minus first, -1 to 1.
    half : float
        Half the width of the 95 % interval; of the sampling error alone where ``deviation`` is None.
    paired : bool
        Both arms were run under the same seeds, two or more, and the differences seed by seed were used: what a seed
        does to both arms cancels out.
    seeds : int
        Of each arm; the smaller number where they have different ones and no two in common.
    deviation : float or None
        Standard deviation of one seed's difference; None where an arm has one seed only.
    half_over_seeds : float or None
        Half the width of the interval if these held-out images were all that matter.
    sampling : float
        Variance for the choice of held-out images, as if the arms had been measured on images of their own. Both
        are measured on the same, and mostly err on the same: then the truth is smaller.
    images : int
        Held-out images; the smaller number where the arms differ.
    """

    value: float
    half: float
    paired: bool
    seeds: int
    deviation: float | None
    half_over_seeds: float | None
    sampling: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.value - self.half, self.value + self.half

    @property
    def finding(self) -> Finding:
        """What may be said."""
        if abs(self.value) <= self.half:
            return Finding.WITHIN
        return Finding.ONE_SEED if self.deviation is None else Finding.BEYOND


@dataclass(frozen=True)
class Plan:
    """What would separate two arms if they differ as they seem to.

    Attributes
    ----------
    seeds : int or None
        Of each arm; None where the spread over seeds is unknown.
    images : int or None
        Held-out images; None where there are enough.
    """

    seeds: int | None
    images: int | None


def deviation(values: Iterable[float]) -> float | None:
    """Estimate the standard deviation, with n - 1 in the denominator; None for fewer than two values."""
    array = np.fromiter(values, dtype=np.float64)
    return float(array.std(ddof=1)) if array.size > 1 else None


def sampling_variance(accuracy: float, images: int) -> float:
    """Variance of an accuracy because it was measured on a sample of images.

    Two right and two wrong answers are added (Agresti and Coull, The American Statistician 52:119, 1998): otherwise an
    accuracy of 100 % on 20 images would be free of error.
    """
    adjusted = (accuracy * images + 2) / (images + 4)
    return adjusted * (1 - adjusted) / (images + 4)


def half_width(components: Sequence[Component], sampling: float) -> float:
    """Half the width of the 95 % interval of a mean with two causes of error: seeds and held-out images.

    The half widths for each cause alone add as squares. So the interval is never narrower than that of one cause, as it
    can be where the degrees of freedom of a spread seen on two seeds are pooled with a known error.

    Parameters
    ----------
    components : sequence of (float, float)
        Variances that were estimated over seeds, with their degrees of freedom; none where the spread is unknown.
    sampling : float
        Variance for the choice of held-out images.
    """
    return math.hypot(half_width_over_seeds(components), _NORMAL * math.sqrt(sampling))


def half_width_over_seeds(components: Sequence[Component]) -> float:
    """Student's t at (1 + 0.95) / 2, times the root of the summed variances.

    Degrees of freedom after Welch and Satterthwaite (Biometrics Bulletin 2:110, 1946); of a single variance its own.
    """
    total = math.fsum(variance for variance, _ in components)
    estimated = math.fsum(variance**2 / degrees for variance, degrees in components)
    return 0.0 if estimated == 0.0 else float(stats.t.ppf(_UPPER, total**2 / estimated)) * math.sqrt(total)


def difference(first: Accuracies, second: Accuracies) -> Difference:
    """Compare two arms; over the seeds they share, if these are two or more."""
    shared = sorted(first.by_seed.keys() & second.by_seed.keys())
    paired = len(shared) > 1
    if paired:
        first, second = (
            Accuracies({seed: arm.by_seed[seed] for seed in shared}, arm.images) for arm in (first, second)
        )
        spread = deviation(second.by_seed[seed] - first.by_seed[seed] for seed in shared)
        components = [] if spread is None else [(spread**2 / len(shared), len(shared) - 1.0)]
    else:
        spreads = (first.deviation, second.deviation)
        known = [spread for spread in spreads if spread is not None]
        spread = math.hypot(*known) if len(known) == len(spreads) else None
        components = [] if spread is None else _over_seeds([first, second])
    sampling = math.fsum(sampling_variance(arm.mean, arm.images) for arm in (first, second))
    return Difference(
        value=second.mean - first.mean,
        half=half_width(components, sampling),
        paired=paired,
        seeds=min(first.seeds, second.seeds),
        deviation=spread,
        half_over_seeds=half_width_over_seeds(components) if components else None,
        sampling=sampling,
        images=min(first.images, second.images),
    )


def plan(found: Difference) -> Plan | None:
    """Say what would separate two arms; None if they differ by so little that nobody would pay for it.

    The smallest n with t(n)^2 * s^2 / n + z^2 * b < d^2, where s is the observed deviation of one seed's difference, b
    the sampling variance and d the difference. Where b alone is too large, more held-out images are needed: then each
    cause may take half of what d^2 allows.
    """
    if found.value == 0.0:
        return None
    allowed = (found.value / _NORMAL) ** 2
    images = None
    sampling = found.sampling
    if sampling >= allowed:
        sampling = allowed if found.deviation is None else allowed / 2
        images = math.ceil(found.images * found.sampling / sampling)
        if images > _MOST_IMAGES:
            return None
    if found.deviation is None:
        return Plan(None, images)
    seeds = _seeds_needed(abs(found.value), found.deviation, sampling)
    return None if seeds is None else Plan(seeds, images)


def _seeds_needed(value: float, spread: float, sampling: float) -> int | None:
    def separates(seeds: int) -> bool:
        return half_width([(spread**2 / seeds, seeds - 1.0)], sampling) < value

    if not separates(_MOST_SEEDS):
        return None
    low, high = 1, _MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if separates(middle) else (middle, high)
    return high


def _over_seeds(arms: Sequence[Accuracies]) -> list[Component]:
    """Give the variance of each mean over seeds; an arm with one seed has none to show."""
    return [
        (spread**2 / arm.seeds, arm.seeds - 1.0) for arm in arms for spread in [arm.deviation] if spread is not None
    ]
