"""Flower's SuperLink as a coordinator runs it: ``python -m coordinator.superlink_process ...``.

The arguments are the command and its own. Flower 1.41 stores any message of any node, also one that answers
nothing, and gives that to whoever asks for an answer next; and it hands out an answer as soon as it is announced, for
whose parts the ServerApp then waits for minutes, while it hears of no other owner. So of an owner it takes answers
alone, and the ServerApp gets them when they are whole.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from ppfed.flower_service import main
from ppfed.wire.sizes import MOST_MESSAGE_BYTES, MOST_OBJECTS

_GIVEN_UP_S = OBJECT_PUSH_SESSION_TTL_SECONDS + 5.0
"""After so long without another part Flower deletes an answer, and says so to whoever asks for it."""


@dataclass
class _Announced:
    """An answer of which parts are missing."""

    missing: set[str] = field(default_factory=set)
    being_announced: int = 0
    size_bytes: int = 0
    heard_s: float = field(default_factory=time.monotonic)

    @property
    def held_back(self) -> bool:
        """Whether it may become whole yet."""
        incomplete = bool(self.missing) or self.being_announced > 0
        return incomplete and time.monotonic() - self.heard_s < _GIVEN_UP_S


class WholeAnswers:
    """Stands in front of three of the SuperLink's handlers; several threads may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._announced: dict[str, _Announced] = {}
        """By the question that they answer."""

    def push_messages(
        self, store: Callable[..., PushMessagesResponse], request: PushMessagesRequest, state: Any
    ) -> PushMessagesResponse:
        """Take an owner's announcement of an answer: ``fleet_handlers.push_messages``.

        Raises
        ------
        FlowerError
            If it announces something else.
        """
        question = _question(request)
        with self._lock:
            self._announced = {one: answer for one, answer in self._announced.items() if answer.held_back}
            answer = self._announced.setdefault(question, _Announced())
            # Before it is stored, so that nobody can pull it in between.
            answer.being_announced += 1
        missing: list[str] = []
        try:
            response = store(request=request, state=state)
            missing = list(response.objects_to_push)
            return response
        finally:
            with self._lock:
                answer.being_announced -= 1
                answer.missing.update(missing)
                answer.heard_s = time.monotonic()

    def push_object(
        self, store: Callable[..., PushObjectResponse], request: PushObjectRequest, state: Any
    ) -> PushObjectResponse:
        """Take a part of an answer: ``fleet_handlers.push_object``.

        Raises
        ------
        FlowerError
            If the answer becomes larger than any that ppfed sends.
        """
        size = len(request.object_content)
        with self._lock:
            answers = [one for one in self._announced.values() if request.object_id in one.missing]
            if any(one.size_bytes + size > MOST_MESSAGE_BYTES for one in answers):
                raise _refusal("an answer is larger than any that ppfed sends")
        response = store(request=request, state=state)
        if response.stored:
            with self._lock:
                for one in answers:
                    one.missing.discard(request.object_id)
                    one.size_bytes += size
                    one.heard_s = time.monotonic()
        return response

    def pull_messages(
        self, give: Callable[..., PullAppMessagesResponse], request: PullAppMessagesRequest, state: Any, task: Any
    ) -> PullAppMessagesResponse:
        """Give the ServerApp the answers that are whole: ``runtime_handlers.pull_messages``."""
        with self._lock:
            held_back = {question for question, answer in self._announced.items() if answer.held_back}
        whole = [question for question in request.message_ids if question not in held_back]
        if not whole:
            return PullAppMessagesResponse()
        return give(PullAppMessagesRequest(message_ids=whole), state, task)


def _question(request: PushMessagesRequest) -> str:
    """Return the id of the question that is answered."""
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise _refusal("it is not one message")
    sent = request.messages_list[0].metadata
    # Whose key signed the request is the node that it names: Flower has checked that.
    if sent.src_node_id != request.node.node_id or sent.dst_node_id != SUPERLINK_NODE_ID:
        raise _refusal("it is not from the node that sends it to the coordinator")
    if not sent.reply_to_message_id:
        raise _refusal("it answers nothing")
    parts = iterate_object_tree(request.message_object_trees[0])
    if sum(1 for _ in parts) > MOST_OBJECTS:
        raise _refusal("an answer has more parts than any that ppfed sends")
    return str(sent.reply_to_message_id)


def _refusal(reason: str) -> FlowerError:
    return FlowerError(ApiErrorCode.FORBIDDEN_ACTION, f"refused: {reason}")


def take_whole_answers_only() -> None:
    """Put a ``WholeAnswers`` in front of the handlers of this process."""
    answers = WholeAnswers()
    for module, guard in (
        (fleet_handlers, answers.push_messages),
        (fleet_handlers, answers.push_object),
        (runtime_handlers, answers.pull_messages),
    ):
        handler = getattr(module, guard.__name__)
        setattr(module, guard.__name__, functools.wraps(handler)(functools.partial(guard, handler)))


if __name__ == "__main__":
    take_whole_answers_only()
    main()
