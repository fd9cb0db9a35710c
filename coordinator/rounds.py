"""Exchange ``updates``: rounds of local training at the owners, averaged by a strategy of Flower's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from coordinator.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coordinator.conversation import Conversation
from coordinator.state import Enrolled, RoundRecord, StateFolder
from ppfed import wire
from ppfed.errors import FederationError, ModelError, PeerDataError
from ppfed.federation import FederationSettings
from ppfed.network import ImageClassifier
from ppfed.network_state import check_network_state, load_network_state, network_layout, network_state
from ppfed.training import Evaluation

_MOST_FAILED_ROUNDS = 3

Answer = TypeVar("Answer")


def federated_averaging(settings: FederationSettings) -> Strategy:
    """FedAvg, weighted by image count (McMahan et al., AISTATS 2017)."""
    return FedAvg(
        min_train_nodes=settings.quorum,
        min_evaluate_nodes=settings.quorum,
        min_available_nodes=settings.quorum,
        weighted_by_key="num-examples",
    )


class Rounds:
    """Runs the rounds.

    An owner measures the weights it receives before it trains on, so a round costs one exchange of messages; the
    accuracy of a round's average is therefore known with the next round's answers, and the last one is asked for apart.

    Parameters
    ----------
    conversation : Conversation
    state : StateFolder
    settings : FederationSettings
    owners : mapping of str to Enrolled
    strategy : Strategy
        Of Flower's; only its aggregation is used.
    network : ImageClassifier
        Holds the average after each round.
    """

    def __init__(
        self,
        conversation: Conversation,
        state: StateFolder,
        settings: FederationSettings,
        owners: Mapping[str, Enrolled],
        strategy: Strategy,
        network: ImageClassifier,
    ) -> None:
        self._conversation = conversation
        self._state = state
        self._settings = settings
        self._owners = owners
        self._strategy = strategy
        self._network = network
        self._layout = network_layout(network)

    def run(self) -> Iterator[RoundRecord]:
        """Run all rounds, going on from the last checkpoint; yields a record of each when its accuracy is known.

        Raises
        ------
        FederationError
            If several rounds in a row fall short of the quorum.
        """
        done = 0
        pending: RoundRecord | None = None
        checkpoint = load_checkpoint(self._state.checkpoint)
        if checkpoint is not None:
            done = checkpoint.rounds
            # Its accuracy was not known yet.
            pending = checkpoint.record
            load_network_state(self._network, checkpoint.weights)
        for number in range(done + 1, self._settings.training.rounds + 1):
            started = time.monotonic()
            results = self._quorum_of(partial(self._train, number))
            if pending is not None:
                yield _with_evaluation(pending, [result.evaluation for result, _ in results.values()])
            self._aggregate(number, results)
            images = sum(result.images for result, _ in results.values())
            pending = RoundRecord(
                round=number,
                train_loss=sum(result.train_loss * result.images for result, _ in results.values()) / images,
                seconds=time.monotonic() - started,
                owners=len(results),
            )
            save_checkpoint(self._state.checkpoint, Checkpoint(number, network_state(self._network), {}, pending))
        if pending is not None:
            evaluations = self._quorum_of(self._evaluate)
            yield _with_evaluation(pending, list(evaluations.values()))

    def _quorum_of(self, attempt: Callable[[], dict[str, Answer]]) -> dict[str, Answer]:
        for _ in range(_MOST_FAILED_ROUNDS):
            self._conversation.wait_for_number(self._settings.quorum, time.monotonic() + self._settings.deadline_s)
            answers = attempt()
            if len(answers) >= self._settings.quorum:
                return answers
            self._state.audit("round fell short of the quorum", owners=len(answers))
        raise FederationError(
            f"{_MOST_FAILED_ROUNDS} rounds in a row had fewer than {self._settings.quorum} usable answers",
            hint="See audit.jsonl for each owner's reason. Start again: it goes on from the last round.",
        )

    def _train(self, number: int) -> dict[str, tuple[wire.RoundResult, Message]]:
        order = wire.pack_round_order(wire.RoundOrder(number, network_state(self._network)))
        results: dict[str, tuple[wire.RoundResult, Message]] = {}
        for owner, message in self._ask_all(wire.TRAIN, order, f"round {number}"):
            enrolled = self._owners[owner]
            try:
                result = wire.unpack_round_result(
                    message.content, enrolled.train_images, enrolled.held_out_images, self._layout
                )
                check_network_state(self._network, result.weights)
            except (PeerDataError, ModelError) as error:
                self._state.audit("refused", owner=owner, round=number, reason=error.message)
                continue
            results[owner] = (result, message)
        return results

    def _evaluate(self) -> dict[str, Evaluation]:
        order = wire.pack_round_order(wire.RoundOrder(self._settings.training.rounds + 1, network_state(self._network)))
        evaluations = {}
        for owner, message in self._ask_all(wire.EVALUATE, order, "evaluation"):
            try:
                evaluations[owner] = wire.unpack_evaluation(message.content, self._owners[owner].held_out_images)
            except PeerDataError as error:
                self._state.audit("refused", owner=owner, reason=error.message)
        return evaluations

    def _ask_all(self, message_type: str, content: RecordDict, group: str) -> Iterator[tuple[str, Message]]:
        deadline = time.monotonic() + self._settings.deadline_s
        for owner in sorted(self._conversation.online() & set(self._owners)):
            self._conversation.ask(owner, message_type, content, group, self._settings.deadline_s)
        for reply in self._conversation.answers(deadline):
            if reply.message is None:
                self._state.audit("no answer", owner=reply.owner, group=group, reason=reply.error)
            else:
                yield reply.owner, reply.message
        for owner in self._conversation.waiting_for():
            self._state.audit("missed the deadline", owner=owner, group=group)
            self._conversation.forget(owner)

    def _aggregate(self, number: int, results: Mapping[str, tuple[wire.RoundResult, Message]]) -> None:
        arrays, _ = self._strategy.aggregate_train(number, [message for _, message in results.values()])
        if arrays is None:
            raise FederationError("the strategy made no average of the round's answers")
        averaged = wire.unpack_weights(RecordDict({"arrays": arrays}), self._layout)
        load_network_state(self._network, averaged)


def _with_evaluation(record: RoundRecord, evaluations: list[Evaluation]) -> RoundRecord:
    count = sum(one.count for one in evaluations)
    if not count:
        return record
    correct = sum(one.correct for one in evaluations)
    loss = sum(one.loss * one.count for one in evaluations if one.count) / count
    return record.model_copy(update={"accuracy": correct / count, "held_out_loss": loss})
