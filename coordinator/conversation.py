"""Asking owners and waiting for their answers, with deadlines of our own.

Flower's stock loop polls every three seconds and waits for a lost owner for an hour; a message to a node that dies and
comes back may never be answered nor reported (docs/architecture.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from ppfed.errors import PPFedError
from ppfed.peer_text import one_line

_POLL_S = 0.25
_LOST_CHECK_S = 2.0
_FLOWER_ERRORS = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
"""What the SuperLink says of an owner that is away; any other code was written at the owner."""


class StopRequestedError(PPFedError):
    """Somebody asked the coordinator to stop."""


@dataclass(frozen=True)
class Reply:
    """An owner's answer.

    Attributes
    ----------
    owner : str
    question : str
        What ``ask`` returned.
    message : Message or None
        None where the owner, or Flower on its behalf, reported an error, or the question was lost.
    error : str
        Why there is no message.
    owners_fault : bool
        The owner itself made the error or sent what cannot be read; otherwise it may only have been away. An owner that
        copies Flower's error is taken for one that is away: it gains the deadline, and no more.
    """

    owner: str
    question: str
    message: Message | None
    error: str = ""
    owners_fault: bool = False


@dataclass(frozen=True)
class _Question:
    owner: str
    at: float


class Conversation:
    """Messages to owners and their answers.

    Parameters
    ----------
    grid : Grid
    nodes : mapping of str to int
        The Flower node of each owner.
    stop_requested : callable
        Asked between polls.
    joined_at : callable
        Returns when each owner last joined, in seconds since the epoch. One that joined after it was asked has
        forgotten the question: Flower would never say so.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        stop_requested: Callable[[], bool],
        joined_at: Callable[[], Mapping[str, float]],
    ) -> None:
        self._grid = grid
        self._nodes: dict[str, int] = {}
        self._owners: dict[int, str] = {}
        self.include(nodes)
        self._stop_requested = stop_requested
        self._joined_at = joined_at
        self._asked: dict[str, _Question] = {}
        self._next_lost_check = 0.0

    def include(self, nodes: Mapping[str, int]) -> None:
        """Take in owners that joined since, by their Flower nodes."""
        self._nodes.update(nodes)
        self._owners.update({node: owner for owner, node in nodes.items()})

    def check_stop(self) -> None:
        """Raise StopRequestedError if somebody asked to stop."""
        if self._stop_requested():
            raise StopRequestedError("the coordinator was asked to stop")

    def online(self) -> set[str]:
        """Owners whose node is online as far as Flower knows."""
        present = set(self._grid.get_node_ids())
        return {owner for owner, node in self._nodes.items() if node in present}

    def wait_for_most(self, owners: set[str], count: int, deadline: float) -> set[str]:
        """Wait for these owners, after the deadline (``time.monotonic``) only until so many of them are online.

        Returns
        -------
        set of str
            Those that are missing.
        """
        while missing := owners - self.online():
            if time.monotonic() > deadline and len(owners) - len(missing) >= count:
                break
            self.check_stop()
            time.sleep(_POLL_S)
        return missing

    def wait_for_number(self, count: int, deadline: float) -> None:
        """Wait until so many owners are online, or the deadline (``time.monotonic``) has passed."""
        while len(self.online()) < count and time.monotonic() < deadline:
            self.check_stop()
            time.sleep(_POLL_S)

    def ask(self, owner: str, message_type: str, content: RecordDict, group: str, timeout_s: float) -> str | None:
        """Send a question.

        Returns
        -------
        str or None
            The question's id; None if Flower did not take it.
        """
        message = Message(content, self._nodes[owner], message_type, ttl=timeout_s, group_id=group)
        for message_id in self._grid.push_messages([message]):
            if message_id:
                self._asked[message_id] = _Question(owner, time.time())
                return message_id
        return None

    def forget(self, owner: str) -> None:
        """Ignore answers that this owner still owes."""
        self._asked = {message: asked for message, asked in self._asked.items() if asked.owner != owner}

    def waiting_for(self) -> set[str]:
        """Owners that owe an answer."""
        return {asked.owner for asked in self._asked.values()}

    def answers(self, deadline: float, *, heed_stop: bool = True) -> Iterator[Reply]:
        """Yield answers as they come, until none is owed or the deadline (``time.monotonic``) has passed.

        More may be asked between answers.

        Parameters
        ----------
        deadline : float
        heed_stop : bool
            False for the last words, which are said because of a request to stop too.

        Raises
        ------
        StopRequestedError
        """
        while self._asked and time.monotonic() < deadline:
            if heed_stop:
                self.check_stop()
            answered = False
            for question, asked in list(self._asked.items()):
                # Whoever heard the answer before may have dropped the owner's others.
                if question not in self._asked:
                    continue
                reply = self._pull(asked.owner, question)
                if reply is not None:
                    answered = True
                    del self._asked[question]
                    yield reply
                    # A shard of images is large: not one more than is needed while the next is pulled.
                    reply = None
            if not answered:
                yield from self._lost()
                time.sleep(_POLL_S)

    def _pull(self, owner: str, question: str) -> Reply | None:
        """Pull the answer to one question, or return None if there is none yet.

        Flower confirms, and so deletes, an answer before it reads it, and raises where it cannot: in a batch, one
        owner's garbage would take the answers of others with it.
        """
        try:
            pulled = list(self._grid.pull_messages([question]))
            return self._reply(owner, question, pulled[0]) if pulled else None
        except (httpx.HTTPError, OSError):
            # The SuperLink, not an owner.
            raise
        except Exception as error:
            # What an owner wrote makes Flower's parsers raise nearly anything, and their text may quote it.
            return Reply(owner, question, None, f"unreadable answer ({type(error).__name__})", owners_fault=True)

    def _lost(self) -> Iterator[Reply]:
        """Give up questions that an owner forgot because it was restarted."""
        if time.monotonic() < self._next_lost_check:
            return
        self._next_lost_check = time.monotonic() + _LOST_CHECK_S
        joined_at = self._joined_at()
        for question, asked in list(self._asked.items()):
            # Whoever hears of the first lost question may have dropped the owner's others.
            if joined_at.get(asked.owner, 0.0) > asked.at and self._asked.pop(question, None) is not None:
                yield Reply(asked.owner, question, None, "the owner joined again and forgot the question")

    def _reply(self, owner: str, question: str, message: Message) -> Reply:
        if message.has_error():
            code = message.error.code
            reason = one_line((message.error.reason or "")[:500])
            return Reply(owner, question, None, f"error {code}: {reason}", owners_fault=code not in _FLOWER_ERRORS)
        # Flower matched the answer to the question by its envelope; what the owner wrote inside has to agree.
        if self._owners.get(message.metadata.src_node_id) != owner:
            return Reply(owner, question, None, "the answer came from another node", owners_fault=True)
        if message.metadata.reply_to_message_id != question:
            return Reply(owner, question, None, "the answer is to another question", owners_fault=True)
        return Reply(owner, question, message)
