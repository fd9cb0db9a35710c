"""What an owner sees: text from the coordinator is shown as it is, and commands no terminal."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from clients.display import RichDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_notice_is_no_markup_and_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    screen = Terminal()
    with RichDisplay(Console(file=screen, force_terminal=True, width=100, highlight=False)) as display:
        display.notice("[red]stop [/nonsense] \x1b]0;title\x07 \N{RIGHT-TO-LEFT OVERRIDE}")
    shown = screen.getvalue()
    assert shown.count("[red]stop [/nonsense]") >= 2  # the line and the bar
    assert "]0;title\x07" not in shown
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in shown
