"""What a table of a document has to say, and where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .markdown_tables import MarkdownTable, tables

Key = tuple[Any, ...]
"""Names a row of what was measured."""

_REMARKS = (": ", "; ")
"""A figure may be followed by one of these and a remark."""


def is_written(figure: str, cell: str) -> bool:
    """Whether a cell has a figure, which a remark may follow; nothing may follow none."""
    return cell == figure or (figure != "" and cell.startswith(tuple(figure + mark for mark in _REMARKS)))


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes
    ----------
    title : str
    write : callable or None
        Writes a row's cell; None where what the cells were taken from is not committed, so that they are not held.
    of : tuple
        Put behind a line's key it is the key of the row; so a line can show several rows.
    """

    title: str
    write: Callable[[Any], str] | None
    of: Key = ()


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes
    ----------
    labels : tuple of str
        Its first cells, which name it.
    key : tuple
        Of its rows; empty for a heading, which has no figures.
    """

    labels: tuple[str, ...]
    key: Key


def lines(*every: str | tuple[Any, ...]) -> tuple[Line, ...]:
    """Make lines of a label that is its row's key too, or of labels and behind them the key, or its only part."""
    found = ((one, one) if isinstance(one, str) else one for one in every)
    return tuple(Line(tuple(labels), key if isinstance(key, tuple) else (key,)) for *labels, key in found)


@dataclass(frozen=True)
class Figures:
    """A table that has to say what rows say.

    Attributes
    ----------
    document : str
    labels : tuple of str
        Titles of the columns that name a line.
    columns : tuple of Column
        The others.
    read : callable
        Returns the rows by key. Each must be in the table, and a cell without a row must be empty.
    lines : tuple of Line
    unlisted : frozenset
        Keys of rows that the table leaves out.
    """

    document: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    read: Callable[[], Mapping[Key, Any]]
    lines: tuple[Line, ...]
    unlisted: frozenset[Key] = frozenset()

    @property
    def titles(self) -> tuple[str, ...]:
        """Of all columns; they tell the table from others of the document."""
        return self.labels + tuple(column.title for column in self.columns)

    @property
    def name(self) -> str:
        """Document and titles."""
        return f"{self.document}, table '{' | '.join(self.titles)}'"

    def differences(self) -> list[str]:
        """Say in words what the document has and should not, or lacks."""
        found = [table for table in tables(self.document) if table.titles == self.titles]
        if len(found) != 1:
            return [f"{self.name}: the document has {len(found)} tables with these titles, and should have one"]
        return [f"{self.name}, {difference}" for difference in self._differences(found[0])]

    def _differences(self, table: MarkdownTable) -> Iterator[str]:
        labels = [row[: len(self.labels)] for row in table.rows]
        if labels != [line.labels for line in self.lines]:
            stand, should = (
                "\n  ".join(map(" | ".join, every)) for every in (labels, [line.labels for line in self.lines])
            )
            yield f"lines: the document has\n  {stand}\nand should have\n  {should}"
            return
        rows, shown = self.read(), set(self.unlisted)
        for cells, line in zip(table.rows, self.lines, strict=True):
            keys = [line.key + column.of for column in self.columns]
            if line.key and not any(key in rows for key in keys):
                yield f"line '{' | '.join(line.labels)}': nothing was measured under {line.key}"
            for stands, column, key in zip(cells[len(self.labels) :], self.columns, keys, strict=True):
                if column.write is None:
                    continue
                should = column.write(rows[key]) if key in rows else ""
                shown.add(key)
                if not is_written(should, stands):
                    yield (
                        f"line '{' | '.join(line.labels)}', column '{column.title}': "
                        f"the document has '{stands}', the rows say '{should}'"
                    )
        yield from (f"no line shows what was measured under {key}" for key in rows if key not in shown)
        yield from (f"nothing was measured under {key}, which is left out" for key in self.unlisted if key not in rows)
