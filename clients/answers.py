"""How often an owner has answered in exchange ``updates``; kept across restarts.

Each answer tells the coordinator something about the owner's images. A coordinator that could ask again and again, with
weights of its choosing, would learn more than the rounds that were agreed tell.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppfed.atomic import write_atomic
from ppfed.errors import DataError, PeerDataError
from ppfed.federation import Invite

MOST_ANSWERS = 5
"""In one round: answers get lost, and a coordinator that is started again asks again."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    invite: str
    """SHA-256 of the invite's token: who joins with another invite agrees afresh."""
    round: int = Field(default=0, ge=0)
    """The last one answered; the evaluation at the end counts as one more round."""
    answers: int = Field(default=0, ge=0)


class AnswerLimit:
    """Counts an owner's answers, and refuses one too many.

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
                hint="Remove it if you agree that the coordinator may ask for every round again.",
            ) from None
        self._record = record if record.invite == fresh.invite else fresh

    def require(self, number: int) -> None:
        """Refuse a round that must not be answered any more.

        Raises
        ------
        PeerDataError
            If a later round was answered, or this one often enough.
        """
        if number < self._record.round:
            raise PeerDataError("the coordinator asked for a round before the last one that was answered")
        if number == self._record.round and self._record.answers >= MOST_ANSWERS:
            raise PeerDataError(f"the coordinator asked for a round that was answered {MOST_ANSWERS} times")

    def count(self, number: int) -> None:
        """Count an answer; it is on disk when this returns, so that the answer may leave."""
        answers = self._record.answers if number == self._record.round else 0
        self._record = self._record.model_copy(update={"round": number, "answers": answers + 1})
        write_atomic(self._file, self._record.model_dump_json())
