"""Exchange ``images`` on several GPUs: starts the processes that train (``coordinator/rank.py``) and follows them.

The ServerApp itself, which Flower starts, is none of them. Everything passes through the state folder: the job, the
rendezvous, the records of the rounds, the checkpoints. So nothing listens on the network but what torch needs for the
tensors, and several machines need nothing but the folder in common.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from coordinator.machine import require_compiler, require_devices
from coordinator.state import RoundRecord, StateFolder
from coordinator.torchrun import PARENT_VARIABLE
from ppfed.atomic import write_atomic
from ppfed.cores import cores
from ppfed.errors import UsageError
from ppfed.federation import Exchange, FederationSettings
from ppfed.services import Service, child_environment
from ppfed.training.settings import DataPlacement

_POLL_S = 0.25
_COMPILER_VARIABLES = ("CC", "CXX")
"""Names of compilers, which a process that compiles needs."""
_JOB = "job.json"
_RECORDS = "records.jsonl"
_TORCH_PREFIXES = ("NCCL_", "GLOO_")
_DEVICE_VARIABLE = "PPFED_COORDINATOR_DEVICE"
_COUNT_VARIABLE = "PPFED_COORDINATOR_PROCESSES"
_MACHINES_VARIABLE = "PPFED_COORDINATOR_MACHINES"
_PLACEMENT_VARIABLE = "PPFED_COORDINATOR_DATA_PLACEMENT"
_COMPILED_VARIABLE = "PPFED_COORDINATOR_COMPILED"


@dataclass(frozen=True)
class Processes:
    """On what the coordinator trains, compiled or not, and where the images lie meanwhile.

    Attributes
    ----------
    device : str
        ``auto``, or a device's name in PyTorch.
    count : int
        Processes on each machine: one for each GPU.
    machines : int
        How many machines train together.
    placement : DataPlacement
    compiled : bool
        Whether the network is compiled (``ppfed/training/compilation.py``).
    """

    device: str = "auto"
    count: int = 1
    machines: int = 1
    placement: DataPlacement = DataPlacement.AUTO
    compiled: bool = False

    @property
    def total(self) -> int:
        """Processes on all machines."""
        return self.count * self.machines

    @property
    def kind(self) -> str:
        """What several processes train on: ``cuda`` or ``cpu``."""
        return "cpu" if self.device == "cpu" else "cuda"

    def check(self, settings: FederationSettings) -> None:
        """Refuse what makes no sense with what the federation agreed on, or with each other.

        Raises
        ------
        UsageError
            If several processes make no sense with the exchange or the device, or there will be no images to place, or
            nothing to compile, or nothing that can be compiled.
        """
        exchange = settings.exchange
        if self.placement is not DataPlacement.AUTO and exchange is not Exchange.IMAGES:
            raise UsageError(
                f"exchange {exchange} leaves the images at their owners: there are none to place here",
                hint="Leave --data-placement out; it belongs to exchange images.",
            )
        if self.compiled and exchange is not Exchange.IMAGES:
            raise UsageError(
                f"exchange {exchange} does not train at the coordinator: there is no network to compile here",
                hint="Leave --compile out; it belongs to exchange images.",
            )
        if self.compiled and settings.training.first_crop < 1:
            raise UsageError(
                "a network is compiled for one size of images, and --first-crop trains on several",
                hint="Leave --compile out, or start a new federation without --first-crop.",
            )
        if self.total == 1:
            return
        if self.compiled:
            raise UsageError(
                f"{self.total} processes cannot train a compiled network together",
                hint="Leave --compile out, or --gpus and --machines.",
            )
        if exchange is not Exchange.IMAGES:
            raise UsageError(
                f"exchange {exchange} does not train at the coordinator: several GPUs or machines are of no use there",
                hint="Leave --gpus and --machines out; they belong to exchange images.",
            )
        if self.device not in ("auto", "cuda", "cpu"):
            raise UsageError(
                f"--device {self.device} names one device, and {self.total} processes are to train",
                hint="Choose auto or cuda for GPUs, cpu for processes on the CPU; or leave --gpus and --machines out.",
            )

    def check_machine(self, compiled: Path) -> None:
        """Find out at once what would fail hours later, when the images are there.

        Both are asked in the environment of the ServerApp (``coordinator/machine.py``).

        Parameters
        ----------
        compiled : Path
            Folder for compiled code.

        Raises
        ------
        UsageError
            If the devices are not there, or compiling does not work.
        """
        environment = child_environment({**self.environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")})
        if self.total > 1 and self.kind == "cuda":
            require_devices("cuda", self.count, environment)
        elif self.device not in ("auto", "cpu"):
            require_devices(self.device, 1, environment)
        if self.compiled:
            require_compiler(self.device, compiled, environment)

    def options(self) -> list[str]:
        """Return the options of ``coordinator start`` that mean these."""
        return [
            *("--device", self.device, "--gpus", str(self.count), "--machines", str(self.machines)),
            *("--data-placement", self.placement),
            "--compile" if self.compiled else "--no-compile",
        ]

    def environment(self) -> dict[str, str]:
        """Write it into the environment of the ServerApp, together with the settings of torch's libraries."""
        return {
            **_torch_settings(),
            _DEVICE_VARIABLE: self.device,
            _COUNT_VARIABLE: str(self.count),
            _MACHINES_VARIABLE: str(self.machines),
            _PLACEMENT_VARIABLE: self.placement,
            _COMPILED_VARIABLE: str(int(self.compiled)),
            **{name: os.environ[name] for name in _COMPILER_VARIABLES if self.compiled and name in os.environ},
        }

    @classmethod
    def from_environment(cls) -> Self:
        """Read what ``environment`` wrote."""
        return cls(
            os.environ.get(_DEVICE_VARIABLE, "auto"),
            int(os.environ.get(_COUNT_VARIABLE, "1")),
            int(os.environ.get(_MACHINES_VARIABLE, "1")),
            DataPlacement(os.environ.get(_PLACEMENT_VARIABLE, DataPlacement.AUTO)),
            os.environ.get(_COMPILED_VARIABLE) == "1",
        )


