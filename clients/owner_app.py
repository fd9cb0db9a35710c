"""The owner's ClientApp: answers the coordinator's messages from the encrypted store. It holds no key.

It does what was agreed in the invite and nothing else: in exchanges ``updates`` and ``gradients`` no message makes it
send images.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from clients.answers import AnswerLimit
from clients.prepared import Prepared
from ppfed.errors import ModelError, PeerDataError
from ppfed.federation import Exchange, FederationSettings, describe_invalid
from ppfed.images.source import Split
from ppfed.model_folder import ModelCard, write_model
from ppfed.networks.classifier import build_network
from ppfed.networks.state import load_network_state, network_layout, network_state
from ppfed.store import read_shard
from ppfed.training.curve import curve_from_json
from ppfed.training.gradients import Turns, owner_offset, partial_gradient, step_generator, steps_of_pass
from ppfed.training.loop import Evaluation, Trainer, TrainingConfig, evaluate
from ppfed.training.placement import PlacedImages, place_images
from ppfed.training.settings import UpdateFormat
from ppfed.wire.messages import pack_request, values_bytes
from ppfed.wire.shards import Manifest, ShardName, pack_manifest, pack_shard, unpack_shard_request
from ppfed.wire.weights import (
    Farewell,
    GradientOrder,
    RoundOrder,
    RoundResult,
    pack_evaluation,
    pack_gradient,
    pack_round_result,
    unpack_farewell,
    unpack_gradient_order,
    unpack_round_order,
)


class Display(Protocol):
    """Shows an owner what goes on."""

    def shard_sent(self, number: int, total: int, size_bytes: int) -> None:
        """Report that a shard of encrypted images was handed to Flower."""

    def round_started(self, number: int, rounds: int, evaluation: Evaluation) -> None:
        """Report that local training begins; ``evaluation`` is of the weights as they came."""

    def step(self, done: int, steps: int) -> None:
        """Report that a training step was done, of all steps of the epoch."""

    def round_finished(self, number: int, rounds: int, train_loss: float) -> None:
        """Report that local training of a round ended."""


class OwnerApp:
    """State of an owner during a federation.

    Parameters
    ----------
    owner : str
    settings : FederationSettings
    prepared : Prepared
    device : torch.device
    model_folder : Path
        Where the final model is written.
    display : Display
    limit : AnswerLimit or None
        Counts what is answered in exchanges ``updates`` and ``gradients``; None does not.
    order_seed : int or None
        Of the order and augmentation of the images. A secret of the owner: a coordinator that knew which images meet in
        which batches could solve for single ones over several passes. None makes it of the owner's name, so that
        anybody can compute it again: for experiments.
    """

    def __init__(
        self,
        owner: str,
        settings: FederationSettings,
        prepared: Prepared,
        device: torch.device,
        model_folder: Path,
        display: Display,
        limit: AnswerLimit | None = None,
        order_seed: int | None = None,
    ) -> None:
        self._owner = owner
        self._settings = settings
        self._prepared = prepared
        self._device = device
        self._model_folder = model_folder
        self._display = display
        self._limit = limit
        self._training = TrainingConfig.of(settings.training, owner_offset(owner) if order_seed is None else order_seed)
        self._network = build_network(settings.network_config(), settings.training.seed).to(device)
        self._layout = network_layout(self._network)
        self._sent: set[ShardName] = set()
        self._pass = 0
        self._losses: dict[int, tuple[float, int]] = {}
        self.bytes_out = 0
        self.farewell: Farewell | None = None
        self.card: ModelCard | None = None

    def client_app(self) -> ClientApp:
        """Make the ClientApp that Flower calls."""
        app = ClientApp()

        @app.query("manifest")
        def manifest(message: Message, _context: Context) -> Message:
            return Message(self._manifest(), reply_to=message)

        @app.query("shard")
        def shard(message: Message, _context: Context) -> Message:
            return Message(self._shard(message.content), reply_to=message)

        @app.train()
        def train(message: Message, _context: Context) -> Message:
            return Message(self._train(message.content), reply_to=message)

        @app.train("gradient")
        def gradient(message: Message, _context: Context) -> Message:
            return Message(self._gradient(message.content), reply_to=message)

        @app.evaluate()
        def evaluate_weights(message: Message, _context: Context) -> Message:
            return Message(self._evaluate(message.content), reply_to=message)

        @app.query("finish")
        def finish(message: Message, _context: Context) -> Message:
            return Message(self._finish(message.content), reply_to=message)

        return app

    def _manifest(self) -> RecordDict:
        self._require(Exchange.IMAGES)
        store = self._prepared.store
        return pack_manifest(
            Manifest({split: tuple(shard.checksum() for shard in store.shards(split)) for split in Split})
        )

    def _shard(self, content: RecordDict) -> RecordDict:
        self._require(Exchange.IMAGES)
        name = unpack_shard_request(content)
        path = self._prepared.store.path(name.split, name.index)
        if not path.exists():
            raise PeerDataError("the coordinator asked for a shard that does not exist")
        shard = read_shard(path)
        self._sent.add(name)
        self.bytes_out += shard.images.pixels.nbytes + shard.images.ids.nbytes + shard.labels.nbytes
        total = sum(len(self._prepared.store.paths(split)) for split in Split)
        self._display.shard_sent(len(self._sent), total, self.bytes_out)
        return pack_shard(name, shard)

    def _train(self, content: RecordDict) -> RecordDict:
        self._require(Exchange.UPDATES)
        rounds, local_epochs = self._settings.training.rounds, self._settings.training.local_epochs
        order = unpack_round_order(content, rounds, self._layout)
        if order.round > rounds:
            raise PeerDataError("the coordinator asked for a round that was not agreed")
        self._require_below_limit(order.round)
        self._load_weights(order)
        evaluation = evaluate(self._network, self._images.held_out)
        self._display.round_started(order.round, rounds, evaluation)
        # A fresh optimizer each round: momentum belongs to a path of weights that the average has left.
        trainer = Trainer(self._network, self._training, self._device)
        losses = [
            result.loss
            for result in trainer.train_epochs(
                self._images.train, (order.round - 1) * local_epochs, local_epochs, self._display.step
            )
        ]
        self._display.round_finished(order.round, rounds, losses[-1])
        weights = network_state(self._network)
        answer = pack_round_result(
            RoundResult(weights, self._prepared.train_images, losses[-1], evaluation),
            order.weights if self._settings.training.update_format is UpdateFormat.BFLOAT16 else None,
        )
        self._count(order.round)
        self.bytes_out += values_bytes(answer)
        return answer

    def _gradient(self, content: RecordDict) -> RecordDict:
        self._require(Exchange.GRADIENTS)
        settings, images = self._settings.training, self._prepared.train_images
        order = unpack_gradient_order(content, settings.rounds, self._layout)
        if order.steps < steps_of_pass(images, settings.batch_size):
            raise PeerDataError("the coordinator counts fewer steps than this owner's images alone make")
        turns = Turns(images, order.steps, settings.min_local_batch, owner_offset(self._owner))
        if turns.part(order.step) is None:
            raise PeerDataError("the coordinator asked for a step in which it is not this owner's turn")
        question = order.step + 1
        if self._limit is not None:
            self._limit.require_steps(order.steps)
            self._limit.require(order.round, question)
        self._load_weights(order)
        self._begin_pass(order.round)
        config = self._training
        rows = turns.rows(order.step, config.seed, order.round - 1)
        ((batch, labels),) = self._images.train.batches([rows])
        part = partial_gradient(
            self._network,
            config.augmentation(batch, step_generator(config.seed, order.round - 1, order.step)),
            labels,
            torch.nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
            micro_batch=settings.micro_batch,
            batch_norm=settings.batch_norm,
            precision=settings.precision,
        )
        if self._limit is not None:
            self._limit.count(order.round, question, order.steps)
        answer = pack_gradient(part, settings.update_format)
        self.bytes_out += values_bytes(answer)
        self._losses[order.step] = part.loss, part.images
        self._display.step(order.step + 1, order.steps)
        return answer

    def _begin_pass(self, number: int, evaluation: Evaluation | None = None) -> None:
        """Show that one pass is over and another begins, once, whatever arrives of it first."""
        if number == self._pass:
            return
        rounds = self._settings.training.rounds
        if self._losses:
            images = sum(count for _, count in self._losses.values())
            loss = sum(loss * count for loss, count in self._losses.values()) / images
            self._display.round_finished(self._pass, rounds, loss)
        if number <= rounds:
            self._display.round_started(number, rounds, evaluation or Evaluation(0, 0, float("nan")))
        self._pass, self._losses = number, {}

    def _evaluate(self, content: RecordDict) -> RecordDict:
        self._require(Exchange.UPDATES, Exchange.GRADIENTS)
        rounds = self._settings.training.rounds
        order = unpack_round_order(content, rounds, self._layout)
        if self._settings.exchange is Exchange.GRADIENTS:
            if order.round == 1:
                raise PeerDataError("the coordinator asked to measure weights before the first round")
        # Each round's average is measured when the next round trains on it: only the last needs a message of its own.
        elif order.round != rounds + 1:
            raise PeerDataError("the coordinator asked to measure weights before the last round")
        self._require_below_limit(order.round)
        self._load_weights(order)
        part = slice(self._prepared.measured(self._settings))
        evaluation = evaluate(self._network, self._images.held_out, part)
        self._count(order.round)
        if self._settings.exchange is Exchange.GRADIENTS:
            self._begin_pass(order.round, evaluation)
        return pack_evaluation(evaluation)

    def _finish(self, content: RecordDict) -> RecordDict:
        farewell = unpack_farewell(content, self._layout)
        if farewell.completed:
            try:
                card = ModelCard.model_validate_json(farewell.card)
                curve = curve_from_json(farewell.curve)
            except ValidationError as error:
                raise PeerDataError(f"the model card is malformed: {describe_invalid(error)}") from None
            except ModelError as error:
                raise PeerDataError(error.message) from None
            if card.network_config() != self._settings.network_config() or card.classes != self._settings.classes:
                raise PeerDataError("the model card is of another network than the agreed one")
            self._load_weights(farewell)
            write_model(self._model_folder, self._network, card, curve)
            self.card = card
        self.farewell = farewell
        return pack_request()

    def _require_below_limit(self, number: int) -> None:
        if self._limit is not None:
            self._limit.require(number)

    def _count(self, number: int) -> None:
        if self._limit is not None:
            self._limit.count(number)

    def _load_weights(self, message: RoundOrder | GradientOrder | Farewell) -> None:
        try:
            load_network_state(self._network, message.weights)
        except ModelError as error:
            raise PeerDataError(f"the coordinator's weights do not fit: {error.message}") from None

    @cached_property
    def _images(self) -> PlacedImages:
        return place_images([self._prepared.store], self._settings.shape, self._device)

    def _require(self, *exchanges: Exchange) -> None:
        if self._settings.exchange not in exchanges:
            asked = " or ".join(f"'{one}'" for one in exchanges)
            raise PeerDataError(
                f"the coordinator asked for exchange {asked}, and this owner agreed to '{self._settings.exchange}'"
            )
