"""A federation in memory: Flower's grid with the owners' real ClientApps behind it, and faults on request."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from clients.flower_executor import _public_reason
from clients.owner_app import OwnerApp
from clients.prepared import Prepared
from coordinator import conversation, intake
from coordinator.conversation import Conversation
from coordinator.state import Enrolled, Owner, Plan, StateFolder, now_text
from ppfed.federation import FederationSettings

CPU = torch.device("cpu")
_RUN_ID = 1


def _travel(message: Message) -> Message:
    """Serialise and restore a message as Flower's executor and grid do; its id is the hash of its content."""
    message_id = message.object_id
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    for one in objects.values():
        validate_object_content(one)
    arrived = inflate_object_from_contents(message_id, objects)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message_id
    return arrived


@dataclass
class Faults:
    """What goes wrong. Each hook sees the owner's name and its question.

    Attributes
    ----------
    refuse : callable
        Whether Flower does not take a question.
    drop : callable
        Whether a question never arrives.
    delay_s : callable
        After how many seconds the answer can be pulled.
    mutate : callable
        Replaces the answer.
    garble : callable
        Whether Flower cannot read the answer; it raises what Flower was seen to raise, after it deleted the answer.
    offline : set of str
        Owners whose node Flower does not see.
    """

    refuse: Callable[[str, Message], bool] = lambda _owner, _question: False
    drop: Callable[[str, Message], bool] = lambda _owner, _question: False
    delay_s: Callable[[str, Message], float] = lambda _owner, _question: 0.0
    mutate: Callable[[str, Message, Message], Message] = lambda _owner, _question, answer: answer
    garble: Callable[[str, Message], bool] = lambda _owner, _question: False
    offline: set[str] = field(default_factory=set)


class LoopbackGrid(Grid):
    """Delivers questions straight to the owners' apps; answers wait until they are pulled."""

    def __init__(self, nodes: Mapping[str, int], apps: Mapping[str, ClientApp]) -> None:
        self._nodes = dict(nodes)
        self._owners = {node: owner for owner, node in nodes.items()}
        self._apps = dict(apps)
        self._answers: dict[str, tuple[float, Message]] = {}
        self._garbled: set[str] = set()
        self._count = 0
        self.faults = Faults()
        self.asked: list[tuple[str, str]] = []
        """Owner and message type of every question that Flower took."""

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *_arguments: Any, **_named: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *_arguments: Any, **_named: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for owner, node in self._nodes.items() if owner not in self.faults.offline]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        now = time.monotonic()
        ready = [one for one in message_ids if one in self._answers and self._answers[one][0] <= now]
        answers = []
        for one in ready:
            answers.append(self._answers.pop(one)[1])
            if one in self._garbled:
                raise DecodeError("Error parsing message")
        return answers

    def _push(self, message: Message) -> str:
        owner = self._owners[message.metadata.dst_node_id]
        if self.faults.refuse(owner, message):
            return ""
        # Flower names a message by its content and its time, to the microsecond.
        self._count += 1
        message.metadata.created_at += self._count * 1e-3
        question = _travel(message)
        self.asked.append((owner, question.metadata.message_type))
        if owner not in self.faults.offline and not self.faults.drop(owner, question):
            if self.faults.garble(owner, question):
                self._garbled.add(question.metadata.message_id)
            answer = self.faults.mutate(owner, question, self._answer(owner, question))
            self._answers[question.metadata.message_id] = (
                time.monotonic() + self.faults.delay_s(owner, question),
                _travel(answer),
            )
        return question.metadata.message_id

    def _answer(self, owner: str, question: Message) -> Message:
        context = Context(_RUN_ID, self._nodes[owner], {}, RecordDict(), {})
        try:
            return self._apps[owner](message=question, context=context)
        except Exception as error:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, _public_reason(error)), reply_to=question)


class SilentDisplay:
    """Shows nothing."""

    def shard_sent(self, *_facts: Any) -> None: ...
    def round_started(self, *_facts: Any) -> None: ...
    def step(self, *_facts: Any) -> None: ...
    def round_finished(self, *_facts: Any) -> None: ...


@pytest.fixture(autouse=True)
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a task of a run, as Flower's ServerApp process is; and poll quickly, as answers come at once."""
    monkeypatch.setattr(TaskIdentity, "_run_id", _RUN_ID)
    monkeypatch.setattr(TaskIdentity, "_node_id", SUPERLINK_NODE_ID)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(conversation, "_POLL_S", 0.01)
    monkeypatch.setattr(intake, "_CHASE_S", 0.05)


