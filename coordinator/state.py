"""The coordinator's one folder: settings, owners, certificates, images, checkpoints, logs, model.

::

    federation.json    what was agreed            owners.json     invited and enrolled owners
    pki/               certificates               status.json     where the federation stands
    flower/            Flower's own files         audit.jsonl     who did what, when
    store/OWNER/       encrypted images           checkpoint/     to go on from after a crash
    logs/              output of the services     model/          the result
    traffic.json       bytes that each owner sent  owners.lock     held while owners.json is changed
    running, open      there while it runs, and while owners can join
    stop               asks it to stop
    steps.json         steps of a pass, in exchange ``gradients``
    delivered.json     whose images are complete, and their checksums
    begun              there once as many owners were here as the first run begins with
    processes/         what the training processes of several GPUs share
    compiled/          what torch.compile made, with ``--compile``
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Self, TextIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ppfed.atomic import write_atomic
from ppfed.enrolment import Phase
from ppfed.errors import UsageError
from ppfed.federation import FederationSettings, describe_invalid
from ppfed.images.source import Split

STATE_VARIABLE = "PPFED_COORDINATOR_STATE"
"""Environment variable that tells the ServerApp, which Flower starts, the folder."""

_INITIAL_WEIGHTS = "initial.safetensors"
_FOLDERS = ("pki", "flower", "logs")
MADE_FIRST = (*_FOLDERS, _INITIAL_WEIGHTS)
"""What is there before the plan is."""

TOO_LATE = "training has begun already: it takes part once the coordinator was stopped and started again"
"""What is said of an owner that joins while a run is under way."""

_LOOK_S = 0.5
_STEPS = TypeAdapter(Annotated[int, Field(ge=1)])
_TRAFFIC = TypeAdapter(dict[str, int])
_DELIVERED = TypeAdapter(dict[str, dict[Split, tuple[int, ...]]])


class Plan(BaseModel):
    """What ``coordinator start`` was told: what was agreed with the owners, and what is the coordinator's own business.

    Attributes
    ----------
    settings : FederationSettings
    address : str
        Where owners connect, ``host:port``; the certificate holds it.
    listen : str
        Where this machine listens, ``host:port``; may differ at each start, as what follows may.
    quorum : int
        How many owners a round needs; one that misses the deadline is left out of it.
    deadline_s : float
        How long a round, a shard of images or a gradient may take, in seconds.
    begin_with : int
        How many owners the first run waits for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: FederationSettings
    address: str
    listen: str
    quorum: int = Field(ge=1)
    deadline_s: float = Field(default=600.0, gt=0, le=7 * 24 * 3600)
    begin_with: int = Field(ge=1)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.quorum > self.settings.owners:
            raise ValueError("the quorum is larger than the number of owners")
        if self.begin_with > self.settings.owners:
            raise ValueError("it cannot begin with more owners than take part")
        if self.begin_with < self.quorum:
            raise ValueError("it cannot begin with fewer owners than the quorum")
        return self


class Enrolled(BaseModel):
    """What an admitted owner brought."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_key: str
    node_id: int
    fingerprint: str
    train_images: int
    held_out_images: int
    copies: int
    at: str


class Owner(BaseModel):
    """An invited owner; ``enrolled`` once it has joined.

    Attributes
    ----------
    name, token_sha256, invited_at : str
    enrolled : Enrolled or None
    former : dict of str to int
        Node keys with which it had joined before its invite was replaced, and their ids: Flower registers a key once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    token_sha256: str
    invited_at: str
    enrolled: Enrolled | None = None
    former: dict[str, int] = {}


class OwnerList(BaseModel):
    """All owners of the federation, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owners: dict[str, Owner] = {}

    def enrolled(self) -> dict[str, Enrolled]:
        """Return those that have joined."""
        return {name: owner.enrolled for name, owner in self.owners.items() if owner.enrolled is not None}


class RoundRecord(BaseModel):
    """One finished round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    train_loss: float | None = None
    held_out_loss: float | None = None
    accuracy: float | None = None
    held_out_images: int = 0
    """On which the accuracy was measured: those of the owners that were there."""
    seconds: float
    owners: int


