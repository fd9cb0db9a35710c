"""A federation of real processes: coordinator and owners, as ppfed starts them, on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.state import StateFolder
from ppfed.errors import ServiceError
from ppfed.services import free_port
from scenarios.bench.owner import FINGERPRINT
from scenarios.bench.process_tree import family, wait_until_gone

COORDINATOR = "coordinator"
_WAIT_S = 600.0
_POLL_S = 0.2
_END_S = 30.0


@dataclass(frozen=True)
class Federation:
    """Processes at work, and where they write.

    Attributes
    ----------
    folder : Path
    children : dict of str to Popen
        By role: ``coordinator``, ``owner-0``.
    """

    folder: Path
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def state(self) -> StateFolder:
        """The coordinator's."""
        return StateFolder(self.folder / COORDINATOR)

    def owner_folder(self, number: int) -> Path:
        """State folder of an owner."""
        return self.folder / f"owner-{number}"

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until something is so.

        Raises
        ------
        ServiceError
            If a process ends before, or it takes longer than ten minutes.
        """
        deadline = time.monotonic() + _WAIT_S
        while True:
            # Whoever ended before we look has done what it ended for.
            ended = [name for name, child in self.children.items() if child.poll() is not None]
            if ready():
                return
            if ended or time.monotonic() > deadline:
                name = ended[0] if ended else COORDINATOR
                text = (self.folder / f"{name}.log").read_text(errors="replace")
                raise ServiceError(f"the federation came to nothing; {name} said:\n{text.strip()}")
            time.sleep(_POLL_S)


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
    running = Federation(folder)
    state, log = str(running.state.folder), folder / f"{COORDINATOR}.log"
    try:
        running.children[COORDINATOR] = _start(
            log,
            *(_ppfed(), "coordinator", "start", "--state", state, "--owners", str(owners), "--quorum", str(owners)),
            *("--classes", "10", "--size", "32", "--fingerprint", FINGERPRINT, "--device", "cpu"),
            *("--address", f"localhost:{free_port()}", *options),
        )
        running.wait(lambda: "is open at" in log.read_text(errors="replace"))
        for number in range(owners):
            owner = running.owner_folder(number)
            invite = folder / f"{owner.name}.invite"
            _run(_ppfed(), "coordinator", "invite", owner.name, "--state", state, "--out", str(invite))
            running.children[owner.name] = _start(
                folder / f"{owner.name}.log",
                *(sys.executable, "-m", "scenarios.bench.owner"),
                *(str(invite), str(owner), str(images), str(number)),
            )
        yield running
    finally:
        # The ServerApp notices a little later that those who started it have gone, and it may be writing: whoever
        # removes the folder then finds files in it that were not there.
        everyone = [one for child in running.children.values() for one in family(child.pid)]
        for child in running.children.values():
            child.terminate()
        for child in running.children.values():
            child.wait(_END_S)
        wait_until_gone(everyone, _END_S)


def _ppfed() -> str:
    return str(Path(sys.executable).parent / "ppfed")


def _environment() -> dict[str, str]:
    # All processes share this machine's cores: more threads each would only wait for one another.
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _start(log: Path, *command: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def _run(*command: str) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=_WAIT_S)
    if done.returncode != 0:
        raise ServiceError(f"'{' '.join(command[:3])}' failed:\n{done.stderr.strip()}")
