"""Whether an image was trained on, told from how well the network does on it.

An attacker needs the network and the image in a form that the network takes: for encrypted images the ciphertext, or
a plain image and the key. A network that is shown folded values takes a plain image as it is.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from ppfed.training.loop import ImageTensors, predict_logits

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_LOW_FALSE_POSITIVE_RATE = 0.01
_ROUNDING = 1e-9
_LEAST_DEVIATION = 1e-6


class MembershipOutcome(BaseModel):
    """How well members were told from others.

    Attributes
    ----------
    auc : float
        Area under the ROC curve: how often a member ranks above another, 0 to 1; 0.5 is chance.
    advantage : float
        Most that the true positive rate exceeds the false positive rate, 0 to 1, at the best threshold in hindsight:
        a little above 0 by chance alone.
    tpr_at_1_percent_fpr : float
        Part of the members that is found where at most 1 % of the others are taken for members; 0.01 is chance (Carlini
        et al., S&P 2022, section III).
    members, others : int
        So many were ranked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float = Field(ge=0, le=1)
    advantage: float = Field(ge=0, le=1)
    tpr_at_1_percent_fpr: float = Field(ge=0, le=1)
    members: int = Field(ge=1)
    others: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # The advantage is the largest difference of the two rates, at this point of the curve as at any other.
        if self.tpr_at_1_percent_fpr > self.advantage + _LOW_FALSE_POSITIVE_RATE + _ROUNDING:
            raise ValueError("the rate at 1 % false positives exceeds what the advantage allows")
        return self

    @property
    def auc_chance_spread(self) -> float:
        """Standard deviation of the AUC of an attacker who knows nothing, about 0.5 (Mann and Whitney, 1947)."""
        return float(np.sqrt((self.members + self.others + 1) / (12 * self.members * self.others)))


def threshold_attack(member_losses: FloatArray, other_losses: FloatArray) -> MembershipOutcome:
    """Call an image a member where its loss is low (Yeom et al., CSF 2018).

    Parameters
    ----------
    member_losses, other_losses : float array, (M,) and (N,)
        ``losses`` of images that the network was trained on, and of images that it was not.

    Raises
    ------
    ValueError
        If either is empty, or a loss is not finite.
    """
    return _outcome(-np.asarray(member_losses), -np.asarray(other_losses))


def difficulty_calibrated_attack(
    target_confidences: FloatArray,
    shadow_confidences: FloatArray,
    shadow_is_member: BoolArray,
    target_is_member: BoolArray,
) -> MembershipOutcome:
    """Compare each image's confidence with the mean over the shadow networks that were trained without it.

    Difficulty calibration (Watson et al., ICLR 2022): what any network finds easy is no sign of membership. One
    mean is estimated for an image, where ``likelihood_ratio_attack`` takes two; it ranks as that does where no shadow
    network saw any of the images.

    Parameters as of ``likelihood_ratio_attack``.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, an image was in all shadow networks, or the images are all members
        or all others.
    """
    targets, shadows, inside, members = _comparable(
        target_confidences, shadow_confidences, shadow_is_member, target_is_member
    )
    scores = targets - _mean(shadows, ~inside)
    return _outcome(scores[members], scores[~members])


def likelihood_ratio_attack(
    target_confidences: FloatArray,
    shadow_confidences: FloatArray,
    shadow_is_member: BoolArray,
    target_is_member: BoolArray,
) -> MembershipOutcome:
    """Compare each image's confidence with those of shadow networks with and without it.

    LiRA (Carlini et al., S&P 2022): each image has a normal distribution for either case, with a mean of its own and a
    deviation common to all images, which the authors prefer below 64 shadow networks. Where no shadow network saw any
    of the images, the test is one-sided (their offline attack).

    To measure with it, draw who is in which shadow network without regard to who is in the target: where members have
    fewer shadow networks with them than others have, the less certain mean alone sets the two apart.

    Parameters
    ----------
    target_confidences : float array, (N,)
        ``scaled_confidences`` of the network under attack.
    shadow_confidences : float array, (S, N)
        The same of S networks that the attacker trained.
    shadow_is_member : bool array, (S, N)
        Whether shadow network s was trained on image n.
    target_is_member : bool array, (N,)
        The truth, to measure with.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, an image was in all shadow networks or only some of the images in
        none, or the images are all members or all others.
    """
    targets, shadows, inside, members = _comparable(
        target_confidences, shadow_confidences, shadow_is_member, target_is_member
    )
    mean_out, deviation_out = _normal(shadows, ~inside)
    if not inside.any():
        scores = (targets - mean_out) / deviation_out
    elif inside.any(axis=0).all():
        mean_in, deviation_in = _normal(shadows, inside)
        scores = _log_density(targets, mean_in, deviation_in) - _log_density(targets, mean_out, deviation_out)
    else:
        raise ValueError("some images were in no shadow network, and others were")
    return _outcome(scores[members], scores[~members])


