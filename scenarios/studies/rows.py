"""What a study measured, a JSON line for each row, added one at a time: it can be stopped and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter

_Row = TypeVar("_Row")


class RowsFile(Generic[_Row]):
    """A file of rows of one kind.

    Parameters
    ----------
    path : Path
        Need not exist yet; its folder must.
    kind : type
        A dataclass or a pydantic model.
    """

    def __init__(self, path: Path, kind: type[_Row]) -> None:
        self._path = path
        self._adapter = TypeAdapter(kind)

    def read(self) -> list[_Row]:
        """Read all rows; none where there is no file.

        Raises
        ------
        pydantic.ValidationError
            If a line is no row of that kind.
        """
        if not self._path.exists():
            return []
        return [self._adapter.validate_json(line) for line in self._path.read_bytes().splitlines()]

    def append(self, row: _Row) -> None:
        """Add a row."""
        with self._path.open("ab") as file:
            file.write(self._adapter.dump_json(row) + b"\n")