class Status(BaseModel):
    """Where the federation stands; written by whoever works on it, read by ``coordinator status``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Phase = Phase.WAITING
    message: str = ""
    owners: tuple[str, ...] = ()
    """Who takes part in the run that is under way, or was in the last one; whoever joins later waits for the next."""
    rounds: list[RoundRecord] = []
    steps: int = 0
    """Done in the round that is under way; only exchange ``gradients`` counts them."""
    steps_expected: int = 0
    images_received: int = 0
    images_expected: int = 0
    updated_at: str = ""

    def leaves_out(self, owner: str) -> bool:
        """Whether a run is under way that this owner has joined too late for."""
        return self.phase in (Phase.INTAKE, Phase.TRAINING) and owner not in self.owners


class StateFolder:
    """Reads and writes the folder. Everything in it is readable by the coordinator's user alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    # Where things live.
    @property
    def pki(self) -> Path:
        """Certificates."""
        return self.folder / "pki"

    @property
    def flower(self) -> Path:
        """Flower's own files."""
        return self.folder / "flower"

    @property
    def logs(self) -> Path:
        """Output of the services."""
        return self.folder / "logs"

    @property
    def model(self) -> Path:
        """The result."""
        return self.folder / "model"

    @property
    def checkpoint(self) -> Path:
        """Where training goes on after a crash."""
        return self.folder / "checkpoint"

    @property
    def initial_weights(self) -> Path:
        """Of the model that is trained further, if one is."""
        return self.folder / _INITIAL_WEIGHTS

    @property
    def processes(self) -> Path:
        """What the processes that train on several GPUs share; made afresh for each run."""
        return self.folder / "processes"

    @property
    def compiled(self) -> Path:
        """What torch.compile made: code that this user runs."""
        return self.folder / "compiled"

    def store(self, owner: str) -> Path:
        """Encrypted images of one owner."""
        return self.folder / "store" / owner

    # The plan.
    def exists(self) -> bool:
        """Whether a federation was started here."""
        return (self.folder / "federation.json").exists()

    def create(self, plan: Plan, initial_weights: bytes | None = None) -> None:
        """Make the folder for a new federation. Raises UsageError if it cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            for part in _FOLDERS:
                (self.folder / part).mkdir(exist_ok=True)
            if initial_weights is not None:
                write_atomic(self.initial_weights, initial_weights)
        except OSError as error:
            raise UsageError(
                f"the folder {self.folder} cannot be made: {error.strerror}", hint="Name another one with --state."
            ) from None
        self.set_plan(plan)

    def set_plan(self, plan: Plan) -> None:
        """Write what was agreed, where this machine listens, and how long it waits."""
        write_atomic(self.folder / "federation.json", plan.model_dump_json(indent=2))

    def plan(self) -> Plan:
        """Read what was agreed.

        Raises
        ------
        UsageError
            If there is no federation here, or its file is damaged.
        """
        path = self.folder / "federation.json"
        try:
            return Plan.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UsageError(
                f"there is no federation in {self.folder}",
                hint="Start one with 'ppfed coordinator start', or name its folder with --state.",
            ) from None
        except ValidationError as error:
            raise UsageError(
                f"{path} cannot be read: {describe_invalid(error)}",
                hint="Made by another version of ppfed, it is finished with that; else restore it from a backup.",
            ) from None

    # Owners: written by 'coordinator invite' and by the front door, which are different processes.
    def owners(self) -> OwnerList:
        """Read the owners.

        Raises
        ------
        UsageError
            If the file is damaged: who was admitted with which key cannot be guessed.
        """
        path = self.folder / "owners.json"
        try:
            return OwnerList.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return OwnerList()
        except ValidationError as error:
            raise UsageError(
                f"{path} is damaged: {describe_invalid(error)}",
                hint="Restore it from a backup, or remove it and invite every owner again.",
            ) from None

    def joined_at(self) -> dict[str, float]:
        """Return when each owner last joined, in seconds since the epoch."""
        return {
            name: datetime.datetime.fromisoformat(one.at).timestamp() for name, one in self.owners().enrolled().items()
        }

    @contextmanager
    def changing_owners(self) -> Iterator[dict[str, Owner]]:
        """Change the owners while nobody else does; written when the block ends without an error."""
        with (self.folder / "owners.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            owners = dict(self.owners().owners)
            yield owners
            write_atomic(self.folder / "owners.json", OwnerList(owners=owners).model_dump_json(indent=2))

    # Status and audit trail.
    def status(self) -> Status:
        """Read where the federation stands; a damaged file is put aside, as the checkpoint knows what matters."""
        path = self.folder / "status.json"
        try:
            return Status.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Status()
        except ValidationError:
            self._put_aside(path)
            return Status()

    def set_status(self, status: Status) -> None:
        """Write where the federation stands."""
        stamped = status.model_copy(update={"updated_at": now_text()})
        write_atomic(self.folder / "status.json", stamped.model_dump_json(indent=2))

    def steps_of_pass(self, counted: int) -> int:
        """Return how many steps a pass has in exchange ``gradients``: what was counted when training first began.

        An owner may join again with another number of images, and owners refuse another number of steps.

        Raises
        ------
        UsageError
            If the file is damaged.
        """
        path = self.folder / "steps.json"
        if not path.exists():
            write_atomic(path, json.dumps(counted))
        try:
            return _STEPS.validate_json(path.read_bytes())
        except ValidationError:
            raise UsageError(f"{path} is damaged", hint="Restore it from a backup.") from None

    def delivered(self) -> dict[str, dict[Split, tuple[int, ...]]]:
        """Read whose images were complete, with the CRC-32 of each shard by split; a damaged file is put aside."""
        path = self.folder / "delivered.json"
        try:
            return _DELIVERED.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError:
            self._put_aside(path)
            return {}

    def set_delivered(self, owner: str, checksums: Mapping[Split, tuple[int, ...]] | None) -> None:
        """Write that an owner's images are complete; None that they are not."""
        before = self.delivered()
        listed = {name: one for name, one in before.items() if name != owner}
        if checksums is not None:
            listed[owner] = dict(checksums)
        if listed == before:
            return
        write_atomic(self.folder / "delivered.json", _DELIVERED.dump_json(listed))

    def traffic(self) -> dict[str, int]:
        """Read how many bytes each owner has sent through the front door; a damaged file is put aside."""
        path = self.folder / "traffic.json"
        try:
            return _TRAFFIC.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError:
            self._put_aside(path)
            return {}

    def set_traffic(self, received_bytes: dict[str, int]) -> None:
        """Write how many bytes each owner has sent."""
        write_atomic(self.folder / "traffic.json", json.dumps(received_bytes))

    def audit(self, event: str, **facts: str | int | float | None) -> None:
        """Append to the audit trail: one JSON object a line."""
        line = json.dumps({"at": now_text(), "event": event, **facts})
        descriptor = os.open(self.folder / "audit.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a") as file:
            file.write(line + "\n")

    def _put_aside(self, path: Path) -> None:
        """Move a damaged file out of the way, so that it is reported once."""
        # Another process may have done it, or have written a good one, in the meantime.
        with suppress(FileNotFoundError):
            path.replace(path.with_name(path.name + ".damaged"))
            self.audit("warning", reason=f"{path.name} is damaged: it was put aside and is started afresh")

    # Running and stopping.
    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the folder: only one coordinator works in it.

        Raises
        ------
        UsageError
            If another one does.
        """
        with (self.folder / "running").open("a+") as file:
            try:
                _lock(file)
            except BlockingIOError:
                raise UsageError(
                    f"a coordinator is running in {self.folder} already",
                    hint=f"See it with 'ppfed coordinator status --state {self.folder}', or stop it with 'stop'.",
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self.stop_request.unlink(missing_ok=True)
            try:
                yield
            finally:
                self.stop_request.unlink(missing_ok=True)
                file.truncate(0)

    def running_pid(self) -> int | None:
        """Return the process that works in this folder, or None."""
        path = self.folder / "running"
        if not path.exists():
            return None
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
        return None

    @property
    def begun(self) -> bool:
        """Whether an earlier run had the owners it begins with: another need not wait for those that are gone."""
        # Federations from before the mark have a checkpoint, or a store.
        return any((self.folder / name).exists() for name in ("begun", "checkpoint", "store"))

    def set_begun(self) -> None:
        """Leave the mark that as many owners as the first run begins with were here."""
        (self.folder / "begun").touch()

    @property
    def open_mark(self) -> Path:
        """A file that is there while owners can join."""
        return self.folder / "open"

    @property
    def stop_request(self) -> Path:
        """A file that asks whoever works in this folder to stop."""
        return self.folder / "stop"


def _lock(file: TextIO) -> None:
    """Take the lock; whoever only looks whether it is taken holds it for a moment."""
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S / 20)
        else:
            return


def now_text() -> str:
    """Return the time, UTC, ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
