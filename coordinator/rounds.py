"""Exchange ``updates``: rounds of local training at the owners, averaged by a strategy of Flower's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from coordinator.aggregation import Aggregation
from coordinator.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coordinator.norm_bound import NormBound, SeenNorms
from coordinator.quorum import Quorum, with_evaluation
from coordinator.state import RoundRecord, StateFolder
from ppfed.federation import FederationSettings
from ppfed.networks.classifier import ImageClassifier
from ppfed.networks.state import check_network_state, load_network_state, network_layout, network_state
from ppfed.training.settings import UpdateFormat
from ppfed.wire.messages import TRAIN
from ppfed.wire.weights import RoundOrder, RoundResult, pack_round_order, pack_round_result, unpack_round_result


class Rounds:
    """Runs the rounds.

    An owner measures the weights it receives before it trains on, so a round costs one exchange of messages; the
    accuracy of a round's average is therefore known with the next round's answers, and the last one is asked for apart.

    Parameters
    ----------
    quorum : Quorum
    state : StateFolder
    settings : FederationSettings
    strategy : Strategy
        Of Flower's; only its aggregation is used.
    network : ImageClassifier
        Holds the average after each round.
    """

    def __init__(
        self,
        quorum: Quorum,
        state: StateFolder,
        settings: FederationSettings,
        strategy: Strategy,
        network: ImageClassifier,
    ) -> None:
        self._quorum = quorum
        self._state = state
        self._settings = settings
        self._aggregation = Aggregation(strategy, network)
        self._network = network
        self._layout = network_layout(network)
        self._nodes = {name: one.node_id for name, one in quorum.owners.items()}
        self._bound = NormBound(SeenNorms(), self._nodes)

    def run(self) -> Iterator[RoundRecord]:
        """Run all rounds, going on from the last checkpoint; yields a record of each when its accuracy is known.

        Raises
        ------
        FederationError
            If several rounds in a row fall short of the quorum, or the average cannot be used.
        """
        done = 0
        pending: RoundRecord | None = None
        checkpoint = load_checkpoint(self._state.checkpoint)
        if checkpoint is not None:
            done = checkpoint.rounds
            # Its accuracy was not known yet.
            pending = checkpoint.record
            load_network_state(self._network, checkpoint.weights)
            self._aggregation.load_state(checkpoint.momentum)
            self._bound = NormBound(checkpoint.norms, self._nodes)
        rounds = self._settings.training.rounds
        for number in range(done + 1, rounds + 1):
            started = time.monotonic()
            results = self._train(number)
            if pending is not None:
                yield with_evaluation(pending, [result.evaluation for result, _ in results.values()])
            replies = [message for _, message in results.values()]
            load_network_state(
                self._network, self._aggregation.aggregate(number, network_state(self._network), replies)
            )
            images = sum(result.images for result, _ in results.values())
            pending = RoundRecord(
                round=number,
                train_loss=sum(result.train_loss * result.images for result, _ in results.values()) / images,
                seconds=time.monotonic() - started,
                owners=len(results),
            )
            save_checkpoint(
                self._state.checkpoint,
                Checkpoint(
                    number,
                    network_state(self._network),
                    self._aggregation.state(),
                    pending,
                    norms=self._bound.seen,
                ),
            )
        if pending is not None:
            yield with_evaluation(pending, self._quorum.evaluate(rounds + 1, self._network, "evaluation"))

    def _train(self, number: int) -> dict[str, tuple[RoundResult, Message]]:
        weights = network_state(self._network)
        order = pack_round_order(RoundOrder(number, weights))
        base = weights if self._settings.training.update_format is UpdateFormat.BFLOAT16 else None

        def unpack(owner: str, message: Message) -> tuple[RoundResult, Message]:
            enrolled = self._quorum.owners[owner]
            result = unpack_round_result(
                message.content, enrolled.train_images, enrolled.held_out_images, self._layout, base
            )
            check_network_state(self._network, result.weights)
            if base is not None:
                # Flower's strategies average weights.
                message.content = pack_round_result(result)
            return result, message

        group = f"round {number}"
        results = self._quorum.gather(lambda: self._quorum.ask(TRAIN, order, group, unpack), self._quorum.needed)
        bounded = self._bound.bound_weights(weights, {owner: result.weights for owner, (result, _) in results.items()})
        for owner, one in bounded.items():
            result, message = results[owner]
            result = replace(result, weights=one.answer)
            message.content = pack_round_result(result)
            results[owner] = result, message
            self._state.audit("bounded", owner=owner, group=group, reason=one.reason)
        return results
