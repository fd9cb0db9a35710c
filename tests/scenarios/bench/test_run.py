from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from ppfed.cli.main import build_app
from ppfed.errors import PPFedError, UsageError
from scenarios.bench import run
from scenarios.bench.measurement import BenchSettings, Bound, Measurement

SETTINGS = BenchSettings(quick=True, device=torch.device("cpu"))
ROWS = [
    Measurement("cipher", "encrypt", 0.81, against="memcpy", target=Bound(0.7), floor=Bound(0.1), spread=(0.7, 0.9)),
    Measurement("cipher", "decrypt", 0.5, target=Bound(0.7), floor=Bound(0.1)),
    Measurement("upload", "four owners", 1234.5, "MB/s", details={"messages": 12.0}),
]


def sections(*rows: Measurement) -> dict[str, run.Section]:
    def measure(_settings: BenchSettings) -> Iterator[Measurement]:
        yield from rows

    return {"cipher": measure}


def test_unknown_sections_are_named() -> None:
    with pytest.raises(UsageError, match="no section tea"):
        run.choose(["tea"])


def test_the_table_says_which_targets_are_met() -> None:
    console = Console(width=160, record=True)
    console.print(run.table(ROWS))
    text = console.export_text()
    assert text.count("met") == 1
    assert text.count("missed") == 1
    assert "1,234 MB/s" in text
    assert text.count("cipher") == 1


def test_a_row_that_is_left_out_says_why(tmp_path: Path) -> None:
    row = Measurement.left_out("training", "augmentation", "torchvision is not installed")
    console = Console(width=160, record=True)
    console.print(run.table([row]))
    text = console.export_text()
    assert "not measured" in text
    assert "torchvision is not installed" in text
    run.check([row])
    run.write(tmp_path / "bench.json", [row], SETTINGS)
    (written,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (written["value"], written["unmeasured"]) == (None, "torchvision is not installed")


def test_json_holds_rows_bounds_and_machine(tmp_path: Path) -> None:
    run.write(tmp_path / "bench.json", [*ROWS, Measurement("scaling", "exponent", float("nan"))], SETTINGS)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["machine"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert [row["verdict"] for row in report["rows"]] == ["met", "missed", "", ""]
    assert report["rows"][0]["target"] == "≥ 0.7"
    assert report["rows"][2]["details"] == {"messages": 12.0}
    assert report["rows"][3]["value"] is None


def test_a_broken_row_fails_and_a_missed_one_does_not() -> None:
    run.check(ROWS)
    with pytest.raises(PPFedError, match=r"1 of 1 figures.*decrypt: 0\.05 x, ≥ 0\.1"):
        run.check([Measurement("cipher", "decrypt", 0.05, floor=Bound(0.1))])


def test_the_command_writes_and_fails_on_broken_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bench.json"
    monkeypatch.setattr(run, "SECTIONS", sections(*ROWS))
    done = CliRunner().invoke(build_app(), ["bench", "--quick", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["quick"] is True
    monkeypatch.setattr(run, "SECTIONS", sections(Measurement("cipher", "encrypt", 0.0, floor=Bound(0.1))))
    failed = CliRunner().invoke(build_app(), ["bench", "cipher", "--out", str(out)])
    assert isinstance(failed.exception, PPFedError)
    assert json.loads(out.read_text())["rows"][0]["verdict"] == "broken"
