"""How far one owner's answer can move the network: norm bounding.

What a single answer may hold is limited so that nothing overflows (``ppfed/wire/weights.py``), but weights far below
those limits already make the honest answers of the next round exceed them, and one owner would end the run for all. So
an answer is compared with what other owners sent, and shortened where it is too long (Sun et al., "Can You Really
Backdoor Federated Learning?", arXiv 1911.07963).

The measure is the longest answer that each owner has sent so far, and of those the lower median over the owners: if
fewer than half of them are hostile, it is no larger than what some honest owner sent. The median of a round or step
alone will not do. Late in training an owner whose images are all classified rightly changes next to nothing, and one
with a hard image a hundred times as much: honest answers would be cut, and a step of exchange ``gradients`` would no
longer be that of one machine with all images. The factor of ten is there to leave honest owners alone that have more
images or take more steps. An answer within the bound is not changed by a bit. Who went beyond it twice is bounded by
the median itself from then on: ten times the median, in every round in the same direction, would carry the weights
away.

Of two owners it cannot be told which is hostile: before three have answered, nothing is bounded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ppfed.networks.state import flatten, is_statistic, is_variance
from ppfed.training.gradients import Moments, PartialGradient

FACTOR = 10.0
"""How many times as long as the median a change or a gradient may be."""

_FEWEST = 3
_MOST_BEYOND = 2
_EPSILON = 1e-5
"""What batch norm adds to a variance before it divides by the root."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Bounded(Generic[Answer]):
    """What is used in place of an answer that went too far.

    Attributes
    ----------
    answer : dict of str to float32 tensor, or PartialGradient
    reason : str
        For the audit trail.
    far : bool
        Whether its norm was beyond ten times the median, and not only beyond what is left to an owner that was before.
    """

    answer: Answer
    reason: str
    far: bool


