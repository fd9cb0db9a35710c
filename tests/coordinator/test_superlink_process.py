"""What an owner may put into the SuperLink, and what of it the ServerApp gets, on Flower's own state and handlers."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.server.superlink.linkstate.linkstate import LinkState
from flwr.server.superlink.linkstate.linkstate_factory import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from coordinator import superlink_process
from coordinator.superlink_process import WholeAnswers


@dataclass
class Link:
    """Flower's state with a run and two owners' nodes, and its handlers behind ``WholeAnswers``."""

    state: LinkState
    run_id: int
    nodes: tuple[int, int]
    answers: WholeAnswers

    def message(self, source: int, reply_to: str = "", to: int = SUPERLINK_NODE_ID, text: str = "x") -> Message:
        metadata = Metadata(
            run_id=self.run_id,
            message_id="",
            src_node_id=source,
            dst_node_id=to,
            reply_to_message_id=reply_to,
            group_id="",
            created_at=time.time() - 1,
            ttl=60.0,
            message_type="train",
        )
        message = make_message(metadata=metadata, content=RecordDict({"config": ConfigRecord({"text": text})}))
        message.metadata.__dict__["_message_id"] = message.object_id
        return message

    def ask(self, node: int) -> str:
        question = self.message(SUPERLINK_NODE_ID, to=node)
        metadata = question.metadata
        metadata.__dict__["_ttl"] = 100.0
        assert self.state.store_message_ins(remove_content_from_message(question)) is not None
        return str(metadata.message_id)

    def announce(self, message: Message, node: int, push: Callable[..., Any] | None = None) -> Any:
        request = PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(message)],
        )
        push = push or functools.partial(self.answers.push_messages, fleet_handlers.push_messages)
        return push(request=request, state=self.state)

    def push(self, message: Message, announced: Any, count: int | None = None) -> list[bool]:
        objects = get_all_nested_objects(message)
        return [
            self.answers.push_object(
                fleet_handlers.push_object,
                PushObjectRequest(
                    run_id=self.run_id,
                    session_id=announced.session_id,
                    object_id=name,
                    object_content=objects[name].deflate(),
                ),
                self.state,
            ).stored
            for name in list(announced.objects_to_push)[:count]
        ]

    def pull(self, *questions: str) -> list[Any]:
        task: Any = SimpleNamespace(run_id=self.run_id)
        request = PullAppMessagesRequest(message_ids=questions)
        found = self.answers.pull_messages(runtime_handlers.pull_messages, request, self.state, task)
        return [one.metadata for one in found.messages_list]


@pytest.fixture
def link() -> Link:
    state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()).state()
    nodes = tuple(state.create_node("", "", name, 1e9) for name in (b"anna", b"bert"))
    for node in nodes:
        assert state.activate_node(node, 1e9)
    run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
    task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    assert task_id is not None
    assert state.claim_task(task_id)
    assert state.activate_task(task_id)
    return Link(state, run_id, (nodes[0], nodes[1]), WholeAnswers())


def test_an_answer_is_there_once_it_is_whole(link: Link) -> None:
    anna, bert = link.nodes
    for_anna, for_bert = link.ask(anna), link.ask(bert)
    slow, quick = link.message(anna, for_anna, text="slow"), link.message(bert, for_bert, text="quick")
    announced = link.announce(slow, anna)
    assert len(announced.objects_to_push) == 3
    assert link.pull(for_anna, for_bert) == []
    assert link.push(quick, link.announce(quick, bert)) == [True] * 3
    # Whoever is slow keeps nobody waiting.
    assert [one.reply_to_message_id for one in link.pull(for_anna, for_bert)] == [for_bert]
    assert link.push(slow, announced, 2) == [True] * 2
    assert link.pull(for_anna) == []
    assert link.push(slow, announced) == [False, False, True]
    assert [one.reply_to_message_id for one in link.pull(for_anna)] == [for_anna]


def test_flower_hands_out_what_is_not_whole(link: Link) -> None:
    """Else ``WholeAnswers`` is not needed for that."""
    anna, _ = link.nodes
    question = link.ask(anna)
    link.announce(link.message(anna, question), anna, fleet_handlers.push_messages)
    assert [one.reply_to_message_id for one in link.pull(question)] == [question]


def test_an_answer_that_is_announced_twice_is_one(link: Link) -> None:
    anna, _ = link.nodes
    question = link.ask(anna)
    answer = link.message(anna, question)
    link.push(answer, link.announce(answer, anna), 1)
    again = link.announce(answer, anna)
    assert len(again.objects_to_push) == 2
    assert link.pull(question) == []
    link.push(answer, again)
    assert len(link.pull(question)) == 1


def test_an_answer_that_does_not_go_on_is_reported_by_flower(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks learns that it is lost, and asks again."""
    anna, _ = link.nodes
    question = link.ask(anna)
    link.announce(link.message(anna, question), anna)
    assert link.pull(question) == []
    monkeypatch.setattr(superlink_process, "_GIVEN_UP_S", 0.0)
    assert [one.reply_to_message_id for one in link.pull(question)] == [question]