def make_plan(settings: FederationSettings, **own: Any) -> Plan:
    """Make a plan of all owners; what is the coordinator's own can be changed."""
    own = {"quorum": settings.owners, "begin_with": settings.owners, "deadline_s": 60.0, **own}
    return Plan(settings=settings, address="localhost:9443", listen="127.0.0.1:9443", **own)


@pytest.fixture
def make_state(tmp_path: Path, make_settings: Callable[..., FederationSettings]) -> Callable[..., StateFolder]:
    """Make the state folder of a federation."""

    def make(name: str = "state", settings: FederationSettings | None = None, **changes: Any) -> StateFolder:
        folder = StateFolder(tmp_path / name)
        own = {one: changes.pop(one) for one in ("quorum", "deadline_s", "begin_with") if one in changes}
        agreed = settings or make_settings(**changes)
        folder.create(make_plan(agreed, **own))
        return folder

    return make


@pytest.fixture
def make_federation(
    tmp_path: Path,
    make_state: Callable[..., StateFolder],
    make_prepared: Callable[..., Prepared],
    fingerprint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., SimpleNamespace]:
    """Make a federation whose owners have joined.

    ``owners`` says how many images each has: ``{"anna": ((12, 7), (6,))}`` is two shards to train on and one held out.
    The largest shard is a full one.
    ``enrolled`` changes what an owner announced.
    """

    def make(
        owners: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
        *,
        name: str = "state",
        enrolled: Mapping[str, Mapping[str, Any]] | None = None,
        **changes: Any,
    ) -> SimpleNamespace:
        shards = owners or {"anna": ((12, 7), (6,)), "bert": ((10,), (5,))}
        full = max(rows for parts in shards.values() for part in parts for rows in part)
        monkeypatch.setattr(intake, "rows_per_shard", lambda _shape: full)
        count = len(shards)
        state = make_state(name, **{"owners": count, **changes})
        plan = state.plan()
        settings = plan.settings
        nodes = {owner: 100 + position for position, owner in enumerate(shards)}
        prepared = {
            owner: make_prepared(tmp_path / name / "owners" / owner, *parts, seed=position)
            for position, (owner, parts) in enumerate(shards.items())
        }
        with state.changing_owners() as listed:
            for owner, one in prepared.items():
                facts = {
                    "node_key": f"key of {owner}",
                    "node_id": nodes[owner],
                    "fingerprint": fingerprint,
                    "train_images": one.train_images,
                    "held_out_images": one.measured(settings),
                    "copies": one.copies,
                    "at": now_text(),
                    **(enrolled or {}).get(owner, {}),
                }
                listed[owner] = Owner(
                    name=owner, token_sha256="0" * 64, invited_at=now_text(), enrolled=Enrolled(**facts)
                )
        apps = {
            owner: OwnerApp(owner, settings, one, CPU, tmp_path / name / "models" / owner, SilentDisplay())
            for owner, one in prepared.items()
        }
        grid = LoopbackGrid(nodes, {owner: app.client_app() for owner, app in apps.items()})
        return SimpleNamespace(
            state=state,
            plan=plan,
            settings=settings,
            grid=grid,
            faults=grid.faults,
            apps=apps,
            prepared=prepared,
            enrolled=state.owners().enrolled(),
            conversation=Conversation(grid, nodes, state.stop_request.exists, state.joined_at),
        )

    return make


@pytest.fixture
def audit() -> Callable[[StateFolder], list[dict[str, Any]]]:
    """Read the audit trail."""

    def read(state: StateFolder) -> list[dict[str, Any]]:
        path = state.folder / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., Message]:
    """Change the content of an answer: ``arrays`` by name, each a function of the array; ``metrics`` by value."""

    def change(
        answer: Message,
        arrays: Mapping[str, Callable[[Any], Any]] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Message:
        from flwr.app import Array

        # Arrays are shared with the app that answered; the copy is not.
        content = copy.deepcopy(answer.content)
        for name, function in (arrays or {}).items():
            content.array_records["arrays"][name] = Array(
                np.asarray(function(content.array_records["arrays"][name].numpy().copy()))
            )
        for name, value in (metrics or {}).items():
            content.metric_records["metrics"][name] = value
        answer.content = content
        return answer

    return change


@pytest.fixture(scope="session")
def nonsense() -> RecordDict:
    """Content that no question has for an answer."""
    return RecordDict({"nonsense": ConfigRecord({"a": 1})})