class SeenNorms(BaseModel):
    """What is remembered of the owners' answers, over a restart too.

    Attributes
    ----------
    longest : dict of str to float
        Norm of the longest answer of each owner so far.
    beyond : dict of str to int
        How often an owner went beyond the bound.
    nodes : dict of str to int
        With which node each of them answered: who has taken the place of another has a record of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest: dict[str, float] = {}
    beyond: dict[str, int] = {}
    nodes: dict[str, int] = {}


class NormBound:
    """Bounds the answers of a run.

    Parameters
    ----------
    seen : SeenNorms
        Of the run so far.
    nodes : mapping of str to int
        The node of each owner.
    """

    def __init__(self, seen: SeenNorms, nodes: Mapping[str, int]) -> None:
        self._nodes = dict(nodes)
        others = {name for name, node in seen.nodes.items() if nodes.get(name) != node}
        self._longest = {name: norm for name, norm in seen.longest.items() if name not in others}
        self._beyond = Counter({name: count for name, count in seen.beyond.items() if name not in others})

    @property
    def seen(self) -> SeenNorms:
        """What was seen until now, for the checkpoint."""
        return SeenNorms(longest=dict(self._longest), beyond=dict(self._beyond), nodes=self._nodes)

    def bound_weights(
        self, base: Mapping[str, Tensor], answers: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Bounded[dict[str, Tensor]]]:
        """Bound what owners made of a round's weights.

        A change of the parameters whose Euclidean norm exceeds the bound is scaled down to it. The batch-norm
        statistics of its owner are replaced: by the round's lower medians, channel by channel, or where fewer than
        three answered by those that went out. So are the statistics alone where they are not of the others' kind
        (``_strange``): the average of the weights could not be evaluated with them.

        Parameters
        ----------
        base : mapping of str to float32 tensor
            The weights that the owners trained on.
        answers : mapping of str to (mapping of str to float32 tensor)
            Their weights by owner, of the same names and shapes, finite.

        Returns
        -------
        dict of str to Bounded
            Only of owners that went too far.
        """
        trained = [name for name in base if not is_statistic(name)]
        norms = {
            owner: math.sqrt(sum(float((weights[name] - base[name]).double().square().sum()) for name in trained))
            for owner, weights in answers.items()
        }
        limits = self._limits(norms)
        variances = [name for name in base if is_variance(name)]
        means = [name for name in base if is_statistic(name) and name not in variances]

        def statistics(weights: Mapping[str, Tensor]) -> Moments:
            return Moments(*(flatten({name: weights[name] for name in names}) for names in (means, variances)))

        strange, usual = _strange({owner: statistics(weights) for owner, weights in answers.items()})
        usual = usual or statistics(base)
        bounded: dict[str, Bounded[dict[str, Tensor]]] = {}
        for owner, weights in answers.items():
            reasons = []
            result = dict(weights)
            if norms[owner] > limits[owner]:
                reasons.append(_shortened("change of the parameters", norms[owner], limits[owner]))
                scale = limits[owner] / norms[owner]
                result |= {name: base[name] + (weights[name] - base[name]) * scale for name in trained}
            elif owner not in strange:
                continue
            for names, values in ((means, usual.mean), (variances, usual.variance)):
                parts = torch.split(values, [base[name].numel() for name in names])
                result |= {name: part.reshape(base[name].shape) for name, part in zip(names, parts, strict=True)}
            reasons.append("its batch-norm statistics are replaced by the usual ones")
            bounded[owner] = Bounded(result, "; ".join(reasons), norms[owner] > FACTOR * self._median)
        return bounded

    def bound_parts(self, parts: Mapping[str, PartialGradient]) -> dict[str, Bounded[PartialGradient]]:
        """Bound the parts of a step of exchange ``gradients``.

        A gradient here is a mean over images, so the norms of large and of small parts compare as they are. Moments
        that are not of the others' kind (``_strange``) are replaced by the step's lower medians, channel by channel.

        Parameters
        ----------
        parts : mapping of str to PartialGradient
            By owner.

        Returns
        -------
        dict of str to Bounded
            Only of owners that went too far.
        """
        norms = {owner: float(part.gradient.double().norm()) for owner, part in parts.items()}
        limits = self._limits(norms)
        strange, usual = _strange({owner: part.moments for owner, part in parts.items()})
        bounded: dict[str, Bounded[PartialGradient]] = {}
        for owner, part in parts.items():
            result, reasons = part, []
            if norms[owner] > limits[owner]:
                reasons.append(_shortened("gradient", norms[owner], limits[owner]))
                scale = limits[owner] / norms[owner]
                result = replace(result, gradient=(part.gradient.double() * scale).float())
            if owner in strange and usual is not None:
                reasons.append("its batch-norm moments are replaced by the usual ones")
                result = replace(result, moments=usual)
            if reasons:
                bounded[owner] = Bounded(result, "; ".join(reasons), norms[owner] > FACTOR * self._median)
        return bounded

    def _limits(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Longest norm of each owner's answer to this round or step."""
        self._longest |= {owner: max(norm, self._longest.get(owner, 0.0)) for owner, norm in norms.items()}
        limits = {owner: self._median * (FACTOR if self._beyond[owner] < _MOST_BEYOND else 1.0) for owner in norms}
        self._beyond.update(owner for owner, norm in norms.items() if norm > FACTOR * self._median)
        return limits

    @property
    def _median(self) -> float:
        """Lower median of the owners' longest answers; infinite where it says nothing."""
        if len(self._longest) < _FEWEST:
            return math.inf
        return sorted(self._longest.values())[(len(self._longest) - 1) // 2] or math.inf


def _shortened(what: str, norm: float, limit: float) -> str:
    return f"the {what} has a norm of {norm:.3g}, and counts with {limit:.3g}"


def _strange(answers: Mapping[str, Moments]) -> tuple[set[str], Moments | None]:
    """Find whose batch-norm statistics are not of the others' kind.

    They are compared with the lower medians over the answers, channel by channel: strange are those whose standard
    deviations are off by more than a factor of ten, or whose means by more than ten standard deviations, on average
    over all channels. Single channels of honest owners may differ by more where they saw few values. Batch norm
    divides by the deviation in each layer, so far too small deviations overflow as far too large means do.

    Returns
    -------
    set of str
        The owners.
    Moments or None
        The medians; None where there are fewer than three answers, among which nobody is strange.
    """
    if len(answers) < _FEWEST:
        return set(), None
    means = torch.stack([one.mean for one in answers.values()])
    variances = torch.stack([one.variance for one in answers.values()])
    # Of an even number of values torch takes the lower one.
    usual = Moments(means.median(dim=0).values, variances.median(dim=0).values)
    squares = usual.variance.double() + _EPSILON
    shifts = ((means.double() - usual.mean.double()).abs() / squares.sqrt()).mean(dim=1)
    # Half the logarithm of a ratio of variances is that of deviations.
    ratios = (((variances.double() + _EPSILON) / squares).log().abs() / 2).mean(dim=1)
    found = (shifts > FACTOR) | (ratios > math.log(FACTOR))
    return {owner for owner, one in zip(answers, found.tolist(), strict=True) if one}, usual
