"""Training at the coordinator, from images or the first round to the model. Of a run, it alone needs torch."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from flwr.app import RecordDict

from coordinator.aggregation import make_strategy
from coordinator.checkpoint import load_checkpoint
from coordinator.conversation import Conversation
from coordinator.gradients import Gradients
from coordinator.initial import initial_network
from coordinator.pooled import pooled_images, train_pooled
from coordinator.processes import Processes, train_in_processes
from coordinator.quorum import Quorum
from coordinator.rounds import Rounds
from coordinator.state import Enrolled, Plan, RoundRecord, StateFolder
from coordinator.throttle import at_most_every
from ppfed.errors import FederationError
from ppfed.federation import Exchange
from ppfed.leakage.reference import reference
from ppfed.model_folder import CardOwner, ModelCard, installed_versions, write_model
from ppfed.networks.state import load_network_state, network_state
from ppfed.training.compilation import compiler_cache
from ppfed.training.curve import CurvePoint, curve_to_json
from ppfed.training.loop import pick_device
from ppfed.wire.weights import Farewell, pack_farewell

_STOP_CHECK_S = 1.0


class TrainingRun:
    """One network on its way through the exchange that was agreed on.

    Parameters
    ----------
    conversation : Conversation
    state : StateFolder
    plan : Plan
    owners : mapping of str to Enrolled
        Those who take part; in exchange ``images`` with what they delivered.
    processes : Processes
    on_step : callable
        Called after each step of exchange ``gradients``, with the steps done and all steps of the pass.
    on_remark : callable
        Called with what the status shall say until the end.

    Raises
    ------
    UsageError
        If there is no such device here.
    """

    def __init__(
        self,
        conversation: Conversation,
        state: StateFolder,
        plan: Plan,
        owners: Mapping[str, Enrolled],
        processes: Processes,
        on_step: Callable[[int, int], None],
        on_remark: Callable[[str], None],
    ) -> None:
        self._conversation = conversation
        self._state = state
        self._plan = plan
        self._settings = plan.settings
        self._owners = owners
        self._processes = processes
        self._on_step = on_step
        self._on_remark = on_remark
        # Where others train, this process leaves the GPUs alone.
        self._device = torch.device("cpu") if processes.total > 1 else pick_device(processes.device)
        self._network = initial_network(state)

    def rounds(self) -> Iterator[RoundRecord]:
        """Train; a record after each round."""
        if self._settings.exchange is Exchange.IMAGES:
            return self._train_elsewhere() if self._processes.total > 1 else self._train_here()
        quorum = Quorum(self._conversation, self._state, self._plan, self._owners)
        if self._settings.exchange is Exchange.UPDATES:
            return Rounds(quorum, self._state, self._settings, make_strategy(self._settings), self._network).run()
        gradients = Gradients(quorum, self._state, self._settings, self._network, self._device, self._on_step)
        if gradients.too_many_images:
            names = ", ".join(gradients.too_many_images)
            self._on_remark(f"without {names}, who joined late with more images than the steps of a pass have room for")
        return gradients.run()

    def write_model(self, rounds: Sequence[RoundRecord]) -> RecordDict:
        """Write the model's folder, and pack what the owners are told.

        Parameters
        ----------
        rounds : sequence of RoundRecord
            All of them, also those before a restart.
        """
        card, curve = self._card(rounds), _curve(rounds)
        write_model(self._state.model, self._network, card, curve)
        self._state.audit("model written", accuracy=card.accuracy)
        weights = network_state(self._network)
        return pack_farewell(Farewell(True, "", card.model_dump_json(), weights, curve_to_json(curve)))

    def _train_here(self) -> Iterator[RoundRecord]:
        images = pooled_images(self._state, sorted(self._owners), self._device, self._processes.placement)
        compiled = self._processes.compiled
        with compiler_cache(self._state.compiled) if compiled else nullcontext():
            yield from train_pooled(
                self._network,
                lambda _epoch: images.train,
                images.held_out,
                self._settings,
                self._state.checkpoint,
                self._device,
                at_most_every(_STOP_CHECK_S, self._check_stop),
                len(self._owners),
                compiled=compiled,
            )

    def _train_elsewhere(self) -> Iterator[RoundRecord]:
        """Train in processes of their own, and take the weights that they leave."""
        check_stop = self._conversation.check_stop
        yield from train_in_processes(self._state, self._processes, sorted(self._owners), check_stop)
        checkpoint = load_checkpoint(self._state.checkpoint)
        if checkpoint is None or checkpoint.rounds < self._settings.training.epochs:
            raise FederationError(
                "the training processes ended without the last checkpoint",
                hint=f"See {self._state.logs / 'training.log'}; with several machines, all need the same state folder.",
            )
        load_network_state(self._network, checkpoint.delivered)

    def _check_stop(self, _step: int, _steps: int) -> None:
        self._conversation.check_stop()

    def _card(self, rounds: Sequence[RoundRecord]) -> ModelCard:
        settings = self._settings
        network = settings.network_config()
        return ModelCard(
            federation=settings.name,
            exchange=str(settings.exchange),
            cipher=settings.cipher,
            fingerprint=next(iter(self._owners.values())).fingerprint,
            height=settings.height,
            width=settings.width,
            channels=settings.channels,
            classes=settings.classes,
            adaptation=settings.training.adaptation,
            base_maps=settings.training.base_maps,
            features=network.features,
            adaptation_kind=network.adaptation_kind,
            mirrored_views=network.mirrored_views,
            backbone=network.backbone,
            owners=tuple(
                CardOwner(name=name, train_images=one.train_images, held_out_images=one.held_out_images)
                for name, one in sorted(self._owners.items())
            ),
            rounds=len(rounds),
            local_epochs=settings.training.local_epochs,
            accuracy=rounds[-1].accuracy if rounds else None,
            held_out_images=rounds[-1].held_out_images if rounds else 0,
            seed=settings.training.seed,
            training=settings.training.model_dump(mode="json"),
            versions=installed_versions(),
            created=datetime.datetime.now(datetime.UTC),
            leakage=reference(settings.cipher.spec, channels=settings.channels),
            trained_further_from=settings.initial_model,
        )


def _curve(rounds: Sequence[RoundRecord]) -> list[CurvePoint]:
    return [
        CurvePoint(
            round=one.round,
            train_loss=one.train_loss,
            held_out_loss=one.held_out_loss,
            accuracy=one.accuracy,
            seconds=one.seconds,
            held_out_images=one.held_out_images,
            owners=one.owners,
        )
        for one in rounds
    ]
