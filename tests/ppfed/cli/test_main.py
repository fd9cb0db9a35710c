"""The ``ppfed`` command itself: how errors end it, and what others' text may do to a terminal."""

from __future__ import annotations

import io

import pytest
import typer
from rich.console import Console

from ppfed.cli import console, main
from ppfed.errors import DataError


def run(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        secret = "the value of a variable"
        if secret:
            raise error

    monkeypatch.setattr(main, "build_app", lambda: app)
    monkeypatch.setattr("sys.argv", ["ppfed"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_bug_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PPFED_DEBUG", raising=False)
    assert run(monkeypatch, ValueError("odd [red]text\n\x1b[2Jmore")) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "this is a bug" in err
    assert "ValueError: odd [red]text \N{REPLACEMENT CHARACTER}[2Jmore" in err


def test_the_traceback_is_for_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PPFED_DEBUG", "1")
    assert run(monkeypatch, ValueError("odd")) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in fail" in err
    assert "secret = " not in err


def test_an_error_on_purpose_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, DataError("no images", hint="Name others.")) == 1
    err = capsys.readouterr().err
    assert "no images" in err
    assert "bug" not in err


def test_a_live_bar_shows_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    screen = io.StringIO()
    bar = console.live_bar(Console(file=screen, force_terminal=True, width=100))
    bar.add_task("[link=https://evil.example.org]a [/nonsense]", total=None)
    bar.console.print(bar.get_renderable())
    assert "[link=https://evil.example.org]a [/nonsense]" in screen.getvalue()
