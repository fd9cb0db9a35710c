"""Child processes: what they are told, how they end, and that they end with us."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppfed import services
from ppfed.errors import ServiceError
from ppfed.services import Service, flower_command, flower_environment, free_port

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]
# Generous: on a busy machine an interpreter takes seconds to start.
PATIENCE_S = 30.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[[list[str]], Service]]:
    made: list[Service] = []

    def make(arguments: list[str]) -> Service:
        made.append(Service("a service", arguments, {"PATH": os.defpath}, tmp_path / "logs" / "service.log"))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and only waits for its parent does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_no_secret_of_ours_reaches_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PPFED_KEY", "PPFED_PASSPHRASE", "PPFED_STATE", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "PYTHONPATH"):
        monkeypatch.setenv(name, "s3cret")
    environment = flower_environment(tmp_path, {"EXTRA": "1"})
    assert "s3cret" not in " ".join(environment.values())
    assert not [name for name in environment if name.startswith("PPFED")]
    assert environment["EXTRA"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)


def test_flower_neither_phones_home_nor_installs(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_child_sees_exactly_its_environment(
    service: Callable[[list[str]], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPFED_PASSPHRASE", "s3cret")
    child = service([sys.executable, "-c", "import os; print(*sorted(os.environ))"]).start()
    wait_for(lambda: child.exit_code() is not None)
    assert set(child.log_tail().split()) - {"LC_CTYPE"} == {"PATH"}  # Python may set its locale itself


@pytest.mark.parametrize("name", ["flwr", "flower-superlink", "flower-superexec", "flower-supernode"])
def test_flowers_commands_lie_beside_this_interpreter(name: str) -> None:
    assert os.access(flower_command(name), os.X_OK)


def test_a_free_port_can_be_listened_on() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_a_service_starts_and_stops(service: Callable[[list[str]], Service]) -> None:
    child = service(SLEEP)
    assert child.exit_code() is None
    child.stop()  # nothing to stop yet
    child.start().wait_until(lambda: "ready" in child.log_tail(), PATIENCE_S)
    child.require_running()
    child.stop()
    assert child.exit_code() == -signal.SIGTERM
    child.stop()  # once more does no harm


def test_a_service_that_does_not_listen_is_killed(
    service: Callable[[list[str]], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_TERMINATE_GRACE_S", 0.2)
    child = service(STUBBORN).start()
    child.wait_until(lambda: "ready" in child.log_tail(), PATIENCE_S)
    child.stop()
    assert child.exit_code() == -signal.SIGKILL


def test_an_ended_service_is_reported_with_the_end_of_its_log(service: Callable[[list[str]], Service]) -> None:
    child = service([sys.executable, "-c", "for n in range(9): print('line', n)\nraise SystemExit(7)"]).start()
    with pytest.raises(ServiceError, match="ended with exit code 7") as caught:
        child.wait_until(lambda: False, PATIENCE_S)
    assert "line 8" in caught.value.message
    assert "line 3" not in caught.value.message
    assert str(child.log) in caught.value.hint


def test_a_service_that_is_not_ready_in_time_is_reported(service: Callable[[list[str]], Service]) -> None:
    child = service(SLEEP).start()
    with pytest.raises(ServiceError, match="was not ready"):
        child.wait_until(lambda: False, 0.2)


def test_the_log_is_appended_to(service: Callable[[list[str]], Service]) -> None:
    for word in ("first", "second"):
        child = service([sys.executable, "-c", f"print({word!r})"]).start()
        wait_for(lambda child=child: child.exit_code() is not None)
    assert child.log_tail() == "first\nsecond"


def assert_gone_with_its_parent(script: str) -> None:
    """Kill the process that runs ``script``, which prints the number of another one."""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    try:
        wait_for(lambda: not alive(child))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="uses prctl")
def test_a_service_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from ppfed.services import Service
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        child = Service("child", sleep, {{}}, Path({str(tmp_path)!r}) / "log")
        print(child.start()._process.pid, flush=True)
        time.sleep(60)
    """
    assert_gone_with_its_parent(textwrap.dedent(script))


def test_what_a_service_starts_ends_with_it() -> None:
    grandchild = """
        import os, time
        from ppfed.services import end_with_parent
        end_with_parent()
        print(os.getpid(), flush=True)
        time.sleep(60)
    """
    script = f"""
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", {textwrap.dedent(grandchild)!r}])
        time.sleep(60)
    """
    assert_gone_with_its_parent(textwrap.dedent(script))
