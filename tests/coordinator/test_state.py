"""The coordinator's one folder: two processes change it, one works in it, and others read it."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.state import Enrolled, Owner, Plan, RoundRecord, StateFolder, Status, now_text
from ppfed.enrolment import Phase
from ppfed.errors import UsageError
from ppfed.federation import FederationSettings


def _plan(settings: FederationSettings) -> Plan:
    return Plan(settings=settings, address="localhost:9443", listen="127.0.0.1:9443", quorum=2, begin_with=2)


@pytest.fixture
def state(tmp_path: Path, make_settings: Callable[..., FederationSettings]) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.create(_plan(make_settings()))
    return folder


def test_the_folder_is_for_this_user_alone(tmp_path: Path, make_settings: Callable[..., FederationSettings]) -> None:
    old = os.umask(0)
    try:
        folder = StateFolder(tmp_path / "deep" / "state")
        folder.create(_plan(make_settings()))
        folder.audit("started")
        folder.set_status(Status())
        folder.set_traffic({"a": 1})
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.folder.stat().st_mode) == 0o700
    for name in ("federation.json", "audit.jsonl", "status.json", "traffic.json"):
        assert stat.S_IMODE((folder.folder / name).stat().st_mode) == 0o600


def test_the_plan_is_read_as_it_was_written(state: StateFolder) -> None:
    assert state.exists()
    assert StateFolder(state.folder).plan() == state.plan()


def test_a_missing_or_damaged_plan_says_what_to_do(tmp_path: Path, state: StateFolder) -> None:
    with pytest.raises(UsageError, match="there is no federation") as caught:
        StateFolder(tmp_path / "nothing").plan()
    assert "coordinator start" in caught.value.hint
    (state.folder / "federation.json").write_text("{}")
    with pytest.raises(UsageError, match=r"cannot be read: .*Field required") as caught:
        state.plan()
    assert "another version of ppfed" in caught.value.hint


def test_status_and_traffic_round_trip(state: StateFolder) -> None:
    assert state.status() == Status()
    assert state.traffic() == {}
    record = RoundRecord(round=1, train_loss=0.5, accuracy=1 / 3, seconds=0.1, owners=2)
    state.set_status(Status(phase=Phase.TRAINING, message="m", rounds=[record], images_received=3, images_expected=4))
    state.set_traffic({"anna": 5})
    read = StateFolder(state.folder).status()
    assert read.updated_at
    assert read.rounds == [record]
    assert (read.phase, read.message, read.images_received, read.images_expected) == (Phase.TRAINING, "m", 3, 4)
    assert StateFolder(state.folder).traffic() == {"anna": 5}


def test_the_audit_trail_is_one_json_object_a_line(state: StateFolder) -> None:
    state.audit("refused", owner="anna", reason='a "quoted"\nreason', round=1, loss=0.5, nothing=None)
    state.audit("ended")
    lines = [json.loads(line) for line in (state.folder / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["refused", "ended"]
    assert lines[0]["reason"] == 'a "quoted"\nreason'
    assert all(line["at"].endswith("+00:00") for line in lines)


def add_owners(folder: Path, prefix: str, count: int, begin: multiprocessing.synchronize.Barrier) -> None:
    state = StateFolder(folder)
    begin.wait(60)
    for number in range(count):
        with state.changing_owners() as owners:
            owners[f"{prefix}{number}"] = Owner(name=prefix, token_sha256="0", invited_at=now_text())


def test_two_processes_change_the_owners_and_none_is_lost(state: StateFolder) -> None:
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(2)
    children = [context.Process(target=add_owners, args=(state.folder, prefix, 20, begin)) for prefix in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert set(state.owners().owners) == {f"{prefix}{number}" for prefix in "ab" for number in range(20)}


def test_an_error_leaves_the_owners_as_they_were(state: StateFolder) -> None:
    def fail() -> None:
        with state.changing_owners() as owners:
            owners["anna"] = Owner(name="anna", token_sha256="0", invited_at=now_text())
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert state.owners().owners == {}
    with state.changing_owners():
        pass  # the lock is free


def test_only_one_coordinator_works_in_a_folder(state: StateFolder) -> None:
    assert state.running_pid() is None
    with state.running():
        assert StateFolder(state.folder).running_pid() == os.getpid()
        with pytest.raises(UsageError, match="a coordinator is running in"), StateFolder(state.folder).running():
            pytest.fail("two at once")
        assert state.running_pid() == os.getpid()  # asking and trying did not take the lock away
    assert state.running_pid() is None
    with state.running():
        pass


def test_a_killed_coordinator_leaves_the_folder_free(state: StateFolder) -> None:
    script = (
        "import sys, time; from pathlib import Path; from coordinator.state import StateFolder\n"
        "with StateFolder(Path(sys.argv[1])).running():\n    print('running', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(state.folder)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        assert state.running_pid() == child.pid
        child.kill()
    assert state.running_pid() is None
    with state.running():
        assert state.running_pid() == os.getpid()


def test_looking_does_not_keep_a_coordinator_from_starting(state: StateFolder) -> None:
    """'coordinator status' in a loop beside 'coordinator start': looking takes the lock for a moment."""
    (state.folder / "running").touch()
    with (state.folder / "running").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as running_pid does
        threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with state.running():
            assert state.running_pid() == os.getpid()


def test_an_old_stop_request_does_not_stop_a_new_coordinator(state: StateFolder) -> None:
    state.stop_request.touch()
    with state.running():
        assert not state.stop_request.exists()
        state.stop_request.touch()
    assert not state.stop_request.exists()


def test_the_owners_joining_times_are_the_ones_on_record(state: StateFolder) -> None:
    assert state.joined_at() == {}
    enrolled = Enrolled(
        node_key="k",
        node_id=1,
        fingerprint="0" * 16,
        train_images=1,
        held_out_images=0,
        copies=1,
        at="1970-01-01T01:00:02.500+01:00",
    )
    with state.changing_owners() as owners:
        owners["anna"] = Owner(name="anna", token_sha256="0", invited_at=now_text(), enrolled=enrolled)
        owners["bert"] = Owner(name="bert", token_sha256="1", invited_at=now_text())
    assert state.joined_at() == {"anna": 2.5}
    before = time.time()
    with state.changing_owners() as owners:
        joined = enrolled.model_copy(update={"at": now_text()})
        owners["bert"] = owners["bert"].model_copy(update={"enrolled": joined})
    # To the millisecond: it is compared with the clock of whoever asks.
    assert before - 0.001 <= state.joined_at()["bert"] <= time.time()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owners": {"anna": {"name": "anna"}}}', "\x00" * 50])
def test_a_damaged_list_of_owners_is_named_and_left_alone(state: StateFolder, content: str) -> None:
    path = state.folder / "owners.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"owners\.json is damaged") as caught:
        state.owners()
    assert "invite every owner again" in caught.value.hint
    with pytest.raises(UsageError), state.changing_owners():
        pass
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "{", "[]", '{"phase": "x"}', '{"anna": "x"}', "\x00" * 50])
def test_a_damaged_status_or_traffic_is_started_afresh_and_said_once(state: StateFolder, content: str) -> None:
    for name in ("status.json", "traffic.json"):
        (state.folder / name).write_text(content)
    for _ in range(3):
        assert (state.status(), state.traffic()) == (Status(), {})
    lines = [json.loads(line) for line in (state.folder / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["reason"].split()[0]) for line in lines] == [
        ("warning", "status.json"),
        ("warning", "traffic.json"),
    ]
    assert (state.folder / "status.json.damaged").read_text() == content
    state.set_traffic({"anna": 3})
    assert state.traffic() == {"anna": 3}
