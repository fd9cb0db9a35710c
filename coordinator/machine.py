"""``python -m coordinator.machine``: whether this machine can do what it is to do, asked before anyone joins.

It is asked in a process of its own: torch takes 190 MiB and a GPU's context more, which the front door, who asks, would
hold as long as it lives.
"""

# ruff: noqa: PLC0415 -- torch is imported in that process alone.

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ppfed.errors import ServiceError, UsageError

_DEVICES, _COMPILER = "devices", "compiler"


def require_devices(name: str, count: int, environment: Mapping[str, str]) -> None:
    """Find out whether there are such devices.

    Parameters
    ----------
    name : str
        A device's name in PyTorch.
    count : int
        How many; more than one only of ``cuda``.
    environment : mapping of str to str
        Of the process that will use them.

    Raises
    ------
    UsageError
        If there are fewer.
    ServiceError
        If torch cannot be asked.
    """
    done = _ask(environment, _DEVICES, name)
    if done.returncode != 0:
        raise ServiceError(f"cannot ask PyTorch for its devices: {_last_line(done)}", hint="Install ppfed again.")
    found = int(done.stdout)
    if found >= count:
        return
    if count == 1:
        raise UsageError(f"there is no device {name!r} here", hint="Choose auto or cpu.")
    raise UsageError(
        f"--gpus {count}: there are {found} GPUs here that PyTorch can use",
        hint="Choose as many as there are; --device cpu runs so many processes on the CPU.",
    )


def require_compiler(device: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Compile and run a small network.

    Parameters
    ----------
    device : str
        As ``pick_device`` takes it.
    folder : Path
        For ``compiler_cache``.
    environment : mapping of str to str
        Of the process that will train.

    Raises
    ------
    UsageError
        If it does not work.
    """
    done = _ask(environment, _COMPILER, device, str(folder))
    if done.returncode != 0:
        raise UsageError(
            f"torch.compile does not work here on {device}: {_last_line(done)}",
            hint="It needs a C++ compiler (g++ or clang++; CXX names another) and Python's headers, and on a GPU "
            "Triton: install them, or leave --compile out.",
        )


def _ask(environment: Mapping[str, str], *question: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "coordinator.machine", *question],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"exit code {done.returncode}"


def _count_devices(name: str) -> int:
    import torch

    from ppfed.training.loop import pick_device

    if name == "cuda":
        return torch.cuda.device_count()
    try:
        pick_device(name)
    except UsageError:
        return 0
    return 1


def _compile(name: str, folder: Path) -> None:
    import torch
    from torch import nn

    from ppfed.training.compilation import compile_network, compiler_cache
    from ppfed.training.loop import pick_device

    device = pick_device(name)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).to(device)
    with compiler_cache(folder):
        compiled = compile_network(network, device)
        for _ in range(3):  # The third run is the first that a CUDA graph replays.
            network.zero_grad()
            compiled(torch.ones(4, 3, 8, 8, device=device)).mean().backward()  # type: ignore[no-untyped-call]


def _main(question: str, device: str, *rest: str) -> None:
    if question == _DEVICES:
        print(_count_devices(device))  # noqa: T201
        return
    try:
        _compile(device, Path(rest[0]))
    except Exception as error:
        # Torch explains at length; the first line says what is missing.
        sys.exit(next((line for line in str(error).splitlines() if line), type(error).__name__))


if __name__ == "__main__":
    _main(*sys.argv[1:])