class Job(BaseModel):
    """What the processes are to train.

    Attributes
    ----------
    device : str
        ``cpu`` or ``cuda``.
    owners : tuple of str
        Those whose images are complete.
    placement : DataPlacement
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    owners: tuple[str, ...]
    placement: DataPlacement


def read_job(state: StateFolder) -> Job:
    """Read what to train.

    Raises
    ------
    UsageError
        If nothing is being trained in this folder.
    """
    try:
        return Job.model_validate_json((state.processes / _JOB).read_bytes())
    except (OSError, ValidationError):
        raise UsageError(
            f"no training is under way in {state.folder}",
            hint="Start the coordinator with --gpus or --machines, and wait until its status says training.",
        ) from None


def tensor_store(state: StateFolder) -> Path:
    """File in which the processes find each other."""
    return state.processes / "store"


def report(state: StateFolder, record: RoundRecord) -> None:
    """Tell the ServerApp of a round; its checkpoint has been written."""
    with (state.processes / _RECORDS).open("a") as file:
        file.write(record.model_dump_json() + "\n")


def train_in_processes(
    state: StateFolder, processes: Processes, owners: Sequence[str], check_stop: Callable[[], None]
) -> Iterator[RoundRecord]:
    """Train as ``train_pooled`` does, in processes of their own, from the last checkpoint to the end.

    Parameters
    ----------
    state : StateFolder
    processes : Processes
    owners : sequence of str
        Those whose images are complete.
    check_stop : callable
        Called several times a second; what it raises ends the processes.

    Yields
    ------
    RoundRecord
        After each round. After the last one the trained weights are in the checkpoint.

    Raises
    ------
    ServiceError
        If a process fails; the others are ended too.
    """
    shutil.rmtree(state.processes, ignore_errors=True)
    state.processes.mkdir()
    job = Job(device=processes.kind, owners=tuple(owners), placement=processes.placement)
    write_atomic(state.processes / _JOB, job.model_dump_json())
    (state.processes / _RECORDS).touch()
    torchrun = Service(
        f"the training with {processes.total} processes",
        [sys.executable, "-m", "coordinator.torchrun", *torchrun_arguments(state, processes)],
        _environment(processes),
        state.logs / "training.log",
        ends_by_itself=True,
    ).start()
    try:
        with (state.processes / _RECORDS).open() as records:
            code = None
            while code is None:
                check_stop()
                code = torchrun.exit_code()
                for line in _whole_lines(records):
                    yield RoundRecord.model_validate_json(line)
                if code is None:
                    time.sleep(_POLL_S)
        if code:
            torchrun.require_running()
    finally:
        torchrun.stop()


def torchrun_arguments(state: StateFolder, processes: Processes) -> list[str]:
    """Build torchrun's command line; on further machines it is the same (docs/architecture.md).

    The rendezvous is a file. Torch's own default is a server on all interfaces, whose answers torchrun unpickles: who
    can write that file is this user, who could run code anyway.
    """
    return [
        *("--nnodes", str(processes.machines), "--nproc-per-node", str(processes.count)),
        *("--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-id", "ppfed"),
        *("--rdzv-endpoint", str(state.processes / "rendezvous"), "--log-dir", str(state.processes)),
        *("--module", "coordinator.rank", str(state.folder)),
    ]


def _environment(processes: Processes) -> dict[str, str]:
    inside = {f"{library}_SOCKET_IFNAME": _loopback_interface() for library in ("NCCL", "GLOO")}
    threads = max(1, cores() // processes.count)
    return child_environment(
        {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            # Modules come from where ppfed is installed, not from the folder that somebody happens to be in.
            "PYTHONSAFEPATH": "1",
            # Else the agent listens on all interfaces, in spite of the file.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            PARENT_VARIABLE: str(os.getpid()),
            **(inside if processes.machines == 1 else {}),
            **_torch_settings(),
        }
    )


def _torch_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_TORCH_PREFIXES)}


def _loopback_interface() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _whole_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines that were written since; one that is being written stays for the next time."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        yield line