def losses(network: nn.Module, data: ImageTensors) -> FloatArray:
    """Cross-entropy of each image, as the network predicts: without augmentation.

    Parameters
    ----------
    network : nn.Module
        Left in evaluation mode.
    data : ImageTensors on the network's device, N of them

    Returns
    -------
    float64 array, (N,)
    """
    return _numpy(nn.functional.cross_entropy(_logits(network, data), data.labels, reduction="none"))


def scaled_confidences(network: nn.Module, data: ImageTensors) -> FloatArray:
    """Log odds of each image's true class, log(p / (1 - p)): near normal, where p itself is not.

    Parameters and return value as of ``losses``.
    """
    logits = _logits(network, data)
    true = logits.gather(1, data.labels[:, None])
    # From logits, as 1 - p would round to 0 for a confident network.
    others = logits.scatter(1, data.labels[:, None], -torch.inf).logsumexp(1)
    return _numpy(true[:, 0] - others)


def _logits(network: nn.Module, data: ImageTensors) -> torch.Tensor:
    return predict_logits(network, data.images).double()


def _numpy(values: torch.Tensor) -> FloatArray:
    array: FloatArray = values.cpu().numpy()
    return array


def _comparable(
    target_confidences: FloatArray,
    shadow_confidences: FloatArray,
    shadow_is_member: BoolArray,
    target_is_member: BoolArray,
) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray]:
    shadows, inside = np.asarray(shadow_confidences, float), np.asarray(shadow_is_member, bool)
    targets, members = np.asarray(target_confidences, float), np.asarray(target_is_member, bool)
    if shadows.ndim != 2 or inside.shape != shadows.shape or not shadows.shape[1:] == targets.shape == members.shape:
        raise ValueError("shadow networks and images differ in their number between the arrays")
    if not (np.isfinite(shadows).all() and np.isfinite(targets).all()):
        raise ValueError("a confidence is not finite")
    if not (~inside).any(axis=0).all():
        raise ValueError("an image was in all shadow networks")
    return targets, shadows, inside, members


def _mean(values: FloatArray, chosen: BoolArray) -> FloatArray:
    mean: FloatArray = np.where(chosen, values, 0).sum(axis=0) / chosen.sum(axis=0)
    return mean


def _normal(values: FloatArray, chosen: BoolArray) -> tuple[FloatArray, float]:
    """Mean of the chosen values of each column, and their deviation from it over all columns."""
    mean = _mean(values, chosen)
    freedom = int((chosen.sum(axis=0) - 1).sum())
    if not freedom:
        # One shadow network for each image says nothing of the deviation; a common factor does not change a ranking.
        return mean, 1.0
    squares = np.where(chosen, (values - mean) ** 2, 0).sum()
    return mean, max(float(np.sqrt(squares / freedom)), _LEAST_DEVIATION)


def _log_density(values: FloatArray, mean: FloatArray, deviation: float) -> FloatArray:
    density: FloatArray = -0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation)
    return density


def _outcome(members: FloatArray, others: FloatArray) -> MembershipOutcome:
    """Measure scores that are meant to be higher for members."""
    # Whoever reads outcomes need not wait for it: with pandas, which it loads, it takes longer than torch.
    from sklearn.metrics import roc_auc_score, roc_curve  # noqa: PLC0415

    if not (len(members) and len(others)):
        raise ValueError("there must be members and others")
    scores = np.concatenate([members, others])
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    truth = np.arange(len(scores)) < len(members)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    return MembershipOutcome(
        auc=float(roc_auc_score(truth, scores)),
        advantage=float(np.clip((true - false).max(), 0, 1)),
        tpr_at_1_percent_fpr=float(true[false <= _LOW_FALSE_POSITIVE_RATE].max()),
        members=len(members),
        others=len(others),
    )
