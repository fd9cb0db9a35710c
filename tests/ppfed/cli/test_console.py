"""Where results go, and how wide."""

from __future__ import annotations

import pytest
from rich.table import Table

from ppfed.cli.console import stdout


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
