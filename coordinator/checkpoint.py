"""Where training stood after the last finished round, so that a crash loses one round at most."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coordinator.state import RoundRecord
from ppfed.atomic import write_atomic
from ppfed.errors import UsageError

_WEIGHTS = "weights.safetensors"
_MOMENTUM = "momentum.safetensors"
_PROGRESS = "progress.json"


@dataclass(frozen=True)
class Checkpoint:
    """State after ``rounds`` rounds.

    Attributes
    ----------
    rounds : int
    weights : dict of str to tensor
    momentum : dict of str to tensor
        The optimizer's buffers by parameter name; empty in exchange ``updates``.
    record : RoundRecord or None
        Of the last round, as far as it was known: after a crash nobody else knows it.
    """

    rounds: int
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    record: RoundRecord | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the older one stays until the new one is whole."""
    fresh = folder / f"{checkpoint.rounds:06d}"
    fresh.mkdir(parents=True, exist_ok=True)
    _save(checkpoint.weights, fresh / _WEIGHTS)
    _save(checkpoint.momentum, fresh / _MOMENTUM)
    # Everything is on the disk before anything points to it, and the pointer before what it pointed to goes: a power
    # failure must not leave a pointer to nothing.
    _flush(fresh)
    _flush(folder)
    record = None if checkpoint.record is None else checkpoint.record.model_dump()
    write_atomic(folder / _PROGRESS, json.dumps({"rounds": checkpoint.rounds, "record": record}))
    _flush(folder)
    for old in folder.iterdir():
        if old.is_dir() and old != fresh:
            shutil.rmtree(old)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the last checkpoint, or None if there is none.

    Raises
    ------
    UsageError
        If it is damaged.
    """
    if not (folder / _PROGRESS).exists():
        return None
    try:
        progress = json.loads((folder / _PROGRESS).read_bytes())
        rounds = int(progress["rounds"])
        record = None if progress["record"] is None else RoundRecord.model_validate(progress["record"])
        kept = folder / f"{rounds:06d}"
        return Checkpoint(rounds, load_file(kept / _WEIGHTS), load_file(kept / _MOMENTUM), record)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(
            f"the checkpoint in {folder} is damaged ({type(error).__name__})",
            hint=f"Remove {folder} to train again from the start; received images are kept.",
        ) from None


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
