"""A federation of real processes: coordinator and owners, as ppfed starts them, on the loopback interface."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.state import StateFolder
from ppfed.services import free_port
from scenarios.bench.owner import FINGERPRINT
from scenarios.local_processes import LocalProcesses, ppfed

COORDINATOR = "coordinator"
_WAIT_S = 600.0


@dataclass(frozen=True)
class Federation:
    """Processes at work, and where they write.

    Attributes
    ----------
    processes : LocalProcesses
        ``coordinator``, ``owner-0`` and so on.
    """

    processes: LocalProcesses

    @property
    def state(self) -> StateFolder:
        """The coordinator's."""
        return StateFolder(self.processes.folder / COORDINATOR)

    def owner_folder(self, number: int) -> Path:
        """State folder of an owner."""
        return self.processes.folder / f"owner-{number}"

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Wait until something is so.

        Raises
        ------
        ServiceError
            If a process fails or all have ended before, or it takes longer than ten minutes.
        """
        self.processes.wait(what, ready, _WAIT_S)


@contextmanager
def federation(folder: Path, options: Sequence[str], owners: int, images: int) -> Iterator[Federation]:
    """Start a coordinator and owners with random 32x32 "images"; they are gone when the block ends.

    Parameters
    ----------
    folder : Path
        Exists, and is empty.
    options : sequence of str
        Of ``coordinator start``, besides what every federation here has.
    owners : int
    images : int
        Of each owner.

    Raises
    ------
    ServiceError
        If one of them does not start.
    """
    with LocalProcesses(folder) as processes:
        running = Federation(processes)
        state = str(running.state.folder)
        processes.start(
            COORDINATOR,
            *ppfed("coordinator", "start", "--state", state, "--owners", str(owners), "--quorum", str(owners)),
            *("--classes", "10", "--size", "32", "--fingerprint", FINGERPRINT, "--device", "cpu"),
            *("--address", f"localhost:{free_port()}", *options),
        )
        running.wait("an open coordinator", lambda: "is open at" in processes.log(COORDINATOR))
        for number in range(owners):
            owner = running.owner_folder(number)
            invite = folder / f"{owner.name}.invite"
            processes.run(*ppfed("coordinator", "invite", owner.name, "--state", state, "--out", str(invite)))
            processes.start(
                owner.name,
                *(sys.executable, "-m", "scenarios.bench.owner"),
                *(str(invite), str(owner), str(images), str(number)),
            )
        yield running
