"""The study of frequencies measures each number of ciphertexts once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppfed.errors import UsageError
from scenarios.material import digits
from scenarios.studies.frequencies import ROWS_FILE, FrequenciesRow, main, measure
from scenarios.studies.rows import RowsFile


def test_rows_are_added_for_what_is_missing(tmp_path: Path) -> None:
    material = digits(8, 200, 60)
    measured = RowsFile(tmp_path / ROWS_FILE, FrequenciesRow)
    measure(material, (20,), measured)
    # There are no more than 60, so that the last two are one.
    measure(material, (20, 60, 1000), measured)
    rows = measured.read()
    assert [row.ciphertexts for row in rows] == [20, 60]
    assert all(0 <= row.places <= 1 and row.resemblance.images == 60 for row in rows)


@pytest.mark.parametrize("arguments", [["only-one"], ["data", "out", "many"]])
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="two folders"):
        main(arguments)
