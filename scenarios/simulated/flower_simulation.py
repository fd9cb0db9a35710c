"""The process that simulates a federation, and all that ppfed takes of Flower's simulation.

Flower makes a virtual node for each owner and runs the ClientApp in a pool of Ray's processes, any owner in any of
them. Nothing that an ``OwnerApp`` keeps between messages may therefore matter, and nothing does: an owner may be
restarted between any two messages in the deployed system too.

Two things differ from the deployed system. An owner's limit of answers (``clients/answers.py``) protects it from a
coordinator that is somebody else; here both are one, and a simulation that is killed often would run into it. And the
farewell is answered without writing the model: every owner would write the same one.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from clients.owner_app import OwnerApp
from coordinator.processes import Processes
from coordinator.server_app import run_federation
from coordinator.state import StateFolder
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, PPFedError
from ppfed.networks.config import count_weights
from ppfed.training.loop import Evaluation
from ppfed.wire.messages import FINISH, pack_request
from scenarios.simulated.simulation import MessageRecord, SimulationFailure, SimulationSetup

_WHO = "query.who"
_PARTITION_ID = "partition-id"
_ARRIVAL_S = 300.0
_PATIENCE_S = 2.0
_POLL_S = 0.01
_OWNERS_BYTES = 1 << 30
"""How much of owners' images and networks each process of Ray's keeps for the next round."""

_GPU_PARTS = 10_000
"""Ray divides a GPU into parts of this size at the smallest."""


class VirtualOwners(ClientApp):
    """The ClientApp of all owners: hands each message to the app of the owner whose virtual node it reached.

    Parameters
    ----------
    folder : str
        The state folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def __reduce__(self) -> tuple[type[VirtualOwners], tuple[str]]:
        # Ray carries it to its processes, with every message.
        return VirtualOwners, (self._folder,)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; what goes wrong is written to the log, and its reason answered."""
        partition = context.node_config[_PARTITION_ID]
        if message.metadata.message_type == _WHO:
            return Message(RecordDict({"who": ConfigRecord({_PARTITION_ID: partition})}), reply_to=message)
        if message.metadata.message_type == FINISH:
            return Message(pack_request(), reply_to=message)
        try:
            return _owners(self._folder)(int(partition))(message, context)
        except Exception as error:
            traceback.print_exc()
            reason = error.message if isinstance(error, PPFedError) else f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


# A message brings its VirtualOwners along, so this is what lasts in a process of Ray's. It saves time and no more.
@functools.lru_cache(1)
def _owners(folder: str) -> Callable[[int], ClientApp]:
    state = StateFolder(Path(folder))
    setup, settings = SimulationSetup.read(state), state.plan().settings
    torch.set_num_threads(setup.threads)
    images = sum(owner.train_images * owner.copies + owner.held_out_images for owner in setup.owners)
    image_bytes = images * settings.height * settings.width * settings.channels // len(setup.owners)

    @functools.lru_cache(max(1, _OWNERS_BYTES // (image_bytes + 4 * count_weights(settings.network_config()))))
    def owner(partition: int) -> ClientApp:
        one = setup.owners[partition]
        # No model is written: the farewell does not reach this app.
        model = state.folder / "models" / one.name
        device = torch.device(setup.device)
        return OwnerApp(one.name, settings, one.prepared(), device, model, _NoDisplay()).client_app()

    return owner


class _NoDisplay:
    """Shows nothing: the coordinator's records say how far a simulation is."""

    def shard_sent(self, number: int, total: int, size_bytes: int) -> None: ...
    def round_started(self, number: int, rounds: int, evaluation: Evaluation) -> None: ...
    def step(self, done: int, steps: int) -> None: ...
    def round_finished(self, number: int, rounds: int, train_loss: float) -> None: ...


