"""Weights, gradients and what was measured with them, on their way between owners and coordinator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from ppfed.errors import ModelError, PeerDataError
from ppfed.networks.state import Layout, flatten, is_statistic, unflatten
from ppfed.peer_text import one_line
from ppfed.training.gradients import Moments, PartialGradient
from ppfed.training.loop import Evaluation
from ppfed.training.settings import UpdateFormat
from ppfed.wire.bfloat16 import from_bfloat16, to_bfloat16
from ppfed.wire.messages import ARRAYS, CONFIG, METRICS, arrays_of, config_of, metrics_of, values_of

WEIGHTS = "weights"
_CHANGE = "change"
_STATISTICS = "statistics"
_GRADIENT = "gradient"
_MOMENTS = "moments"
_MAX_TEXT_CHARACTERS = 1 << 22
_SHOWN_CHARACTERS = 1000
_MOST_WEIGHT_BYTES = 1 << 30
_MOST_WEIGHT = 1e6
"""Largest value of a weight. Trained networks hold weights below 10 and running variances in the thousands at most;
sums of larger values, though finite, overflow float32 in the layers and in the average. This keeps one answer from
overflowing, and no more: from weights of 1,000 already, honest owners come to variances beyond it. What one
owner's answer does to the average is bounded where answers can be compared (``coordinator/norm_bound.py``)."""

_MOST_GRADIENT = 1e4
"""Largest value of a gradient. Gradients of a mean cross-entropy are below 100 where training goes well. One step of
smaller ones can carry the weights to where honest answers are out of range, too."""

_MOST_SQUARE = _MOST_WEIGHT / 2
"""Largest mean square of what a batch-norm layer sees. A union's is no larger than its parts', and its unbiased
variance at most double: running statistics stay in the range of weights."""

_MOST_STEPS = 100_000_000
_GRADIENT_METRICS = {"num-examples", "train-loss"}
_RESULT_METRICS = {"num-examples", "train-loss", "correct", "held-out", "held-out-loss"}


@dataclass(frozen=True)
class RoundOrder:
    """What the coordinator asks of an owner in a round.

    Attributes
    ----------
    round : int
        Counted from 1.
    weights : dict of str to float32 tensor
    """

    round: int
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class GradientOrder:
    """What the coordinator asks of an owner in a step.

    Attributes
    ----------
    round : int
        The pass, counted from 1.
    step : int
        Counted from 0.
    steps : int
        Of each pass.
    weights : dict of str to float32 tensor
    """

    round: int
    step: int
    steps: int
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class RoundResult:
    """What an owner answers.

    Attributes
    ----------
    weights : dict of str to float32 tensor
        After local training.
    images : int
        Images trained on: the weight of this owner in the average.
    train_loss : float
    evaluation : Evaluation
        Of the weights as they came, on the owner's held-out images.
    """

    weights: dict[str, Tensor]
    images: int
    train_loss: float
    evaluation: Evaluation


@dataclass(frozen=True)
class Farewell:
    """How the federation ended.

    Attributes
    ----------
    completed : bool
    message : str
    card, curve : str
        The model card and the training curve as JSON; empty where there is no model.
    weights : dict of str to float32 tensor
        The final model; empty where there is none.
    """

    completed: bool
    message: str
    card: str
    weights: dict[str, Tensor]
    curve: str = ""


def pack_round_order(order: RoundOrder) -> RecordDict:
    """Coordinator to owner."""
    return RecordDict({ARRAYS: pack_weights(order.weights), CONFIG: ConfigRecord({"round": order.round})})


def unpack_round_order(content: RecordDict, rounds: int, layout: Layout) -> RoundOrder:
    """Check and unpack. Raises PeerDataError."""
    number = config_of(content).get("round")
    if not isinstance(number, int) or not 1 <= number <= rounds + 1:
        raise PeerDataError("the coordinator asked for a round that was not agreed")
    return RoundOrder(number, unpack_weights(content, layout))


