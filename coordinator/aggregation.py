"""What the coordinator makes of the weights that owners send in exchange ``updates``: Flower's strategies.

Parameters go through the strategy. Batch-norm statistics are averaged plainly in each of them: a step of an optimizer
could make a variance negative, and momentum has no meaning for what is measured and not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt
from torch import Tensor, nn

from ppfed.errors import FederationError, PeerDataError
from ppfed.federation import FederationSettings
from ppfed.networks.state import Layout, flatten, network_layout
from ppfed.training.settings import ServerStrategy
from ppfed.wire.weights import WEIGHTS, unpack_weights

_WEIGHT = "num-examples"
_ARRAYS = "arrays"
_PARAMETERS = "parameters"
_MOMENTUM = "server.momentum"
_FIRST = "server.first-moment"
_SECOND = "server.second-moment"


@dataclass(frozen=True)
class _Defaults:
    learning_rate: float
    momentum: float


_DEFAULTS = {
    # Hsu et al., 2019, and Reddi et al., ICLR 2021: a server rate of 0.01 was best for their ResNet-18 on CIFAR-10.
    ServerStrategy.FEDAVGM: _Defaults(1.0, 0.9),
    ServerStrategy.FEDADAM: _Defaults(0.01, 0.9),
    ServerStrategy.FEDYOGI: _Defaults(0.01, 0.9),
}


def make_strategy(settings: FederationSettings) -> Strategy:
    """Make Flower's strategy object; every one weighs owners by their image counts.

    Who is asked, and how many must answer, is ours to see to (``coordinator/quorum.py``).
    """
    training = settings.training
    defaults = _DEFAULTS.get(training.strategy)
    if defaults is None:
        return FedAvg(weighted_by_key=_WEIGHT)
    rate = defaults.learning_rate if training.server_learning_rate is None else training.server_learning_rate
    momentum = defaults.momentum if training.server_momentum is None else training.server_momentum
    if training.strategy is ServerStrategy.FEDAVGM:
        return FedAvgM(weighted_by_key=_WEIGHT, server_learning_rate=rate, server_momentum=momentum)
    kind = FedAdam if training.strategy is ServerStrategy.FEDADAM else FedYogi
    return kind(weighted_by_key=_WEIGHT, eta=rate, beta_1=momentum)


class Aggregation:
    """Applies a strategy of Flower's to the answers of a round, and keeps what it remembers between rounds.

    Parameters
    ----------
    strategy : Strategy
    network : nn.Module
        Says which part of the weights is trained.
    """

    def __init__(self, strategy: Strategy, network: nn.Module) -> None:
        self._strategy = strategy
        self._layout: Layout = network_layout(network)
        trained = {name for name, _ in network.named_parameters()}
        self._trained = np.concatenate(
            [np.full(int(np.prod(shape, dtype=np.int64)), name in trained) for name, shape in self._layout.items()]
        )

    def aggregate(self, number: int, current: dict[str, Tensor], replies: Sequence[Message]) -> dict[str, Tensor]:
        """Make the weights of the next round.

        Parameters
        ----------
        number : int
            The round, counted from 1.
        current : dict of str to float32 tensor
            The weights that the owners trained on.
        replies : sequence of Message
            Checked by ``unpack_round_result`` before.

        Raises
        ------
        FederationError
            If the strategy makes no weights, or such that owners would refuse.
        """
        average = self._average(number, replies)
        values = average if not self._has_optimizer else self._step(number, current, average, replies)
        content = RecordDict({_ARRAYS: ArrayRecord({WEIGHTS: Array(values)})})
        try:
            return unpack_weights(content, self._layout)
        except PeerDataError as error:
            raise FederationError(
                f"the average of round {number} cannot be used: {error.message}",
                hint="Start a new federation with a lower --server-learning-rate or --learning-rate.",
            ) from None

    def state(self) -> dict[str, Tensor]:
        """Return what the strategy remembers, for the checkpoint; empty where it remembers nothing."""
        kept: dict[str, npt.NDArray[np.float32]] = {}
        strategy = self._strategy
        if isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None:
            kept[_MOMENTUM] = strategy.momentum_vector[0]
        if isinstance(strategy, FedOpt) and strategy.m_t is not None and strategy.v_t is not None:
            kept |= {_FIRST: strategy.m_t[_PARAMETERS], _SECOND: strategy.v_t[_PARAMETERS]}
        return {name: torch.tensor(values) for name, values in kept.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with what an earlier strategy of the same kind remembered."""
        strategy = self._strategy
        if isinstance(strategy, FedAvgM) and _MOMENTUM in state:
            strategy.momentum_vector = [state[_MOMENTUM].numpy().copy()]
        if isinstance(strategy, FedOpt) and _FIRST in state:
            strategy.m_t = {_PARAMETERS: state[_FIRST].numpy().copy()}
            strategy.v_t = {_PARAMETERS: state[_SECOND].numpy().copy()}

    @property
    def _has_optimizer(self) -> bool:
        return isinstance(self._strategy, FedAvgM | FedOpt)

    def _average(self, number: int, replies: Sequence[Message]) -> npt.NDArray[np.float32]:
        strategy = FedAvg(weighted_by_key=_WEIGHT) if self._has_optimizer else self._strategy
        arrays, _ = strategy.aggregate_train(number, replies)
        if arrays is None:
            raise FederationError("the strategy made no average of the round's answers")
        average: npt.NDArray[np.float32] = arrays[WEIGHTS].numpy()
        return average

    def _step(
        self,
        number: int,
        current: dict[str, Tensor],
        average: npt.NDArray[np.float32],
        replies: Sequence[Message],
    ) -> npt.NDArray[np.float32]:
        before = flatten(current).numpy()[self._trained]
        # Flower's stock loop leaves the weights that were sent out here; we send them ourselves.
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = ArrayRecord({_PARAMETERS: Array(before)})
        elif isinstance(self._strategy, FedOpt):
            self._strategy.current_arrays = {_PARAMETERS: before}
        for message in replies:
            update = message.content.array_records[_ARRAYS][WEIGHTS].numpy()
            message.content[_ARRAYS] = ArrayRecord({_PARAMETERS: Array(update[self._trained])})
        arrays, _ = self._strategy.aggregate_train(number, replies)
        if arrays is None:
            raise FederationError("the strategy made no step of the round's answers")
        # Flower's Adam computes its last product in float64.
        average = average.copy()
        average[self._trained] = arrays[_PARAMETERS].numpy().astype(np.float32)
        return average
