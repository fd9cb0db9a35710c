"""What is asked of the machine before anyone joins."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.machine import require_compiler, require_devices
from ppfed.errors import ServiceError, UsageError
from ppfed.services import child_environment


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("abacus", 1, "no device 'abacus' here"),
        ("cuda:4095", 1, "no device 'cuda:4095' here"),
        ("cuda", 4096, "--gpus 4096: there are [0-9]+ GPUs here"),
    ],
)
def test_devices_that_are_not_there_are_missed(name: str, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        require_devices(name, count, child_environment())


def test_a_device_that_is_there_is_found() -> None:
    require_devices("cpu", 1, child_environment())


def test_a_torch_that_cannot_be_loaded_is_no_missing_device(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('half a torch')")
    with pytest.raises(ServiceError, match="half a torch"):
        require_devices("cuda", 1, child_environment({"PYTHONPATH": str(tmp_path)}))


def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path) -> None:
    environment = child_environment({"CXX": "no-such-compiler"})
    with pytest.raises(UsageError, match=r"does not work here on cpu: .*no-such-compiler") as failure:
        require_compiler("cpu", tmp_path / "compiled", environment)
    assert "\n" not in failure.value.message
    assert "g++" in failure.value.hint
