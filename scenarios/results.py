"""``results.jsonl``: one line for each finished arm and seed, the truth that reports are made from."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppfed.atomic import write_atomic
from ppfed.attacks.membership import MembershipOutcome
from ppfed.errors import DataError
from ppfed.leakage.record import LeakageRecord
from scenarios.declaration import Scale, Scenario

RESULTS_FILE = "results.jsonl"
RUN_FILE = "run.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Identity(_Record):
    """What must be the same for results to stand in one table.

    Attributes
    ----------
    settings : str
        SHA-256 of the declared arms and budget.
    data : str
        SHA-256 of all pixels and labels, as they are before encryption.
    code : str
        SHA-256 of ppfed's source.
    device : str
        Kind and name of the device that trains.
    compilation : bool
        Whether ``torch.compile`` compiled the networks, which rounds differently.
    """

    settings: str
    data: str
    code: str
    device: str
    compilation: bool = False

    @property
    def trained_on(self) -> str:
        """The device in words, and whether networks were compiled."""
        return f"{self.device}, networks compiled" if self.compilation else self.device


class RunRecord(_Record):
    """``run.json``: what a run is.

    Attributes
    ----------
    scenario : Scenario
    scale : Scale
    identity : Identity
    data_title : str
        The data in words, without a path.
    classes : tuple of str
    train_images, held_out_images : int
    attacker_images : int
        What an attacker has of its own; 0 where nothing is attacked.
    threads : int
        Of PyTorch on the CPU, for each arm: another number rounds differently.
    versions : dict of str to str
    created : str
        ISO 8601, UTC.
    """

    scenario: Scenario
    scale: Scale
    identity: Identity
    data_title: str
    classes: tuple[str, ...]
    train_images: int
    held_out_images: int
    attacker_images: int = 0
    threads: int
    versions: dict[str, str]
    created: str

    def write(self, folder: Path) -> None:
        """Write ``run.json``."""
        write_atomic(folder / RUN_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """Read ``run.json``; None if there is none.

        Raises
        ------
        DataError
            If it is damaged or of another version of ppfed.
        """
        try:
            return cls.model_validate_json((folder / RUN_FILE).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise DataError(
                f"{folder / RUN_FILE} is damaged, or another version of ppfed made it",
                hint="Name another folder with --out.",
            ) from None


class CurveRow(_Record):
    """One pass, or round, of an arm.

    Attributes
    ----------
    passes : int
        Over the images, since the start.
    train_loss, held_out_loss : float or None
        Mean cross-entropy.
    accuracy : float or None
        On the held-out images, 0 to 1.
    seconds : float
        The pass took.
    """

    passes: int
    train_loss: float | None
    held_out_loss: float | None
    accuracy: float | None
    seconds: float


class Result(_Record):
    """One finished arm under one seed.

    Attributes
    ----------
    arm : str
        The arm's name.
    seed : int
    accuracy : float
        On the held-out images after the last pass, 0 to 1.
    held_out_images : int
    owner_accuracies : tuple of float
        In mode ``alone``: of each owner, on all held-out images; ``accuracy`` is their mean. Else empty.
    query_accuracies : dict of str to float
        On further sets of held-out images, by name; with a wrong key, of queries under that key.
    curve : tuple of CurveRow
        In mode ``alone``: of the first owner.
    seconds : float
        Training and measuring, without reading and encrypting the images.
    bytes_to_coordinator, bytes_from_coordinator : int
        What crosses the network: images, or weights, or gradients. 0 where nobody else trains.
    owner_images : tuple of int
        Training images of each owner.
    parameters : int
        Trained weights of the network.
    membership : MembershipOutcome or None
        How well the trained network tells its training images from held-out ones; in mode ``alone`` the last owner's.
        None where the training diverged.
    leakage : LeakageRecord or None
        What attacks restored; None where the arm declares none.
    """

    arm: str
    seed: int = Field(ge=0)
    accuracy: float = Field(ge=0, le=1)
    held_out_images: int = Field(ge=1)
    owner_accuracies: tuple[float, ...] = ()
    query_accuracies: dict[str, float] = {}
    curve: tuple[CurveRow, ...]
    seconds: float
    bytes_to_coordinator: int
    bytes_from_coordinator: int
    owner_images: tuple[int, ...]
    parameters: int
    membership: MembershipOutcome | None = None
    leakage: LeakageRecord | None = None


def log_path(folder: Path, slug: str, seed: int) -> Path:
    """Name the file that holds what an arm's process printed."""
    return folder / "arms" / f"{slug}-seed-{seed}.log"


def pictures_path(folder: Path, slug: str, seed: int) -> Path:
    """Name the file that holds what attacks restored: arrays by name, beside plain images of the data."""
    return folder / "pictures" / f"{slug}-seed-{seed}.npz"


def append(folder: Path, result: Result) -> None:
    """Add a result; it is on disk when this returns."""
    with (folder / RESULTS_FILE).open("a", encoding="utf-8") as file:
        file.write(result.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Result]:
    """Read all results, in the order in which they came.

    A last line that was cut off, because the machine went down while it was written, is not a result; ``mend`` removes
    it before more are added.

    Raises
    ------
    DataError
        If another line is damaged.
    """
    path = folder / RESULTS_FILE
    if not path.exists():
        return []
    whole, _, _cut = path.read_bytes().rpartition(b"\n")
    try:
        return [Result.model_validate_json(line) for line in whole.splitlines()]
    except ValidationError:
        raise DataError(f"{path} is damaged", hint="Restore it, or name another folder with --out.") from None


def mend(folder: Path) -> None:
    """Remove a line that was cut off."""
    path = folder / RESULTS_FILE
    if path.exists():
        whole, newline, cut = path.read_bytes().rpartition(b"\n")
        if cut:
            with path.open("rb+") as file:
                file.truncate(len(whole) + len(newline))
                os.fsync(file.fileno())
