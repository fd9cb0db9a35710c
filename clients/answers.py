"""How often an owner has answered in exchanges ``updates`` and ``gradients``, and in which order; kept across restarts.

Each answer tells the coordinator something about the owner's images. A coordinator that could ask again and again, with
weights of its choosing, would learn more than the rounds that were agreed tell.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppfed.atomic import write_atomic
from ppfed.errors import DataError, PeerDataError
from ppfed.federation import Invite

MOST_ANSWERS = 5
"""To one question: answers get lost, and a coordinator that is started again asks again."""

_ORDER_BITS = 62


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[3] = 3
    invite: str
    """SHA-256 of the invite's token: who joins with another invite agrees afresh."""
    round: int = Field(default=0, ge=0)
    """The last one answered; the evaluation at the end counts as one more round."""
    answers: dict[int, int] = {}
    """In that round: how often each of its questions was answered."""
    steps: int | None = None
    """Of each pass, as the coordinator first said it."""
    order: int = Field(default_factory=lambda: secrets.randbits(_ORDER_BITS), ge=0, lt=1 << _ORDER_BITS, repr=False)
    """Says which images meet in a batch. Whoever may ask under one invite after another, for other numbers of steps,
    would learn from the differences if it were the same."""


class AnswerLimit:
    """Counts an owner's answers, and refuses one too many; draws the order of its images.

    Parameters
    ----------
    file : Path
        Where the count is kept.
    invite : Invite

    Raises
    ------
    DataError
        If the file is damaged.
    """

    def __init__(self, file: Path, invite: Invite) -> None:
        self._file = file
        fresh = _Record(invite=hashlib.sha256(invite.token.encode()).hexdigest())
        try:
            record = _Record.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            record = fresh
        except ValidationError:
            raise DataError(
                f"{file} is damaged: it says how often the coordinator was answered",
                hint="Remove it if you agree that the coordinator may ask for every round again; another order of the "
                "images is drawn.",
            ) from None
        self._record = record if record.invite == fresh.invite else fresh

    @property
    def order_seed(self) -> int:
        """Of the order of the images: drawn once for each invite, and on disk before the first answer leaves."""
        return self._record.order

    def require(self, number: int, question: int = 0) -> None:
        """Refuse a question that must not be answered any more.

        Parameters
        ----------
        number : int
            The round.
        question : int
            Within the round; in exchange ``gradients`` the steps count from 1. A coordinator that was killed goes back
            to its last checkpoint, which is never of an earlier round.

        Raises
        ------
        PeerDataError
            If a later round was answered, or this question often enough.
        """
        if number < self._record.round:
            raise PeerDataError("the coordinator asked for a round before the last one that was answered")
        if number == self._record.round and self._record.answers.get(question, 0) >= MOST_ANSWERS:
            what = "a step" if question else "a round"
            raise PeerDataError(f"the coordinator asked for {what} that was answered {MOST_ANSWERS} times")

    def require_steps(self, steps: int) -> None:
        """Refuse another number of steps than the first answer was based on.

        Otherwise a coordinator could cut the images in another way with each question, and learn from the differences.

        Raises
        ------
        PeerDataError
        """
        if self._record.steps not in (None, steps):
            raise PeerDataError("the coordinator changed the number of steps of a pass")

    def count(self, number: int, question: int = 0, steps: int | None = None) -> None:
        """Count an answer; it is on disk when this returns, so that the answer may leave.

        ``steps`` is kept if it is the first.
        """
        answers = dict(self._record.answers) if number == self._record.round else {}
        answers[question] = answers.get(question, 0) + 1
        kept = steps if self._record.steps is None else self._record.steps
        self._record = self._record.model_copy(update={"round": number, "answers": answers, "steps": kept})
        write_atomic(self._file, self._record.model_dump_json())
