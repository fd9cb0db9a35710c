"""The owner's yes, asked at the terminal: also where standard input carries the key."""

from __future__ import annotations

import os
import sys

import typer

from ppfed.errors import UsageError

TERMINAL = "/dev/tty"
"""The terminal that controls the process, whatever its standard input is."""
_LONGEST = 1024


def agrees(question: str) -> bool:
    """Ask; without a clear yes the answer is no.

    Raises
    ------
    UsageError
        If there is no terminal: whoever scripts a command has to say that the answer is yes.
    """
    if _has_terminal():
        return typer.confirm(question, default=False, err=True)
    try:
        terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        raise UsageError(
            "there is no terminal to ask at whether you agree", hint="Read what is said above, then pass --yes."
        ) from None
    try:
        while True:
            os.write(terminal, f"{question} [y/N]: ".encode())
            line = os.read(terminal, _LONGEST)
            answer = line.decode(errors="replace").strip().lower()
            if answer in ("y", "yes"):
                return True
            if answer in ("n", "no", ""):
                return False
    finally:
        os.close(terminal)


def _has_terminal() -> bool:
    return sys.stdin.isatty()
