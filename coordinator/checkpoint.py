"""Where training stood, so that a crash loses one round at most, and in exchange ``gradients`` a minute."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coordinator.norm_bound import SeenNorms
from coordinator.state import RoundRecord
from ppfed.atomic import write_atomic
from ppfed.errors import UsageError

_WEIGHTS = "weights.safetensors"
_MOMENTUM = "momentum.safetensors"
_AVERAGE = "average.safetensors"
_PROGRESS = "progress.json"


class PassSoFar(BaseModel):
    """What was done of the next round, in exchange ``gradients``.

    Attributes
    ----------
    steps : int
    loss : float
        Sum over the images of those steps.
    images : int
    seconds : float
    owners : int
        Most that took part in one of the steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=0, ge=0)
    loss: float = 0.0
    images: int = Field(default=0, ge=0)
    seconds: float = 0.0
    owners: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Checkpoint:
    """State after ``rounds`` rounds, and ``so_far`` of the next.

    Attributes
    ----------
    rounds : int
    weights : dict of str to tensor
        Of the path that training takes.
    momentum : dict of str to tensor
        The optimizer's buffers by parameter name; in exchange ``updates`` what the server's strategy remembers.
    record : RoundRecord or None
        Of the last round, as far as it was known: after a crash nobody else knows it.
    so_far : PassSoFar
    average : dict of str to tensor
        The averaged network that is measured and delivered; empty where none is kept.
    norms : SeenNorms
        Of owners' answers.
    """

    rounds: int
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    record: RoundRecord | None = None
    so_far: PassSoFar = field(default_factory=PassSoFar)
    average: dict[str, Tensor] = field(default_factory=dict)
    norms: SeenNorms = field(default_factory=SeenNorms)

    @property
    def delivered(self) -> dict[str, Tensor]:
        """The weights of the model that training has brought so far."""
        return self.average or self.weights


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the older one stays until the new one is whole."""
    fresh = folder / _name(checkpoint.rounds, checkpoint.so_far)
    fresh.mkdir(parents=True, exist_ok=True)
    _save(checkpoint.weights, fresh / _WEIGHTS)
    _save(checkpoint.momentum, fresh / _MOMENTUM)
    _save(checkpoint.average, fresh / _AVERAGE)
    # Everything is on the disk before anything points to it, and the pointer before what it pointed to goes: a power
    # failure must not leave a pointer to nothing.
    _flush(fresh)
    _flush(folder)
    record = None if checkpoint.record is None else checkpoint.record.model_dump()
    progress = {
        "rounds": checkpoint.rounds,
        "record": record,
        "so_far": checkpoint.so_far.model_dump(),
        "norms": checkpoint.norms.model_dump(),
    }
    write_atomic(folder / _PROGRESS, json.dumps(progress))
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
        so_far = PassSoFar.model_validate(progress.get("so_far", {}))
        kept = folder / _name(rounds, so_far)
        # Federations from before averages have no such file.
        average = load_file(kept / _AVERAGE) if (kept / _AVERAGE).exists() else {}
        # Nor did earlier ones write this.
        norms = SeenNorms.model_validate(progress.get("norms", {}))
        weights, momentum = load_file(kept / _WEIGHTS), load_file(kept / _MOMENTUM)
        return Checkpoint(rounds, weights, momentum, record, so_far, average, norms)
    # PyTorch maps a file of weights by its name, and says RuntimeError where it is gone since it was opened.
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"the checkpoint in {folder} is damaged ({type(error).__name__})",
            hint=f"Remove {folder} to train again from the start; received images are kept.",
        ) from None


def _name(rounds: int, so_far: PassSoFar) -> str:
    return f"{rounds:06d}-{so_far.steps:09d}" if so_far.steps else f"{rounds:06d}"


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
