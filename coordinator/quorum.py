"""Asking many owners the same thing: deadlines, owners that are left out, and the number that must answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from flwr.app import Message, RecordDict

from coordinator.conversation import Conversation
from coordinator.state import Enrolled, Plan, RoundRecord, StateFolder
from ppfed.errors import FederationError, ModelError, PeerDataError
from ppfed.networks.classifier import ImageClassifier
from ppfed.networks.state import network_state
from ppfed.training.loop import Evaluation
from ppfed.wire.messages import EVALUATE
from ppfed.wire.weights import RoundOrder, pack_round_order, unpack_evaluation

_MOST_FAILED_ATTEMPTS = 3
_GO_ON = "Start again: it goes on from where it was."

Answer = TypeVar("Answer")


class Quorum:
    """Asks owners, and goes on with those that answer well.

    Parameters
    ----------
    conversation : Conversation
    state : StateFolder
        Its audit trail says who was left out and why.
    plan : Plan
        How many must answer, and how long they have.
    owners : mapping of str to Enrolled
    """

    def __init__(
        self,
        conversation: Conversation,
        state: StateFolder,
        plan: Plan,
        owners: Mapping[str, Enrolled],
    ) -> None:
        self._conversation = conversation
        self._state = state
        self.needed = plan.quorum
        """How many owners a round needs."""
        self._deadline_s = plan.deadline_s
        self.owners = owners
        self.late: set[str] = set()
        """Owners that missed the deadline of the last question."""
        self.refused: set[str] = set()
        """Owners whose answers to the last question failed a check."""

    def wait(self) -> set[str]:
        """Wait for the quorum as long as for an answer, and return who is online then."""
        self._conversation.wait_for_number(self.needed, time.monotonic() + self._deadline_s)
        return self._conversation.online()

    def gather(self, attempt: Callable[[], dict[str, Answer]], needed: int, hint: str = _GO_ON) -> dict[str, Answer]:
        """Make attempts until one has enough answers; ``hint`` says what to do where none has.

        Raises
        ------
        FederationError
            If several in a row have not.
        """
        for _ in range(_MOST_FAILED_ATTEMPTS):
            self.wait()
            answers = attempt()
            if len(answers) >= needed:
                return answers
            self._state.audit("round fell short of the quorum", owners=len(answers))
        raise FederationError(
            f"{_MOST_FAILED_ATTEMPTS} attempts in a row had fewer than {needed} usable answers",
            hint=f"See audit.jsonl for each owner's reason. {hint}",
        )

    def ask(
        self,
        message_type: str,
        content: RecordDict,
        group: str,
        unpack: Callable[[str, Message], Answer],
        owners: set[str] | None = None,
    ) -> dict[str, Answer]:
        """Ask owners that are online, all of them or those named, and unpack what arrives in time.

        Parameters
        ----------
        message_type : str
        content : RecordDict
        group : str
            What the audit trail calls the question.
        unpack : callable
            Makes something of (owner, message); where it raises PeerDataError or ModelError the owner is left out.
        owners : set of str or None
        """
        deadline = time.monotonic() + self._deadline_s
        wanted = set(self.owners) if owners is None else owners
        for owner in sorted(self._conversation.online() & wanted):
            self._conversation.ask(owner, message_type, content, group, self._deadline_s)
        answers: dict[str, Answer] = {}
        self.refused = set()
        for reply in self._conversation.answers(deadline):
            if reply.message is None:
                self._state.audit("no answer", owner=reply.owner, group=group, reason=reply.error)
                continue
            try:
                answers[reply.owner] = unpack(reply.owner, reply.message)
            except (PeerDataError, ModelError) as error:
                self.refused.add(reply.owner)
                self._state.audit("refused", owner=reply.owner, group=group, reason=error.message)
        self.late = self._conversation.waiting_for()
        for owner in self.late:
            self._state.audit("missed the deadline", owner=owner, group=group)
            self._conversation.forget(owner)
        # Answers come in any order, and sums of floats depend on it.
        return dict(sorted(answers.items()))

    def evaluate(self, number: int, network: ImageClassifier, group: str) -> list[Evaluation]:
        """Let owners measure the weights with which round ``number`` begins, or would begin."""
        order = pack_round_order(RoundOrder(number, network_state(network)))

        def unpack(owner: str, message: Message) -> Evaluation:
            return unpack_evaluation(message.content, self.owners[owner].held_out_images)

        answers = self.gather(lambda: self.ask(EVALUATE, order, group, unpack), self.needed)
        return list(answers.values())


def with_evaluation(record: RoundRecord, evaluations: Sequence[Evaluation]) -> RoundRecord:
    """Complete the record of a round by what owners measured."""
    count = sum(one.count for one in evaluations)
    if not count:
        return record
    correct = sum(one.correct for one in evaluations)
    loss = sum(one.loss * one.count for one in evaluations if one.count) / count
    return record.model_copy(update={"accuracy": correct / count, "held_out_loss": loss, "held_out_images": count})