def pack_gradient_order(order: GradientOrder) -> RecordDict:
    """Coordinator to owner."""
    config = ConfigRecord({"round": order.round, "step": order.step, "steps": order.steps})
    return RecordDict({ARRAYS: pack_weights(order.weights), CONFIG: config})


def unpack_gradient_order(content: RecordDict, rounds: int, layout: Layout) -> GradientOrder:
    """Check and unpack. Raises PeerDataError."""
    config = config_of(content)
    number, step, steps = (config.get(key) for key in ("round", "step", "steps"))
    if not isinstance(number, int) or not 1 <= number <= rounds:
        raise PeerDataError("the coordinator asked for a round that was not agreed")
    if not isinstance(steps, int) or not isinstance(step, int) or not 0 <= step < steps <= _MOST_STEPS:
        raise PeerDataError("the coordinator asked for a step that cannot exist")
    return GradientOrder(number, step, steps, unpack_weights(content, layout))


def pack_gradient(part: PartialGradient, form: UpdateFormat = UpdateFormat.FLOAT32) -> RecordDict:
    """Owner to coordinator: no image, but what a step needs of them. Moments are float32 in every format."""
    moments = torch.cat([part.moments.mean, part.moments.variance])
    gradient = part.gradient.to(torch.float32).contiguous()
    arrays = {
        _GRADIENT: Array(to_bfloat16(gradient) if form is UpdateFormat.BFLOAT16 else gradient.numpy()),
        _MOMENTS: Array(moments.to(torch.float32).contiguous().numpy()),
    }
    metrics = MetricRecord({"num-examples": part.images, "train-loss": part.loss})
    return RecordDict({ARRAYS: ArrayRecord(arrays), METRICS: metrics})


def unpack_gradient(
    content: RecordDict,
    images: int,
    parameters: int,
    channels: int,
    form: UpdateFormat = UpdateFormat.FLOAT32,
) -> PartialGradient:
    """Check and unpack an owner's part of a step.

    Parameters
    ----------
    content : RecordDict
    images : int
        How many images of this owner belong to the step.
    parameters : int
        Of the network.
    channels : int
        Of all its batch-norm layers.
    form : UpdateFormat
        The agreed one.

    Raises
    ------
    PeerDataError
        If the format or a length differs, a value is not finite or out of range, or a variance is negative.
    """
    metrics = metrics_of(content)
    if set(content) != {ARRAYS, METRICS} or set(metrics) != _GRADIENT_METRICS:
        raise PeerDataError("the gradient comes with other records than it should")
    if metrics["num-examples"] != images:
        raise PeerDataError("the number of images is not that of this owner in this step")
    arrays = arrays_of(content, {_GRADIENT, _MOMENTS}, _MOST_WEIGHT_BYTES)
    gradient = _vector(arrays[_GRADIENT], parameters, "the gradient", form)
    moments = _vector(arrays[_MOMENTS], 2 * channels, "the batch-norm moments")
    if gradient.size and max(gradient.max(), -gradient.min()) > _MOST_GRADIENT:
        raise PeerDataError(f"the gradient is larger than {_MOST_GRADIENT:g}")
    mean, variance = moments.astype(np.float64).reshape(2, channels)
    if (variance < 0).any():
        raise PeerDataError("the batch-norm moments hold a negative variance")
    if (mean**2 + variance > _MOST_SQUARE).any():
        raise PeerDataError("the batch-norm moments are out of range")
    return PartialGradient(
        torch.tensor(gradient),
        Moments(torch.tensor(mean), torch.tensor(variance)),
        images,
        _number(metrics, "train-loss"),
    )


def pack_evaluation(evaluation: Evaluation) -> RecordDict:
    """Owner to coordinator."""
    return RecordDict({METRICS: MetricRecord(_evaluation_metrics(evaluation))})


