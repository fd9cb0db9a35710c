"""A table as text: HTML and Markdown show the same cells."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes
    ----------
    title : str
    is_number : bool
        Right-aligned, never broken.
    """

    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes
    ----------
    cells : tuple of str
        The first names the row.
    group : str
        Rows of the same group follow each other under its heading; empty for none.
    """

    cells: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes
    ----------
    caption : str
    columns : tuple of Column
    rows : tuple of Row
    notes : tuple of str
        Below it.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """Rows by group."""
        return [(group, list(rows)) for group, rows in itertools.groupby(self.rows, key=lambda row: row.group)]