def test_what_nobody_waits_for_any_more_takes_no_memory(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, bert = link.nodes
    link.announce(link.message(anna, link.ask(anna)), anna)
    assert len(link.answers._announced) == 1
    monkeypatch.setattr(superlink_process, "_GIVEN_UP_S", 0.0)
    link.announce(link.message(bert, link.ask(bert)), bert)
    assert len(link.answers._announced) == 1


def test_an_announcement_that_fails_holds_nothing_back(link: Link) -> None:
    anna, bert = link.nodes
    question = link.ask(anna)
    # Flower does not store what answers another node's question.
    assert list(link.announce(link.message(bert, question), bert).objects_to_push) == []

    def fail(**_named: Any) -> Any:
        raise RuntimeError

    push = functools.partial(link.answers.push_messages, fail)
    with pytest.raises(RuntimeError):
        link.announce(link.message(anna, question), anna, push)
    answer = link.message(anna, question)
    link.push(answer, link.announce(answer, anna))
    assert len(link.pull(question)) == 1


@pytest.mark.parametrize(
    ("source", "to", "answers"),
    [
        # As the SuperLink to itself, which is how Flower asks itself something.
        ("link", "link", False),
        ("anna", "link", False),
        ("anna", "bert", False),
        ("bert", "link", True),
        ("anna", "bert", True),
    ],
)
def test_only_an_answer_of_its_own_is_taken_from_an_owner(link: Link, source: str, to: str, *, answers: bool) -> None:
    node = dict(zip(("anna", "bert"), link.nodes, strict=True)) | {"link": SUPERLINK_NODE_ID}
    for_bert = link.ask(node["bert"])
    reply_to = link.ask(node[source]) if answers else ""
    message = link.message(node[source], reply_to, node[to])
    with pytest.raises(FlowerError):
        link.announce(message, node["anna"])
    assert link.pull(for_bert) == []


def test_flower_takes_a_message_that_answers_nothing_and_gives_it_to_whoever_asks_next(link: Link) -> None:
    """Else the check is not needed."""
    _, bert = link.nodes
    for_bert = link.ask(bert)
    message = link.message(SUPERLINK_NODE_ID)
    announced = link.announce(message, bert, fleet_handlers.push_messages)
    assert len(announced.objects_to_push) == 3
    assert [one.reply_to_message_id for one in link.pull(for_bert)] == [""]


def test_several_messages_at_once_are_refused(link: Link) -> None:
    anna, _ = link.nodes
    message = link.message(anna, link.ask(anna))
    one, tree = message_to_proto(remove_content_from_message(message)), get_object_tree(message)
    push = functools.partial(link.answers.push_messages, fleet_handlers.push_messages)
    for messages, trees in (([], []), ([one, one], [tree]), ([one], []), ([one, one], [tree, tree])):
        request = PushMessagesRequest(node=Node(node_id=anna), messages_list=messages, message_object_trees=trees)
        with pytest.raises(FlowerError):
            push(request=request, state=link.state)


def test_an_answer_has_not_too_many_parts(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, _ = link.nodes
    answer = link.message(anna, link.ask(anna))
    monkeypatch.setattr(superlink_process, "MOST_OBJECTS", 2)
    with pytest.raises(FlowerError):
        link.announce(answer, anna)
    deep = ObjectTree(object_id="a")
    for _ in range(50):
        deep = ObjectTree(object_id="a", children=[deep])
    request = PushMessagesRequest(
        node=Node(node_id=anna),
        messages_list=[message_to_proto(remove_content_from_message(answer))],
        message_object_trees=[deep],
    )
    with pytest.raises(FlowerError):
        link.answers.push_messages(fleet_handlers.push_messages, request, link.state)


def test_an_answer_is_not_larger_than_any_that_ppfed_sends(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, _ = link.nodes
    question = link.ask(anna)
    answer = link.message(anna, question, text="y" * 1000)
    announced = link.announce(answer, anna)
    sizes = [len(one.deflate()) for one in get_all_nested_objects(answer).values()]
    monkeypatch.setattr(superlink_process, "MOST_MESSAGE_BYTES", sum(sizes) - 1)
    with pytest.raises(FlowerError):
        link.push(answer, announced)
    monkeypatch.setattr(superlink_process, "MOST_MESSAGE_BYTES", sum(sizes))
    link.push(answer, announced)
    assert len(link.pull(question)) == 1


def test_the_superlink_that_is_started_has_it_in_front_of_its_handlers() -> None:
    script = """
import runpy, sys
sys.argv = ["coordinator.superlink_process", "flower-superlink", "--version"]
try:
    runpy.run_module("coordinator.superlink_process", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
from flwr.superlink.main import _RUNTIME_HANDLERS
from flwr.superlink.routers.fleet.router import fleet_handlers
guards = fleet_handlers.push_messages, fleet_handlers.push_object, _RUNTIME_HANDLERS.pull_messages
print(*(f"{one.func.__qualname__}({one.args[0].__name__})" for one in guards))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].split() == [
        f"WholeAnswers.{name}({name})" for name in ("push_messages", "push_object", "pull_messages")
    ], done.stderr
