"""Federations on one machine, in Flower's simulation runtime: the ClientApp and the ServerApp of the deployed system.

Each simulation is a process of its own (``scenarios/simulated/flower_simulation.py``): Ray and Flower keep global
state, write to the terminal, and leave threads behind, and a process group can be ended whole. It runs
``flwr.simulation.run_simulation``, which takes the apps as objects and needs no more of Flower than its public names.
The way that replaces it, ``flwr run`` on a local connection, loads the apps from a bundle that it copies and installs:
then it would not be sure that the code under test is the code that runs. Flower is pinned to 1.41, where the function
is deprecated but there; ``tests/scenarios/simulated/test_simulation.py`` fails when it goes.

The state folder is a coordinator's. Whatever ends a simulation, the next call with the same folder goes on after the
last finished round.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from clients.prepared import Prepared
from coordinator.state import Enrolled, Owner, Plan, RoundRecord, StateFolder, now_text
from ppfed.atomic import write_atomic
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, UsageError
from ppfed.federation import FederationSettings, Name
from ppfed.images.source import Split
from ppfed.networks.config import count_weights
from ppfed.services import flower_environment
from ppfed.store import SHARD_BYTES, ShardStore

_LOOK_S = 0.1
_COMPLAINTS = ("refused", "no answer", "missed the deadline", "left out")
_SIMULATED = "simulated"
_DEADLINE_S = 24 * 3600.0
"""Owners take turns, so that a round takes as long as all of them that share a job; one that fails says so at once."""
# Not -m: Ray finds classes by the name of their module.
_CHILD = "from scenarios.simulated.flower_simulation import main; main()"
_SETUP = "simulation.json"
_FAILURE = "failure.json"
_MESSAGES = "messages.jsonl"
_RAY_FOLDER_PREFIX = "ppfed-ray-"
_RAY_ACCESS = "ray.secret"
_MOST_JOBS_ON_A_GPU = 4
_OBJECT_STORE_BYTES = 256 << 20
_MESSAGES_PER_JOB = 4
"""What comes and goes, and one of each that Ray has not dropped yet."""


@dataclass(frozen=True)
class SimulationResult:
    """What came out.

    Attributes
    ----------
    rounds : tuple of RoundRecord
        All of them, those of an earlier, interrupted call included.
    model : Path
        The model folder; ``ppfed.model_folder.load_model`` reads it.
    bytes_to_coordinator, bytes_from_coordinator : int
        Content of all messages: arrays, metrics and settings. Envelopes and TLS are not counted, and what was asked
        again after an interruption counts once.
    """

    rounds: tuple[RoundRecord, ...]
    model: Path
    bytes_to_coordinator: int
    bytes_from_coordinator: int


class SimulatedOwner(BaseModel):
    """Where the simulation finds an owner's encrypted images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    store: Path
    train_images: int
    held_out_images: int
    copies: int

    def prepared(self) -> Prepared:
        """Return the owner's images as the ClientApp takes them."""
        return Prepared(ShardStore(self.store), self.train_images, self.held_out_images, self.copies, 0, {})


class SimulationSetup(BaseModel):
    """What the process that simulates is told.

    Attributes
    ----------
    owners : tuple of SimulatedOwner
        An owner's place in it is the partition id of its virtual node.
    device : str
        ``cpu`` or ``cuda``.
    jobs : int
        Owners that work at the same time, each in a process of its own.
    threads : int
        Of each of these processes.
    coordinator_threads : int
        Of the coordinator; in exchange ``images`` the owners rest while it trains.
    ray_folder : Path
        Ray's sockets and logs, and the token without which it takes no orders.
    object_store_bytes : int
        Memory that Ray shares between its processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owners: tuple[SimulatedOwner, ...]
    device: str
    jobs: int
    threads: int
    coordinator_threads: int
    ray_folder: Path
    object_store_bytes: int

    @classmethod
    def read(cls, state: StateFolder) -> SimulationSetup:
        """Read what ``write`` wrote."""
        return cls.model_validate_json((state.folder / _SETUP).read_bytes())

    def write(self, state: StateFolder) -> None:
        """Write it into the state folder."""
        write_atomic(state.folder / _SETUP, self.model_dump_json(indent=2))


class SimulationFailure(BaseModel):
    """Why a simulation ended without a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str
    hint: str = ""

    def write(self, state: StateFolder) -> None:
        """Write it into the state folder."""
        write_atomic(state.folder / _FAILURE, self.model_dump_json())


