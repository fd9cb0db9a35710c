"""The ServerApp: what a run of the federation does, from the owners' arrival to the model."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.aggregation import make_strategy
from coordinator.checkpoint import load_checkpoint
from coordinator.conversation import Conversation, StopRequestedError
from coordinator.flower_waiting import wait_briefly
from coordinator.gradients import Gradients
from coordinator.intake import Intake
from coordinator.pooled import distinct_images, pooled_images, train_pooled
from coordinator.processes import ONE_PROCESS, Processes, train_in_processes
from coordinator.quorum import Quorum
from coordinator.rounds import Rounds
from coordinator.state import STATE_VARIABLE, Enrolled, RoundRecord, StateFolder, Status
from ppfed import wire
from ppfed.compilation import compiler_cache
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, PPFedError
from ppfed.federation import Exchange, FederationSettings
from ppfed.images.source import Split
from ppfed.leakage.reference import reference
from ppfed.model_folder import CardOwner, ModelCard, installed_versions, write_model
from ppfed.network import ImageClassifier, build_network
from ppfed.network_state import load_network_state, network_state
from ppfed.services import end_with_parent
from ppfed.store import ShardStore
from ppfed.training import pick_device
from ppfed.training_curve import CurvePoint, curve_to_json

_STOP_CHECK_S = 1.0
_STATUS_S = 1.0
_FAREWELL_S = 60.0
_LAST_FAREWELL_S = 20.0

app = ServerApp()


@app.main()
def main(grid: Grid, _context: Context) -> None:
    """Run the federation whose state folder the environment names."""
    end_with_parent()
    wait_briefly()
    state = StateFolder(Path(os.environ[STATE_VARIABLE]))
    processes = Processes.from_environment()
    # Where others train, this process leaves the GPUs alone.
    device = torch.device("cpu") if processes.total > 1 else pick_device(processes.device)
    run_federation(grid, state, device, processes)


def run_federation(grid: Grid, state: StateFolder, device: torch.device, processes: Processes = ONE_PROCESS) -> None:
    """Receive images or run rounds, write the model, and tell the owners how it ended.

    Parameters
    ----------
    grid : Grid
    state : StateFolder
    device : torch.device
        On which this process computes.
    processes : Processes
        Where exchange ``images`` trains; if it is one, it is this.

    Raises
    ------
    PPFedError
        If it fails; the status and the owners have been told.
    """
    settings = state.plan().settings
    owners = state.owners().enrolled()
    nodes = {name: one.node_id for name, one in owners.items()}
    conversation = Conversation(grid, nodes, state.stop_request.exists, state.joined_at)
    run = _Run(conversation, state, settings, owners, device, processes)
    try:
        run.work()
    except StopRequestedError as error:
        run.end(Phase.STOPPED, error.message)
    except PPFedError as error:
        run.end(Phase.FAILED, error.message)
        raise
    except Exception as error:
        run.end(Phase.FAILED, f"internal error ({type(error).__name__}); see logs/superexec.log")
        raise


class _Run:
    def __init__(
        self,
        conversation: Conversation,
        state: StateFolder,
        settings: FederationSettings,
        owners: Mapping[str, Enrolled],
        device: torch.device,
        processes: Processes,
    ) -> None:
        self._conversation = conversation
        self._state = state
        self._settings = settings
        self._owners = dict(owners)
        self._device = device
        self._processes = processes
        # After a crash, rounds of the earlier run stand in the status still.
        self._status = Status(rounds=state.status().rounds)

    def work(self) -> None:
        network = build_network(self._settings.network_config(), self._settings.training.seed)
        self._set(phase=Phase.INTAKE if self._settings.exchange is Exchange.IMAGES else Phase.TRAINING)
        self._conversation.wait_for(set(self._owners))
        records = self._images(network) if self._settings.exchange is Exchange.IMAGES else self._rounds(network)
        for record in records:
            kept = [one for one in self._status.rounds if one.round < record.round]
            self._set(phase=Phase.TRAINING, rounds=[*kept, record], steps=0)
        card = self._card()
        curve = _curve(self._status.rounds)
        write_model(self._state.model, network, card, curve)
        self._state.audit("model written", accuracy=card.accuracy)
        # The status says "finished" only after the owners were told: then the services may go.
        self._tell(
            wire.Farewell(True, "", card.model_dump_json(), network_state(network), curve_to_json(curve)), _FAREWELL_S
        )
        self._set(phase=Phase.FINISHED)

    def _rounds(self, network: ImageClassifier) -> Iterator[RoundRecord]:
        quorum = Quorum(self._conversation, self._state, self._settings, self._owners)
        if self._settings.exchange is Exchange.UPDATES:
            return Rounds(quorum, self._state, self._settings, make_strategy(self._settings), network).run()
        return Gradients(quorum, self._state, self._settings, network, self._device, self._show_steps()).run()

    def _show_steps(self) -> Callable[[int, int], None]:
        """Make a callable for every step of exchange ``gradients``: it writes to the disk once a second at most."""
        last_write = 0.0

        def on_step(step: int, steps: int) -> None:
            nonlocal last_write
            if time.monotonic() - last_write > _STATUS_S:
                last_write = time.monotonic()
                self._set(steps=step, steps_expected=steps)

        return on_step

    def _images(self, network: ImageClassifier) -> Iterator[RoundRecord]:
        def on_progress(received: int, expected: int) -> None:
            self._set(images_received=received, images_expected=expected)

        complete = Intake(self._conversation, self._state, self._settings, self._owners, on_progress).run()
        # The card speaks of what was delivered, not of what was announced.
        self._owners = {name: self._delivered(name) for name in complete}
        self._set(phase=Phase.TRAINING)
        if not any(one.train_images for one in self._owners.values()):
            raise FederationError("no owner delivered an image to train on")
        if self._processes.total > 1:
            yield from self._train_elsewhere(network)
            return
        images = pooled_images(self._state, sorted(self._owners), self._device, self._processes.placement)
        compiled = self._processes.compiled
        with compiler_cache(self._state.compiled) if compiled else nullcontext():
            yield from train_pooled(
                network,
                lambda _epoch: images.train,
                images.held_out,
                self._settings,
                self._state.checkpoint,
                self._device,
                self._check_stop_now_and_then(),
                len(self._owners),
                compiled=compiled,
            )

    def _train_elsewhere(self, network: ImageClassifier) -> Iterator[RoundRecord]:
        """Train in processes of their own, and take the weights that they leave."""
        check_stop = self._conversation.check_stop
        yield from train_in_processes(self._state, self._processes, sorted(self._owners), check_stop)
        checkpoint = load_checkpoint(self._state.checkpoint)
        if checkpoint is None or checkpoint.rounds < self._settings.training.epochs:
            raise FederationError(
                "the training processes ended without the last checkpoint",
                hint=f"See {self._state.logs / 'training.log'}; with several machines, all need the same state folder.",
            )
        load_network_state(network, checkpoint.delivered)

    def _check_stop_now_and_then(self) -> Callable[[int, int], None]:
        """Make a callable for every training step: it looks at the disk once a second at most."""
        last_check = time.monotonic()

        def on_step(_step: int, _steps: int) -> None:
            nonlocal last_check
            if time.monotonic() - last_check > _STOP_CHECK_S:
                last_check = time.monotonic()
                self._conversation.check_stop()

        return on_step

    def _delivered(self, owner: str) -> Enrolled:
        store = ShardStore(self._state.store(owner))
        return self._owners[owner].model_copy(
            update={
                "train_images": distinct_images(store, Split.TRAIN),
                "held_out_images": distinct_images(store, Split.HELD_OUT),
            }
        )

    def end(self, phase: Phase, message: str) -> None:
        """Tell the owners and the status that it ended without a model."""
        self._state.audit(str(phase), reason=message)
        try:
            self._tell(wire.Farewell(False, message, "", {}), _LAST_FAREWELL_S)
        finally:
            self._set(phase=phase, message=message)

    def _tell(self, farewell: wire.Farewell, timeout_s: float) -> None:
        """Tell every owner that is online how it ended, and wait until each has heard it or the time is over."""
        content = wire.pack_farewell(farewell)
        for owner in self._conversation.waiting_for():
            self._conversation.forget(owner)
        for owner in sorted(self._conversation.online()):
            self._conversation.ask(owner, wire.FINISH, content, "finish", timeout_s)
        for _ in self._conversation.answers(time.monotonic() + timeout_s, heed_stop=False):
            pass
        for owner in self._conversation.waiting_for():
            self._state.audit("did not hear the end", owner=owner)

    def _set(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)
        self._state.set_status(self._status)

    def _card(self) -> ModelCard:
        settings = self._settings
        network = settings.network_config()
        rounds = self._status.rounds
        accuracy = rounds[-1].accuracy if rounds else None
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
            accuracy=accuracy,
            held_out_images=0 if accuracy is None else sum(one.held_out_images for one in self._owners.values()),
            seed=settings.training.seed,
            training=settings.training.model_dump(mode="json"),
            versions=installed_versions(),
            created=datetime.datetime.now(datetime.UTC),
            leakage=reference(settings.cipher.spec, channels=settings.channels),
        )


def _curve(rounds: list[RoundRecord]) -> list[CurvePoint]:
    return [
        CurvePoint(
            round=one.round,
            train_loss=one.train_loss,
            held_out_loss=one.held_out_loss,
            accuracy=one.accuracy,
            seconds=one.seconds,
        )
        for one in rounds
    ]