def pack_round_result(result: RoundResult, base: Mapping[str, Tensor] | None = None) -> RecordDict:
    """Owner to coordinator.

    Parameters
    ----------
    result : RoundResult
    base : mapping of str to float32 tensor or None
        The weights of the round's order, where ``UpdateFormat.BFLOAT16`` was agreed: what travels is the difference.
        None sends the weights.
    """
    metrics = MetricRecord(
        {"num-examples": result.images, "train-loss": result.train_loss, **_evaluation_metrics(result.evaluation)}
    )
    arrays = pack_weights(result.weights) if base is None else _pack_change(result.weights, base)
    return RecordDict({ARRAYS: arrays, METRICS: metrics})


def unpack_round_result(
    content: RecordDict,
    images: int,
    held_out: int,
    layout: Layout,
    base: Mapping[str, Tensor] | None = None,
) -> RoundResult:
    """Check and unpack an owner's update.

    Parameters
    ----------
    content : RecordDict
    images, held_out : int
        Announced at enrolment.
    layout : Layout
    base : mapping of str to float32 tensor or None
        As in ``pack_round_result``: the same weights, to the bit, that the round's order brought to the owner.

    Raises
    ------
    PeerDataError
        If the format is not the agreed one, or anything else is not as it should be.
    """
    metrics = metrics_of(content)
    # Flower's strategies take one record of each kind, with the same metrics from everyone, and raise otherwise: an
    # owner that sends more would end the run for all.
    if set(content) != {ARRAYS, METRICS} or set(metrics) != _RESULT_METRICS:
        raise PeerDataError("the update holds other records than it should")
    if metrics["num-examples"] != images:
        raise PeerDataError("the number of images is not the announced one")
    weights = _unpack_update(content, layout, base)
    return RoundResult(weights, images, _number(metrics, "train-loss"), unpack_evaluation(content, held_out))


def unpack_evaluation(content: RecordDict, held_out: int) -> Evaluation:
    """Check and unpack what an owner measured. Raises PeerDataError."""
    metrics = metrics_of(content)
    correct, count = metrics.get("correct"), metrics.get("held-out")
    if not isinstance(correct, int) or not isinstance(count, int) or count != held_out or not 0 <= correct <= count:
        raise PeerDataError("the evaluation does not fit the announced held-out images")
    return Evaluation(correct, count, _number(metrics, "held-out-loss") if count else float("nan"))


def pack_farewell(farewell: Farewell) -> RecordDict:
    """Coordinator to owner."""
    config = ConfigRecord(
        {
            "completed": farewell.completed,
            "message": farewell.message,
            "card": farewell.card,
            "curve": farewell.curve,
        }
    )
    return RecordDict({ARRAYS: pack_weights(farewell.weights), CONFIG: config})


def unpack_farewell(content: RecordDict, layout: Layout) -> Farewell:
    """Check and unpack. Raises PeerDataError."""
    config = config_of(content)
    message, card, curve = (_text(config, key) for key in ("message", "card", "curve"))
    completed = config.get("completed") is True
    weights = unpack_weights(content, layout) if completed else {}
    return Farewell(completed, one_line(message[:_SHOWN_CHARACTERS]), card, weights, curve)