class MessageRecord(BaseModel):
    """One answered question, and how many bytes it took.

    Attributes
    ----------
    owner : str
    question : str
        Names it: the same question after an interruption has the same name.
    sent_bytes, received_bytes : int
        As the coordinator sees it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    question: str
    sent_bytes: int
    received_bytes: int

    def append(self, state: StateFolder) -> None:
        """Add it to the list in the state folder."""
        with (state.folder / _MESSAGES).open("a", encoding="utf-8") as file:
            file.write(self.model_dump_json() + "\n")


def simulate(
    settings: FederationSettings,
    owners: Mapping[str, Prepared],
    folder: Path,
    device: torch.device,
    on_round: Callable[[RoundRecord], None] = lambda _record: None,
    *,
    jobs: int | None = None,
) -> SimulationResult:
    """Run a federation to its end; go on with it where an earlier call was interrupted.

    Parameters
    ----------
    settings : FederationSettings
        All owners are the quorum: an owner that fails ends the simulation, and none is left out in silence.
    owners : mapping of str to Prepared
        Encrypted images of each owner, by name. Nobody compares their keys: that is what joining is for.
    folder : Path
        The coordinator's state folder, made if it is missing.
    device : torch.device
        Where owners and coordinator train. All owners share one GPU.
    on_round : callable
        Called once with the record of each round, those of an earlier call first.
    jobs : int or None
        Owners that work at the same time, each in a process of its own with an equal part of this process's torch
        threads. None takes as many as there are threads, and 4 at most on a GPU. Another number of threads changes how
        torch groups its sums, and so the weights, by rounding.

    Raises
    ------
    UsageError
        If the arguments make no sense, the folder holds another federation, or Flower's simulation is not installed.
    FederationError
        If an owner or the coordinator fails; it says why, and where the log is.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "federated arms need Flower's simulation, which is not installed",
            hint="Install it: pip install 'ppfed[scenarios]'",
        )
    _check(settings, owners, device, jobs)
    state = StateFolder(folder)
    _enrol(state, settings, owners)
    told = 0
    audited = _audit_bytes(state)
    if state.status().phase is not Phase.FINISHED:
        threads = torch.get_num_threads()
        most = threads if device.type == "cpu" else _MOST_JOBS_ON_A_GPU
        jobs = min(len(owners), jobs or most)
        with _ray_folder(state) as ray_folder:
            SimulationSetup(
                owners=tuple(_simulated(name, one) for name, one in sorted(owners.items())),
                device=device.type,
                jobs=jobs,
                threads=max(1, threads // jobs),
                coordinator_threads=threads,
                ray_folder=ray_folder,
                object_store_bytes=_OBJECT_STORE_BYTES + jobs * _MESSAGES_PER_JOB * _message_bytes(settings),
            ).write(state)
            with _process(state, device, ray_folder, max(1, threads // jobs)) as process:
                # Once the federation is finished, the process only tidies up Ray's, which end with it.
                while _running(process) and state.status().phase is not Phase.FINISHED:
                    told = _tell(state, told, on_round)
                    time.sleep(_LOOK_S)
        _require_success(state, process.returncode, audited)
    _tell(state, told, on_round)
    sent, received = _count_bytes(state)
    return SimulationResult(tuple(state.status().rounds), state.model, received, sent)


def log_file(state: StateFolder) -> Path:
    """Where Flower, Ray and both apps write."""
    return state.logs / "simulation.log"


def _check(
    settings: FederationSettings, owners: Mapping[str, Prepared], device: torch.device, jobs: int | None
) -> None:
    if len(owners) != settings.owners:
        raise UsageError(f"the settings name {settings.owners} owners, and {len(owners)} were given")
    if jobs is not None and jobs < 1:
        raise UsageError(f"at least one owner must work at a time, not {jobs}")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"simulations run on cpu or cuda, not on {device.type}")
    for name, one in owners.items():
        if not one.store.paths(Split.TRAIN):
            raise UsageError(f"{name} has no images to train on in {one.store.folder}")


def _enrol(state: StateFolder, settings: FederationSettings, owners: Mapping[str, Prepared]) -> None:
    """Write what ``coordinator start`` and the front door write; or see that it is the same."""
    enrolled = {name: _enrolled(one, settings) for name, one in owners.items()}
    if not state.exists():
        state.folder.mkdir(parents=True, exist_ok=True)
        # Owners first: the plan is what makes the folder a federation.
        with state.changing_owners() as listed:
            listed.clear()
            for name, one in enrolled.items():
                listed[name] = Owner(name=name, token_sha256="", invited_at=now_text(), enrolled=one)
        state.create(_plan(settings))
        return
    before = state.owners().enrolled()
    # Nodes and times are of a run.
    of_a_run = {"node_id", "at"}
    if state.plan() != _plan(settings) or {name: one.model_dump(exclude=of_a_run) for name, one in before.items()} != {
        name: one.model_dump(exclude=of_a_run) for name, one in enrolled.items()
    }:
        raise UsageError(
            f"{state.folder} holds a federation with other settings or other images",
            hint="Name another folder, or remove this one.",
        )


def _plan(settings: FederationSettings) -> Plan:
    return Plan(
        settings=settings,
        address=_SIMULATED,
        listen=_SIMULATED,
        quorum=settings.owners,
        begin_with=settings.owners,
        deadline_s=_DEADLINE_S,
    )


def _enrolled(prepared: Prepared, settings: FederationSettings) -> Enrolled:
    return Enrolled(
        node_key=_SIMULATED,
        node_id=0,
        fingerprint=next(prepared.store.shards(Split.TRAIN)).images.fingerprint,
        train_images=prepared.train_images,
        held_out_images=prepared.measured(settings),
        copies=prepared.copies,
        at=now_text(),
    )


def _simulated(name: str, prepared: Prepared) -> SimulatedOwner:
    return SimulatedOwner(
        name=name,
        store=prepared.store.folder.resolve(),
        train_images=prepared.train_images,
        held_out_images=prepared.held_out_images,
        copies=prepared.copies,
    )


def _message_bytes(settings: FederationSettings) -> int:
    return max(SHARD_BYTES, 4 * count_weights(settings.network_config()))


@contextmanager
def _ray_folder(state: StateFolder) -> Iterator[Path]:
    """Make Ray's folder; it is not in the state folder because a socket's path has 107 characters at most."""
    with suppress(OSError, ValidationError):
        # A killed simulation could not remove its own.
        left = SimulationSetup.read(state).ray_folder
        if left.name.startswith(_RAY_FOLDER_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_RAY_FOLDER_PREFIX))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _process(
    state: StateFolder, device: torch.device, ray_folder: Path, threads: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process that simulates; when the block ends, it and all of Ray's are gone."""
    token = ray_folder / _RAY_ACCESS
    # Ray listens on all interfaces and runs what it is sent.
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    extra = {
        "OMP_NUM_THREADS": str(threads),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if device.index is not None:
        visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        extra["CUDA_VISIBLE_DEVICES"] = visible[device.index] if visible else str(device.index)
    (state.folder / _FAILURE).unlink(missing_ok=True)
    with log_file(state).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, str(state.folder)],
            env=flower_environment(state.flower, extra),
            # It ends, with all of Ray's processes, when this pipe is closed: a killed caller leaves nothing behind.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A process group of its own, for the same purpose; and ctrl-C reaches the caller alone.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # Before it is reaped, nobody else can have its number.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _running(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process runs; it is not reaped."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _tell(state: StateFolder, told: int, on_round: Callable[[RoundRecord], None]) -> int:
    for record in state.status().rounds:
        if record.round > told:
            on_round(record)
            told = record.round
    return told


def _require_success(state: StateFolder, code: int, audited: int) -> None:
    if state.status().phase is Phase.FINISHED:
        return
    try:
        failure = SimulationFailure.model_validate_json((state.folder / _FAILURE).read_bytes())
    except FileNotFoundError:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        failure = SimulationFailure(
            message=f"the process that simulated the federation {how} after {len(state.status().rounds)} rounds",
            hint="Where memory ran out, let fewer owners work at a time.",
        )
    message = failure.message
    complaint = _last_complaint(state, audited)
    if complaint is not None and complaint[0] not in message:
        message += "; " + ": ".join(complaint)
    raise FederationError(message, hint=f"{failure.hint}\nThe log is {log_file(state)}.".strip())


def _audit_bytes(state: StateFolder) -> int:
    path = state.folder / "audit.jsonl"
    return path.stat().st_size if path.exists() else 0


def _last_complaint(state: StateFolder, audited: int) -> tuple[str, str] | None:
    """Find the last owner that the audit trail complains of behind its first ``audited`` bytes, and why."""
    with (state.folder / "audit.jsonl").open("ab+") as file:
        file.seek(audited)
        events = [json.loads(line) for line in file]
    complaints = [event for event in events if event["event"] in _COMPLAINTS and "owner" in event]
    return (complaints[-1]["owner"], complaints[-1].get("reason", complaints[-1]["event"])) if complaints else None


def _count_bytes(state: StateFolder) -> tuple[int, int]:
    """Add up bytes that the coordinator sent and received; a repeated question counts once."""
    last: dict[tuple[str, str], MessageRecord] = {}
    with (state.folder / _MESSAGES).open(encoding="utf-8") as file:
        for line in file:
            # A killed process may have left part of a line, and the next may have gone on behind it.
            with suppress(ValidationError, json.JSONDecodeError):
                record = MessageRecord.model_validate_json(line)
                last[record.owner, record.question] = record
    return sum(one.sent_bytes for one in last.values()), sum(one.received_bytes for one in last.values())
