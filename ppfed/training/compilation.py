"""torch.compile for the network that is trained: kernels made for it, and on a GPU CUDA graphs that launch them.

A choice of whoever trains: it changes results by rounding alone. What it makes is code that this user runs. By default
torch keeps it in folders below the system's temporary folder whose names anybody can guess and make first, so
nothing is compiled here but into a folder that nobody else can write to.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ppfed.errors import UsageError

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_TEMPORARY_VARIABLE = "TMPDIR"


@contextmanager
def compiler_cache(folder: Path) -> Iterator[None]:
    """Let this process compile into a folder; what lies there is used again.

    Parameters
    ----------
    folder : Path
        Made for this user alone if it is missing.

    Raises
    ------
    UsageError
        If others can write to it.
    """
    temporary = folder.resolve() / "tmp"
    for one in (temporary.parent, temporary):
        one.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(one):
            # Making it private now would trust what lies there already.
            raise UsageError(
                f"others on this machine can write to {one}, where compiled code would lie", hint="Remove the folder."
            )
    variables = {_CACHE_VARIABLE: str(temporary.parent), _TEMPORARY_VARIABLE: str(temporary)}
    before = {name: os.environ.get(name) for name in variables}, tempfile.tempdir
    os.environ.update(variables)
    # Precompiled headers go below the temporary folder, whatever the cache's variable says.
    tempfile.tempdir = str(temporary)
    try:
        yield
    finally:
        tempfile.tempdir = before[1]
        for name, value in before[0].items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def compile_network(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Compile a network's forward and backward pass when it is first called; within ``compiler_cache``.

    What was compiled in this process before is forgotten, as torch keeps no more than a few versions.

    Parameters
    ----------
    network : nn.Module
        Keeps its parameters and their names, and can be called as it is.
    device : torch.device
        Where it trains.

    Returns
    -------
    callable
        What to call in place of ``network``: compiled once for each size of a batch.

    Raises
    ------
    UsageError
        If others could write to where compiled code would lie.
    """
    for folder in (os.environ.get(_CACHE_VARIABLE, ""), tempfile.gettempdir()):
        if not folder or not _is_private(Path(folder)):
            raise UsageError(
                f"others on this machine could write to {folder or 'the place'} where compiled code would lie",
                hint="Compile within ppfed.training.compilation.compiler_cache(FOLDER).",
            )
    torch.compiler.reset()
    # As a whole or not at all: what torch cannot compile would be run piece by piece, without a word.
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, fullgraph=True, dynamic=False, mode=mode)
    return compiled


def _is_private(folder: Path) -> bool:
    try:
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
