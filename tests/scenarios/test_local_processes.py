"""Processes of the demo and of the bench: who fails is named, and none is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ppfed.errors import ServiceError
from scenarios.local_processes import LocalProcesses, ppfed
from scenarios.process_tree import family, wait_until_gone

PRINTS_AND_FAILS = "print('no room left'); raise SystemExit(3)"
STARTS_ANOTHER = (
    "import subprocess, time; subprocess.Popen(['sleep', '600']); print('ready', flush=True); time.sleep(600)"
)


def test_a_process_that_fails_is_named_and_heard(tmp_path: Path) -> None:
    with LocalProcesses(tmp_path) as processes:
        processes.start("owner-0", sys.executable, "-c", PRINTS_AND_FAILS)
        processes.start("coordinator", "sleep", "600")
        with pytest.raises(ServiceError, match="owner-0 failed:\nno room left"):
            processes.wait("ever", lambda: False, 60)


def test_a_process_that_ended_because_all_is_done_has_not_failed(tmp_path: Path) -> None:
    with LocalProcesses(tmp_path) as processes:
        processes.start("owner-0", "true")
        processes.start("coordinator", "sleep", "600")
        processes.children["owner-0"].wait()
        processes.wait("now", lambda: True, 60)


def test_what_does_not_come_is_not_waited_for_longer_than_asked(tmp_path: Path) -> None:
    with LocalProcesses(tmp_path) as processes:
        processes.start("coordinator", sys.executable, "-c", STARTS_ANOTHER)
        processes.wait("a line", lambda: "ready" in processes.log("coordinator"), 60)
        with pytest.raises(ServiceError, match="waited 1 s for images:\ncoordinator: ready"):
            processes.wait("images", lambda: False, 1)


def test_nothing_comes_of_processes_that_have_ended(tmp_path: Path) -> None:
    with LocalProcesses(tmp_path) as processes:
        processes.start("coordinator", "echo", "stopped")
        processes.children["coordinator"].wait()
        with pytest.raises(ServiceError, match="every process has ended without images:\ncoordinator: stopped"):
            processes.wait("images", lambda: False, 60)
        with pytest.raises(ValueError, match="there is a process 'coordinator' already"):
            processes.start("coordinator", "true")


def test_all_are_gone_at_the_end_and_those_they_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody ends the one below but the block.
    monkeypatch.setattr("scenarios.local_processes._END_S", 1.0)
    with LocalProcesses(tmp_path) as processes:
        processes.start("coordinator", sys.executable, "-c", STARTS_ANOTHER)
        processes.wait("a line", lambda: "ready" in processes.log("coordinator"), 60)
        everyone = family(processes.children["coordinator"].pid)
        assert len(everyone) == 2
    assert wait_until_gone(everyone, 10) == []


def test_a_command_that_fails_is_named_without_what_follows_its_sub_commands(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"'ppfed key show' failed:") as failed:
        LocalProcesses(tmp_path).run(*ppfed("key", "show", "missing.key"))
    assert "missing.key" not in str(failed.value).splitlines()[0]
    assert "coordinator" in LocalProcesses(tmp_path).run(*ppfed("--help"))