class ObservedGrid(Grid):
    """Flower's grid, watched: it counts bytes, notices a failed owner, and hands answers over when they come.

    ``coordinator.conversation`` looks for answers four times a second, as befits a network; here they come in
    milliseconds, so looking waits a while for one.

    Parameters
    ----------
    grid : Grid
        Of the simulation runtime.
    state : StateFolder
    """

    def __init__(self, grid: Grid, state: StateFolder) -> None:
        self._grid = grid
        self._state = state
        self._owners: dict[int, str] = {}
        self._asked: dict[str, MessageRecord] = {}
        self._arrived: dict[str, Message] = {}
        self._next_look = 0.0
        self.failure: FederationError | None = None

    def seat(self, names: list[str]) -> dict[str, int]:
        """Ask each node for its partition id, and seat the owners at the nodes in this order.

        Raises
        ------
        FederationError
            If a node does not answer.
        """
        deadline = time.monotonic() + _ARRIVAL_S
        while len(list(self._grid.get_node_ids())) < len(names):
            _wait_until(deadline)
        asked = [
            Message(RecordDict({"who": ConfigRecord()}), node, _WHO, ttl=_ARRIVAL_S, group_id="arrival")
            for node in self._grid.get_node_ids()
        ]
        waiting = set(self._grid.push_messages(asked))
        nodes: dict[str, int] = {}
        while waiting:
            for answer in self._grid.pull_messages(waiting):
                waiting.discard(answer.metadata.reply_to_message_id)
                if answer.has_error():
                    raise FederationError(f"a virtual owner did not start: {answer.error.reason}")
                partition = answer.content.config_records["who"][_PARTITION_ID]
                nodes[names[int(str(partition))]] = answer.metadata.src_node_id
            _wait_until(deadline)
        self._owners = {node: name for name, node in nodes.items()}
        return nodes

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Pass on."""
        return self._grid.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        """Pass on."""
        return self._grid.create_message(*arguments, **named)

    def send_and_receive(self, *_arguments: Any, **_named: Any) -> Iterable[Message]:
        """Refuse: what is not asked through ``push_messages`` is not counted."""
        raise NotImplementedError("ppfed asks and pulls")

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes; none after a failure, so that nobody waits for their farewells."""
        return [] if self.failure else self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Ask, and count."""
        taken = []
        for message in messages:
            sent_bytes = _content_bytes(message.content)
            for question in self._grid.push_messages([message]):
                self._asked[question] = MessageRecord(
                    owner=self._owners[message.metadata.dst_node_id],
                    question=_question_name(message),
                    sent_bytes=sent_bytes,
                    received_bytes=0,
                )
                taken.append(question)
        return taken

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers that are there; wait for one, to whatever question, if none is."""
        wanted = set(message_ids)
        # Whoever waits looks at one question after another.
        deadline = time.monotonic() + _PATIENCE_S / max(1, len(self._asked))
        while True:
            self._look()
            if self._arrived or time.monotonic() > deadline:
                return [self._arrived.pop(question) for question in wanted & self._arrived.keys()]
            time.sleep(_POLL_S)

    def _look(self) -> None:
        # Flower goes through all of its messages to find those that are asked for.
        if time.monotonic() >= self._next_look:
            for answer in self._grid.pull_messages(set(self._asked)):
                self._take(answer)
            self._next_look = time.monotonic() + _POLL_S

    def _take(self, answer: Message) -> None:
        question = answer.metadata.reply_to_message_id
        asked = self._asked.pop(question)
        self._arrived[question] = answer
        if not answer.has_error():
            received_bytes = _content_bytes(answer.content)
            asked.model_copy(update={"received_bytes": received_bytes}).append(self._state)
        elif self.failure is None:
            self.failure = FederationError(f"{asked.owner} failed: {answer.error.reason or answer.error.code}")
            # In the deployed system an owner may come back. Here the same would happen again.
            self._state.stop_request.touch()


def _content_bytes(content: RecordDict) -> int:
    arrays = sum(record.count_bytes() for record in content.array_records.values())
    # Flower cannot count an empty text, so the small records are written out.
    others = [*content.metric_records.values(), *content.config_records.values()]
    return arrays + sum(len(record.deflate()) for record in others)


