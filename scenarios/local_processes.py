"""Processes of a federation on this machine, started as a user would, each with a log; all end with the block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from ppfed.errors import ServiceError
from scenarios.process_tree import family, wait_until_gone

_POLL_S = 0.2
_END_S = 30.0
_COMMAND_S = 600.0
_LAST_LINES = 10


class LocalProcesses:
    """Starts processes in a folder; use it as a context manager, so that none is left behind.

    Parameters
    ----------
    folder : Path
        Exists. Processes work in it, and their logs lie in it: ``NAME.log``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, *_exception: object) -> None:
        # The ServerApp notices a little later that those who started it have gone, and it may be writing: whoever
        # removes the folder then finds files in it that were not there.
        running = [child for child in self._children.values() if child.poll() is None]
        everyone = [one for child in running for one in family(child.pid)]
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for one in wait_until_gone(everyone, _END_S):
            with suppress(OSError):
                os.kill(one, signal.SIGKILL)

    @property
    def children(self) -> Mapping[str, subprocess.Popen[bytes]]:
        """What was started, by name."""
        return MappingProxyType(self._children)

    def log(self, name: str) -> str:
        """Return what a process has printed so far."""
        return self._log(name).read_text(errors="replace")

    def start(self, name: str, *command: str) -> None:
        """Start a process in the background, under a name that no other has."""
        if name in self._children:
            raise ValueError(f"there is a process {name!r} already")
        path = self._log(name)
        with path.open("wb") as output:
            self._children[name] = subprocess.Popen(
                command,
                env=_environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *command: str) -> str:
        """Run a command to its end, and return what it printed.

        Raises
        ------
        ServiceError
            If it fails, or takes longer than ten minutes.
        """
        named = " ".join((Path(command[0]).name, *command[1:3]))
        try:
            done = subprocess.run(
                command,
                env=_environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_COMMAND_S,
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(f"'{named}' was not done after {_COMMAND_S:.0f} s") from None
        if done.returncode != 0:
            raise ServiceError(f"'{named}' failed:\n{done.stderr.strip()}")
        return done.stdout

    def wait(self, what: str, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something is so; asked five times a second.

        Raises
        ------
        ServiceError
            If a process fails or all have ended before, or it takes longer than ``timeout_s``; with what they said.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            # Whoever ended before we look has done what it ended for.
            ended = {name: code for name, child in self._children.items() if (code := child.poll()) is not None}
            if ready():
                return
            failed = [name for name, code in ended.items() if code != 0]
            if failed:
                raise ServiceError(f"{failed[0]} failed:\n{self.log(failed[0]).strip()}")
            if len(ended) == len(self._children):
                raise ServiceError(f"every process has ended without {what}:\n{self._said()}")
            if time.monotonic() > deadline:
                raise ServiceError(f"waited {timeout_s:.0f} s for {what}:\n{self._said()}")
            time.sleep(_POLL_S)

    def _said(self) -> str:
        """Return the last lines of every log."""
        lines = [f"{name}: {line}" for name in self._children for line in self.log(name).splitlines()[-_LAST_LINES:]]
        return "\n".join(lines)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def ppfed(*arguments: str) -> tuple[str, ...]:
    """Return the command line of a ``ppfed`` command of this installation."""
    return (str(Path(sys.executable).parent / "ppfed"), *arguments)


def _environment() -> dict[str, str]:
    # All processes share this machine's cores: more threads each would only wait for one another.
    return {**os.environ, "OMP_NUM_THREADS": "1"}
