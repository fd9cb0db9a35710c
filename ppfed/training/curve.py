"""What the rounds of a training achieved, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from pydantic import TypeAdapter, ValidationError

from ppfed.errors import ModelError
from ppfed.federation import describe_invalid


@dataclass(frozen=True)
class CurvePoint:
    """What one round achieved.

    Attributes
    ----------
    round : int
        Counted from 1.
    train_loss : float or None
        Mean cross-entropy while training.
    held_out_loss : float or None
    accuracy : float or None
        On held-out images, 0 to 1, after the round.
    seconds : float or None
        How long the round took.
    held_out_images : int or None
        On which loss and accuracy were measured: those of the owners that were there.
    owners : int or None
        How many took part in the round.
    """

    round: int
    train_loss: float | None = None
    held_out_loss: float | None = None
    accuracy: float | None = None
    seconds: float | None = None
    held_out_images: int | None = None
    owners: int | None = None


_CURVE = TypeAdapter(list[CurvePoint])


def curve_to_json(curve: Sequence[CurvePoint]) -> str:
    """Write a curve as JSON."""
    return _CURVE.dump_json(list(curve)).decode()


def curve_from_json(text: str) -> list[CurvePoint]:
    """Read a curve, which may come from anyone.

    Raises
    ------
    ModelError
        If it is no curve.
    """
    try:
        return _CURVE.validate_json(text)
    except ValidationError as error:
        raise ModelError(f"the training curve is malformed: {describe_invalid(error)}") from None


def curve_to_csv(curve: Sequence[CurvePoint]) -> str:
    """Write a curve as CSV, one line for each round below the names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(CurvePoint))
    writer.writerows(astuple(point) for point in curve)
    return text.getvalue()
