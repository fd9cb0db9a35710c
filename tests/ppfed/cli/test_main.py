"""The ``ppfed`` command itself: how errors end it, and what others' text may do to a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import typer
from rich.console import Console

import ppfed
from ppfed.cli import console, main
from ppfed.errors import DataError
from ppfed.keys.files import holds_key, key_text
from ppfed.keys.master import MasterKey


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


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["ppfed", "--version"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{ppfed.__version__}\n"


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


KEY = MasterKey(bytes(range(200, 232)))
FORMS = {
    "marked": "PPFED-SECRET-KEY-1 {}",
    "bare": "{}",
    "in a folder": "no/such/folder/{}",
    "with its option": "--key={}",
    "with spaces": " {} ",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("written", ["base64", "hexadecimal"])
@pytest.mark.parametrize(
    "before", [["key", "show"], ["key", "seal", "owners.key", "--to"], ["client", "join"], ["key"]]
)
def test_a_key_among_the_arguments_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: list[str], written: str, form: str
) -> None:
    """Whatever it is given as: each command, and the library that reads options, would quote it in a message."""
    text = KEY.reveal().hex() if written == "hexadecimal" else key_text(KEY).split()[-1]
    monkeypatch.setattr("sys.argv", ["ppfed", *before, FORMS[form].format(text)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert text not in out + err
    assert "it is not repeated" in " ".join(err.split())


def test_a_file_may_be_called_as_a_key_looks(tmp_path: Path) -> None:
    path = tmp_path / key_text(KEY).split()[-1]
    assert holds_key(str(path))
    path.touch()
    assert not holds_key(str(path))
    assert holds_key(path.name)


@pytest.mark.parametrize(
    "argument",
    [
        "owners.key",
        "/home/anna/Data/Hospital2/federation-number-1a",
        "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7V3mYUiEWqeN1ZmA4Y3mYUiEWqeN1ZmA4Y3mYUiEWq anna@hospital",
        "0123456789abcdef",
        "Hospital-A-encrypted-2026-11-27-run-0000003",
        "/scratch/Hospital-A-encrypted-2026-11-27-run-0003x",
        "0" * 40,
        "--fingerprint=0123456789abcdef",
        "",
    ],
)
def test_what_is_no_key_passes(argument: str) -> None:
    assert not holds_key(argument)


def test_a_live_bar_shows_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    screen = io.StringIO()
    bar = console.live_bar(Console(file=screen, force_terminal=True, width=100))
    bar.add_task("[link=https://evil.example.org]a [/nonsense]", total=None)
    bar.console.print(bar.get_renderable())
    assert "[link=https://evil.example.org]a [/nonsense]" in screen.getvalue()
