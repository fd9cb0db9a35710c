"""Child processes under supervision: Flower's services, and at the coordinator what trains on several GPUs.

Both roles start Flower's public commands rather than its private entry points. A child gets an environment of its own
choosing, writes its output to a log file, and dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from ppfed.errors import ServiceError

_TERMINATE_GRACE_S = 10.0
_PARENT_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1
_LOG_TAIL_LINES = 5
CHUNK_BYTES = 8 << 20
"""Flower cuts an array into objects of this size and holds several copies of two of them at each hop."""

_PASSED_ON = ("HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "2"}
"""For the GNU C library; others ignore it. Flower handles each object in one of forty threads, and by default memory
for it stays with the thread that last had it: the SuperLink kept what several messages need. What is as large as this
is handed back to the system at once."""


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Build the environment of a child process.

    Only what is listed is passed on, so that a secret in the caller's environment reaches no child.

    Parameters
    ----------
    extra : mapping of str to str
        Added last.
    """
    inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**inherited, "PATH": path, **(extra or {})}


def flower_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Build the environment of a Flower process, which neither phones home, nor looks for updates, nor installs.

    Parameters
    ----------
    home : Path
        Flower's own folder, private to this federation.
    extra : mapping of str to str
        Added last.
    """
    return {
        **child_environment(),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES),
        "RAY_USAGE_STATS_ENABLED": "0",
        **_MALLOC,
        **(extra or {}),
    }


def flower_command(name: str) -> str:
    """Path of one of Flower's commands, installed beside this interpreter."""
    return str(Path(sys.executable).parent / name)


def flower_service(name: str, around: str) -> list[str]:
    """Return how one of Flower's services is started: its command, with a module of ours around it."""
    # Modules come from where ppfed is installed, not from the folder that somebody happens to be in.
    return [sys.executable, "-P", "-m", around, name]


def free_port() -> int:
    """Find a TCP port on the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_with_parent(parent: int | None = None) -> None:
    """End this process as soon as the one that started it is gone.

    For what Flower starts: a SuperExec that is ended leaves its ServerApp behind, which would wait for a SuperLink that
    never comes back, for ever.

    Parameters
    ----------
    parent : int or None
        Process id of the parent, for whoever knows it; else a parent that has gone already is not noticed.
    """
    if parent is None:
        parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        # At once: the main thread may be in the middle of a wait. Files are replaced whole.
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class Service:
    """A child process that runs until it is stopped.

    Parameters
    ----------
    name : str
        For messages.
    arguments : sequence of str
        The command and its arguments. Everyone on this machine can read them: no secrets.
    environment : mapping of str to str
    log : Path
        Its output is appended here.
    ends_by_itself : bool
        The process watches its parent (``end_with_parent``): nothing has to run between fork and exec, which a
        process with threads cannot do safely.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        ends_by_itself: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self._watched = sys.platform == "linux" and not ends_by_itself
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A session of its own: ctrl-C reaches us, and we stop our children in order.
                start_new_session=True,
                # Such services are started before this process has threads that could hold a lock across the fork, or,
                # a SuperNode that is started again, while they rest.
                preexec_fn=_die_with_parent if self._watched else None,  # noqa: PLW1509
            )
        return self

    def exit_code(self) -> int | None:
        """Exit code, or None while the process runs."""
        return None if self._process is None else self._process.poll()

    def require_running(self) -> None:
        """Raise ServiceError if the process has ended."""
        code = self.exit_code()
        if code is not None:
            raise ServiceError(
                f"{self.name} ended with exit code {code}:\n{self.log_tail()}", hint=f"Its log is {self.log}."
            )

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``ready`` returns true.

        Raises
        ------
        ServiceError
            If the process ends first, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.require_running()
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} was not ready after {timeout_s:.0f} s", hint=f"Its log is {self.log}.")
            time.sleep(0.1)

    def stop(self) -> None:
        """Ask the process to end, and kill it if it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_TERMINATE_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LOG_TAIL_LINES:])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
