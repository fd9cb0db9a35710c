"""Where results go, and how wide."""

from __future__ import annotations

import pytest
import typer
from rich.table import Table

from ppfed.cli.console import ctrl_c_says, stdout


@pytest.mark.parametrize(("columns", "lines"), [(None, 1), ("60", 3)])
def test_a_table_in_a_file_is_not_squeezed_into_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str | None, lines: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    table = Table.grid()
    table.add_row(" ".join(["federation"] * 15))
    stdout().print(table)
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_ctrl_c_ends_a_command_with_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, ctrl_c_says("interrupted: the same command goes on"):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on\n"