def _question_name(message: Message) -> str:
    """Name a question by its group, its type, and what it asks for; the same after an interruption."""
    parts = [message.metadata.group_id, message.metadata.message_type]
    # The farewell's settings hold the model card, which has a date.
    if message.metadata.message_type != FINISH:
        parts += [
            f"{key}={value}"
            for record in message.content.config_records.values()
            for key, value in sorted(record.items())
            if isinstance(value, int | str)
        ]
    return " ".join(parts)


def _wait_until(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise FederationError(f"Flower's simulation did not start within {_ARRIVAL_S:.0f} s")
    time.sleep(_POLL_S)


class _Server:
    """The ServerApp: seats the owners and runs the federation, and keeps what it raises."""

    def __init__(self, state: StateFolder, setup: SimulationSetup) -> None:
        self._state = state
        self._setup = setup
        self.error: Exception | None = None
        self.done = False

    def app(self) -> ServerApp:
        app = ServerApp()

        @app.main()
        def main(grid: Grid, _context: Context) -> None:
            try:
                self._run(grid)
                self.done = True
            except Exception as error:
                traceback.print_exc()
                self.error = error

        return app

    def _run(self, grid: Grid) -> None:
        # Torch counts for each thread apart, and Flower made this one.
        torch.set_num_threads(self._setup.coordinator_threads)
        observed = ObservedGrid(grid, self._state)
        nodes = observed.seat([owner.name for owner in self._setup.owners])
        with self._state.changing_owners() as owners:
            for name, owner in owners.items():
                if owner.enrolled is not None:
                    enrolled = owner.enrolled.model_copy(update={"node_id": nodes[name]})
                    owners[name] = owner.model_copy(update={"enrolled": enrolled})
        run_federation(observed, self._state, Processes(self._setup.device))
        if observed.failure is not None:
            status = self._state.status()
            failed = {"phase": Phase.FAILED, "message": observed.failure.message}
            self._state.set_status(status.model_copy(update=failed))
            raise observed.failure


def simulate_here(state: StateFolder) -> None:
    """Run the federation in this process.

    Raises
    ------
    PPFedError
        If it fails.
    """
    setup = SimulationSetup.read(state)
    gpus = 1 if setup.device == "cuda" else 0
    server = _Server(state, setup)
    run_simulation(
        server.app(),
        VirtualOwners(str(state.folder)),
        num_supernodes=len(setup.owners),
        backend_name="ray",
        backend_config={
            "init_args": {
                # Never a cluster that happens to run on this machine.
                "address": "local",
                "num_cpus": setup.jobs,
                "num_gpus": gpus,
                "object_store_memory": setup.object_store_bytes,
                "_temp_dir": str(setup.ray_folder),
                "log_to_driver": True,
            },
            "client_resources": {"num_cpus": 1, "num_gpus": gpus * (_GPU_PARTS // setup.jobs) / _GPU_PARTS},
        },
    )
    if server.error is not None:
        raise server.error
    if not server.done:
        raise FederationError("Flower's simulation ended before the federation did")


def main() -> None:
    """Simulate the federation whose state folder the command line names, and end this process."""
    _end_with_the_caller()
    state = StateFolder(Path(sys.argv[1]))
    code = 1
    try:
        with state.running():
            simulate_here(state)
        code = 0
    except PPFedError as error:
        traceback.print_exc()
        SimulationFailure(message=error.message, hint=error.hint).write(state)
    except Exception as error:
        traceback.print_exc()
        SimulationFailure(message=f"internal error of the simulation ({type(error).__name__}): {error}").write(state)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of Flower's wait for what will not come where a simulation failed.
    os._exit(code)


def _end_with_the_caller() -> None:
    """End this process and all of Ray's when the caller closes the pipe, which it also does when it is killed."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
