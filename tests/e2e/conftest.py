"""Real processes over TLS on the loopback interface, started as a user would start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ppfed.services import free_port

_WAIT_S = 240.0


class Ppfed:
    """Starts ``ppfed`` commands in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[subprocess.Popen[bytes]] = []

    def environment(self) -> dict[str, str]:
        # One thread each: the tests share two cores.
        return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).parent / "ppfed"), *arguments]

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_WAIT_S,
        )
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            child = subprocess.Popen(
                self.command(*arguments),
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.terminate()
        for child in self.children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = _WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for: {what}"
        time.sleep(0.1)


class Federation:
    """A coordinator and its owners: ``a`` and ``b``, half of scikit-learn's digits each."""

    def __init__(self, folder: Path, exchange: str, *options: str) -> None:
        self.ppfed = Ppfed(folder)
        self.folder = folder
        self.state = folder / "coordinator"
        self.key = folder / "key"
        self.log = folder / "coordinator.log"
        self._options = [
            *("--exchange", exchange, "--owners", "2", "--classes", "10", "--size", "8", "--channels", "1"),
            *("--base-maps", "4", "--batch-size", "64", "--no-horizontal-flip"),
            *("--address", f"localhost:{free_port()}"),
            *options,
        ]
        self.ppfed.run("key", "new", str(self.key))
        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for index, label in enumerate(digits.target):
            path = folder / "data" / "ab"[index % 2] / str(label) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(path)

    def start_coordinator(self) -> subprocess.Popen[bytes]:
        offset = self.log.stat().st_size if self.log.exists() else 0
        options = [] if self.state.exists() else self._options
        child = self.ppfed.start(
            self.log, "coordinator", "start", "--state", str(self.state), "--device", "cpu", *options
        )

        def is_open() -> bool:
            assert child.poll() is None, self.log.read_text()
            return "is open at" in self.log.read_text()[offset:]

        wait_for(is_open, "the coordinator to open")
        return child

    def invite(self, owner: str) -> Path:
        path = self.folder / f"{owner}.invite"
        if not path.exists():
            self.ppfed.run("coordinator", "invite", owner, "--state", str(self.state), "--out", str(path))
        return path

    def join_options(self, owner: str, *, key: Path | None = None, data: Path | None = None) -> list[str]:
        return [
            *("client", "join", "--yes", "--key", str(key or self.key)),
            *("--data", str(data or self.folder / "data" / owner)),
            *("--invite", str(self.invite(owner)), "--state", str(self.folder / f"owner-{owner}"), "--device", "cpu"),
        ]

    def start_owner(self, owner: str) -> subprocess.Popen[bytes]:
        return self.ppfed.start(self.folder / f"{owner}.log", *self.join_options(owner))

    def owner_log(self, owner: str) -> str:
        path = self.folder / f"{owner}.log"
        return path.read_text() if path.exists() else ""

    def status(self) -> dict[str, object]:
        done = self.ppfed.run("coordinator", "status", "--state", str(self.state), "--json")
        report: dict[str, object] = json.loads(done.stdout)
        return report

    def wait(self, *children: subprocess.Popen[bytes]) -> list[int]:
        return [child.wait(_WAIT_S) for child in children]


def kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """Make federations; all their processes end with the test."""
    made: list[Federation] = []

    def make(exchange: str, *options: str) -> Federation:
        made.append(Federation(tmp_path, exchange, *options))
        return made[-1]

    yield make
    for one in made:
        one.ppfed.close()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def kill_hard() -> Callable[[subprocess.Popen[bytes]], None]:
    return kill
