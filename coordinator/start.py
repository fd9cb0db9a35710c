"""``ppfed coordinator start``: brings up the services, waits for the owners, watches the run, and ends in order."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.front_door import FrontDoor, FrontDoorServer, Traffic
from coordinator.pki import ensure_certificates
from coordinator.plan import split_address
from coordinator.processes import Processes
from coordinator.state import STATE_VARIABLE, StateFolder, Status
from coordinator.superlink import SuperLink
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, ServiceError, UsageError

_TICK_S = 0.5
_RUN_CHECK_S = 15.0
_STOP_TIMEOUT_S = 60.0
_LINGER_S = 8.0
_ENDED = (Phase.FINISHED, Phase.STOPPED, Phase.FAILED)

Watcher = Callable[[Status, Traffic], None]


def run_coordinator(state: StateFolder, processes: Processes, on_ready: Callable[[], None], watch: Watcher) -> Status:
    """Run the federation in ``state`` until it has ended or was stopped.

    Parameters
    ----------
    state : StateFolder
        Already created.
    processes : Processes
        On what to train.
    on_ready : callable
        Called when owners can join.
    watch : callable
        Called twice a second with the status and the traffic.

    Returns
    -------
    Status
        How it ended.

    Raises
    ------
    UsageError
        If the federation has finished already, another coordinator works in the folder, or the processes make no sense
        or should compile and cannot.
    ServiceError
        If a service does not start or goes away.
    """
    if state.status().phase is Phase.FINISHED:
        raise UsageError(
            f"this federation has finished: its model is {state.model}",
            hint="Send that folder to an owner that lacks it. For a new federation name another folder with --state.",
        )
    processes.check(state.plan().settings)
    processes.check_machine(state.compiled)
    with state.running():
        state.set_status(state.status().model_copy(update={"phase": Phase.WAITING, "message": ""}))
        plan = state.plan()
        host, port = split_address(plan.listen)
        certificates = ensure_certificates(
            state.pki, split_address(plan.address)[0], datetime.datetime.now(datetime.UTC)
        )
        superlink = SuperLink(
            state.flower,
            state.logs,
            certificates,
            {
                STATE_VARIABLE: str(state.folder),
                **processes.environment(),
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            },
        )
        door: FrontDoorServer | None = None
        try:
            superlink.start()
            front = FrontDoor(state, superlink.url, certificates.ca, superlink.register_node)
            door = FrontDoorServer(front, host, port, certificates)
            door.start()
            state.audit("started", address=plan.address)
            state.open_mark.touch()
            on_ready()
            return _Supervisor(state, superlink, front.traffic, watch).run()
        finally:
            if door is not None:
                state.set_traffic(front.traffic.received_bytes)
                door.stop()
            superlink.stop()
            state.open_mark.unlink(missing_ok=True)
            state.audit("ended", phase=str(state.status().phase))


def start_detached(state: StateFolder, processes: Processes) -> Path:
    """Start the coordinator of an existing folder in the background, and wait until owners can join.

    Returns
    -------
    Path
        Where its output goes.

    Raises
    ------
    UsageError
        If a coordinator works in the folder already.
    ServiceError
        If it does not start; with what it said.
    """
    if state.running_pid() is not None:
        raise UsageError(
            f"a coordinator is running in {state.folder} already",
            hint=f"See it with 'ppfed coordinator status --state {state.folder}', or stop it with 'stop'.",
        )
    log = state.logs / "coordinator.log"
    said_before = log.stat().st_size if log.exists() else 0
    state.open_mark.unlink(missing_ok=True)
    command = [str(Path(sys.executable).parent / "ppfed"), "coordinator", "start", "--state", str(state.folder)]
    with log.open("ab") as output:
        child = subprocess.Popen(
            [*command, *processes.options()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while not state.open_mark.exists():
        if child.poll() is not None:
            said = log.read_bytes()[said_before:].decode(errors="replace")
            # What came before was said here too.
            _, _, reason = said.rpartition("error: ")
            message, _, hint = reason.partition("\nnext: ")
            raise ServiceError(f"the coordinator did not start: {message.strip()}", hint=hint.strip())
        time.sleep(_TICK_S / 5)
    return log


def request_stop(state: StateFolder) -> bool:
    """Ask a running coordinator to stop, and wait until it has.

    Returns
    -------
    bool
        False if none was running.

    Raises
    ------
    FederationError
        If it does not stop in time.
    """
    pid = state.running_pid()
    if pid is None:
        return False
    state.stop_request.touch()
    deadline = time.monotonic() + _STOP_TIMEOUT_S + 2 * _LINGER_S
    while state.running_pid() is not None:
        if time.monotonic() > deadline:
            raise FederationError(f"the coordinator (process {pid}) does not stop", hint=f"kill {pid} ends it at once.")
        time.sleep(_TICK_S)
    return True


class _Supervisor:
    def __init__(self, state: StateFolder, superlink: SuperLink, traffic: Traffic, watch: Watcher) -> None:
        self._state = state
        self._superlink = superlink
        self._traffic = traffic
        self._watch = watch
        self._plan = state.plan()
        self._started = time.monotonic()
        # Only the first run needs them online; a later one waits for owners itself, and not for ever.
        self._begun = state.begun

    def run(self) -> Status:
        while not self._enough_here():
            if self._state.stop_request.exists():
                return self._end_waiting()
            self._tick()
        run_id = self._superlink.submit()
        self._state.audit("run submitted", run=str(run_id))
        next_check, heard = time.monotonic() + _RUN_CHECK_S, ""
        stop_deadline: float | None = None
        while True:
            self._tick()
            status = self._state.status()
            if status.phase in _ENDED:
                return status
            if self._state.stop_request.exists() and stop_deadline is None:
                stop_deadline = time.monotonic() + _STOP_TIMEOUT_S
            if stop_deadline is not None and time.monotonic() > stop_deadline:
                self._superlink.stop_run(run_id)
                return self._end_waiting()
            if time.monotonic() > next_check:
                next_check = time.monotonic() + _RUN_CHECK_S
                # A ServerApp that writes its status is alive; asking Flower starts a process of 70 MiB.
                if status.updated_at == heard:
                    self._check_run(run_id)
                heard = status.updated_at

    def _enough_here(self) -> bool:
        enrolled = set(self._state.owners().enrolled())
        if not self._begun:
            return len(enrolled & self._traffic.online()) >= self._plan.begin_with
        # One whose invite was replaced joins again, or never: as with those that are gone, not for ever.
        over = time.monotonic() - self._started > self._plan.deadline_s
        return len(enrolled) >= (self._plan.quorum if over else self._plan.begin_with)

    def _tick(self) -> None:
        self._superlink.require_running()
        self._state.set_traffic(self._traffic.received_bytes)
        self._watch(self._state.status(), self._traffic)
        time.sleep(_TICK_S)

    def _check_run(self, run_id: int) -> None:
        """Ask Flower about the run: a ServerApp that died wrote no status."""
        flower = self._superlink.run_status(run_id)
        if flower.startswith("finished") and self._state.status().phase not in _ENDED:
            status = self._state.status().model_copy(
                update={"phase": Phase.FAILED, "message": f"the training process ended ({flower})"}
            )
            self._state.set_status(status)
            raise ServiceError(
                f"the training process ended without a result ({flower})",
                hint=f"See {self._state.logs / 'superexec.log'}, then start again: it goes on where it was.",
            )

    def _end_waiting(self) -> Status:
        """Stop outside a run: owners that wait learn it from the front door, which stays a little longer."""
        status = self._state.status().model_copy(
            update={"phase": Phase.STOPPED, "message": "the coordinator was asked to stop"}
        )
        self._state.set_status(status)
        deadline = time.monotonic() + _LINGER_S
        while self._traffic.online() and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        return status
