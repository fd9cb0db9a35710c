"""Tables of a Markdown document, as text: without emphasis, and links by their words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class MarkdownTable:
    """A table.

    Attributes
    ----------
    titles : tuple of str
        Of its columns.
    rows : tuple of tuple of str
        Each has as many cells as there are titles.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(document: str) -> list[MarkdownTable]:
    """Read all tables of a document, which is named from the root of the repository."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse((ROOT / document).read_text(encoding="utf-8")):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level == _CELL_LEVEL:
            found[-1][-1].append(_words(token))
    return [MarkdownTable(tuple(titles), tuple(map(tuple, rows))) for titles, *rows in found]


_CELL_LEVEL = 4
"""Of what is in a cell, in a row, in a head or body, in a table that stands in no list."""


def _words(cell: Token) -> str:
    return "".join(part.content for part in cell.children or () if part.type in ("text", "code_inline"))
