"""What others say, as it may be shown: ``printable`` keeps line breaks, which messages of ppfed's own have."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def one_line(text: str) -> str:
    """Put a text on one line, so that no part of it can pass for a line of ppfed's own."""
    return " ".join(text.splitlines())


PeerText = Annotated[str, AfterValidator(one_line)]