def pack_weights(weights: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack a network's state as one float32 vector; both ends know its layout from the agreed settings."""
    return ArrayRecord({WEIGHTS: Array(flatten(weights).contiguous().numpy())})


def unpack_weights(content: RecordDict, layout: Layout) -> dict[str, Tensor]:
    """Unpack a network's state; whoever loads it checks its values besides.

    Raises
    ------
    PeerDataError
        If it is not a float32 vector of the layout's length, or holds values that are not finite or beyond 1e6.
    """
    values = values_of(arrays_of(content, {WEIGHTS}, _MOST_WEIGHT_BYTES)[WEIGHTS])
    _require_finite(values, "the weights")
    if values.size and max(values.max(), -values.min()) > _MOST_WEIGHT:
        raise PeerDataError(f"the weights are larger than {_MOST_WEIGHT:g}")
    try:
        return unflatten(torch.tensor(values), layout)
    except ModelError as error:
        raise PeerDataError(error.message) from None


def _pack_change(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack what training changed in bfloat16, and batch-norm statistics whole, in float32.

    Statistics are few, and a variance near zero must not become negative.
    """
    change = {name: weights[name] - base[name] for name in base if not is_statistic(name)}
    statistics = {name: weights[name] for name in base if is_statistic(name)}
    return ArrayRecord(
        {
            _CHANGE: Array(to_bfloat16(flatten(change))),
            _STATISTICS: Array(flatten(statistics).contiguous().numpy()),
        }
    )


def _unpack_update(content: RecordDict, layout: Layout, base: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Unpack what ``pack_weights`` or, with a base, ``_pack_change`` packed; returns the owner's weights."""
    formats = {UpdateFormat.FLOAT32: {WEIGHTS}, UpdateFormat.BFLOAT16: {_CHANGE, _STATISTICS}}
    agreed = UpdateFormat.FLOAT32 if base is None else UpdateFormat.BFLOAT16
    found = set(content.array_records.get(ARRAYS, {}))
    other = next((form for form, names in formats.items() if form is not agreed and names == found), None)
    if other is not None:
        raise PeerDataError(f"the update is in format {other}, and {agreed} was agreed")
    if base is None:
        return unpack_weights(content, layout)
    arrays = arrays_of(content, formats[agreed], _MOST_WEIGHT_BYTES)
    measured = {name: shape for name, shape in layout.items() if is_statistic(name)}
    trained = {name: shape for name, shape in layout.items() if name not in measured}
    change = unflatten(
        torch.tensor(_vector(arrays[_CHANGE], _count(trained), "the change of the weights", agreed)), trained
    )
    statistics = unflatten(
        torch.tensor(_vector(arrays[_STATISTICS], _count(measured), "the batch-norm statistics")), measured
    )
    weights = {name: statistics[name] if name in statistics else base[name] + change[name] for name in layout}
    if not within_range(weights):
        raise PeerDataError(f"the weights are larger than {_MOST_WEIGHT:g}")
    return weights


def _count(layout: Layout) -> int:
    return sum(math.prod(shape) for shape in layout.values())


def within_range(weights: Mapping[str, Tensor]) -> bool:
    """Whether owners accept these weights: all are finite, and none beyond 1e6."""
    flat = flatten(weights)
    return bool((flat.abs() <= _MOST_WEIGHT).all())


def _require_finite(values: npt.NDArray[Any], what: str) -> None:
    if values.dtype != np.float32:
        raise PeerDataError(f"{what} are {values.dtype}, not float32")
    if not np.isfinite(values).all():
        raise PeerDataError(f"{what} are not finite")


def _vector(array: Array, length: int, what: str, form: UpdateFormat = UpdateFormat.FLOAT32) -> npt.NDArray[np.float32]:
    values = values_of(array)
    if values.shape != (length,):
        raise PeerDataError(f"{what} has another length than it should")
    if form is UpdateFormat.BFLOAT16:
        if values.dtype != np.uint16:
            raise PeerDataError(f"values of {what} are {values.dtype}, not bfloat16 in uint16")
        values = from_bfloat16(values).numpy()
    _require_finite(values, f"values of {what}")
    return values


def _evaluation_metrics(evaluation: Evaluation) -> dict[str, int | float | list[int] | list[float]]:
    loss = evaluation.loss if evaluation.count else 0.0
    return {"correct": evaluation.correct, "held-out": evaluation.count, "held-out-loss": loss}


def _text(config: ConfigRecord, key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or len(value) > _MAX_TEXT_CHARACTERS:
        raise PeerDataError("the coordinator's last message is malformed")
    return value


def _number(metrics: MetricRecord, key: str) -> float:
    value = metrics.get(key)
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise PeerDataError(f"{key} is not a number")
    return float(value)
