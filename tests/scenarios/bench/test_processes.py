from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ppfed.errors import ServiceError
from scenarios.bench.processes import Federation


def test_a_process_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "owner-0.log").write_text("no room left")
    with subprocess.Popen(["false"]) as failed:
        failed.wait()
        with pytest.raises(ServiceError, match="owner-0 said:\nno room left"):
            Federation(tmp_path, {"owner-0": failed}).wait(lambda: False)


def test_a_process_that_ended_because_all_is_done_has_not_failed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as done:
        done.wait()
        Federation(tmp_path, {"coordinator": done}).wait(lambda: True)
