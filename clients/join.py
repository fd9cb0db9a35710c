"""``ppfed client join``: from a key, images and an invite to a trained model."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import platformdirs
import torch

from clients.answers import AnswerLimit
from clients.enrolment import CoordinatorClient
from clients.flower_executor import FlowerExecutor, UnansweredError
from clients.owner_app import Display, OwnerApp
from clients.prepared import MARKER, Prepared
from clients.supernode import SuperNode, ensure_node_key
from ppfed.enrolment import Phase, StatusReply
from ppfed.errors import FederationError, ServiceError, UsageError
from ppfed.federation import Exchange, FederationSettings, Invite
from ppfed.model_folder import ModelCard
from ppfed.training.allocator import freed_memory_kept

LEAKAGE_PICTURE = "leakage.png"
"""In the owner's folder: what a coordinator can restore of its images."""

_POLL_S = 0.2
_POLL_BUSY_S = 0.02
_BUSY_S = 5.0
"""So long after an answer the next question is looked for more often: shards and steps are asked for one after
another."""
_STATUS_S = 3.0
_DELIVERY_S = 2.0
_UNREACHABLE_S = 30.0
_REJOIN_S = 90.0
_REJOIN_PAUSE_S = 10.0
_FAREWELL_GRACE_S = 30.0

_GO_ON = "If the coordinator is started again, the same command goes on"

_NODE_KEY = "node.key"
_STORE = "store"
_ANSWERS = "answers.json"


@dataclass(frozen=True)
class Summary:
    """How the federation ended for this owner.

    Attributes
    ----------
    card : ModelCard or None
        None where no model came out.
    model_folder : Path
    message : str
        Why there is no model; empty otherwise.
    bytes_out : int
        Bytes of encrypted images, weights or gradients handed to Flower.
    seconds : float
        From joining to the end.
    """

    card: ModelCard | None
    model_folder: Path
    message: str
    bytes_out: int
    seconds: float


def default_folder(invite: Invite) -> Path:
    """Where an owner keeps its encrypted store, node key, logs and model for one federation.

    A federation is known by its certificate and by what was agreed: two may have the same settings, and one certificate
    may come with several, and the model of the first must stay.
    """
    known = hashlib.sha256(f"{invite.federation.digest()} {invite.ca_certificate}".encode()).hexdigest()
    return platformdirs.user_data_path("ppfed") / f"{invite.federation.name}-{known[:16]}" / invite.owner


def store_folder(folder: Path) -> Path:
    """Where in an owner's state folder its encrypted images lie."""
    return folder / _STORE


def make_private(folder: Path) -> None:
    """Make the owner's state folder, or take an earlier one: nobody else on this machine may look into it.

    Raises
    ------
    UsageError
        If it holds what ppfed did not make: others may need that.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made: {error.strerror}", hint="Name another one with --state."
        ) from None
    store = store_folder(folder)
    ours = (folder / _NODE_KEY, store / MARKER)
    # Whoever was shown what leaks and said no has nothing but the picture here, and whoever was interrupted before
    # the store had its marker, or after it had lost it, an empty store.
    empty_store = store.is_dir() and not any(store.iterdir())
    others = any(one.name != LEAKAGE_PICTURE and not (one == store and empty_store) for one in folder.iterdir())
    if others and not any(one.exists() for one in ours):
        raise UsageError(
            f"{folder} holds files that ppfed did not make",
            hint="Name a folder with --state that is missing or empty.",
        )
    folder.chmod(0o700)


def check_ahead(invite: Invite, fingerprint: str) -> None:
    """Find out what joining would fail of, before images are encrypted for it: ``CoordinatorClient.check_ahead``."""
    with contextlib.closing(CoordinatorClient(invite)) as coordinator:
        coordinator.check_ahead(fingerprint)


def serve(
    invite: Invite,
    fingerprint: str,
    prepared: Prepared,
    folder: Path,
    device: torch.device,
    display: Display,
    notice: Callable[[str], None],
) -> Summary:
    """Join and answer the coordinator until the federation ends. The key is not needed any more.

    Parameters
    ----------
    invite : Invite
    fingerprint : str
        The key's public name.
    prepared : Prepared
    folder : Path
        The owner's state folder.
    device : torch.device
        Where local training runs.
    display : Display
    notice : callable
        Called with a line of text for the owner.

    Raises
    ------
    FederationError
        If the coordinator refuses this owner, cannot be reached, or the connection is lost for good.
    DataError
        If the count of earlier answers is damaged.
    """
    started = time.monotonic()
    node_key = folder / _NODE_KEY
    limit = AnswerLimit(folder / _ANSWERS, invite)
    coordinator = CoordinatorClient(invite)
    try:
        coordinator.enrol(ensure_node_key(node_key), fingerprint, prepared)
        notice(f"admitted by the coordinator at {invite.address}")
        node = _connected_node(folder, invite, node_key, notice)
        try:
            app = OwnerApp(
                invite.owner,
                invite.federation,
                prepared,
                device,
                folder / "model",
                display,
                limit,
                limit.order_seed,
            )
            # There each step is a message of its own.
            in_steps = invite.federation.exchange is Exchange.GRADIENTS
            with freed_memory_kept(device) if in_steps else contextlib.nullcontext():
                message = _answer_until_end(app, node, coordinator, notice)
        finally:
            node.stop()
    finally:
        coordinator.close()
    return Summary(app.card, folder / "model", message, app.bytes_out, time.monotonic() - started)


def what_leaves(settings: FederationSettings) -> str:
    """Say in one sentence what an owner sends in this federation."""
    if settings.exchange is Exchange.IMAGES:
        return "every encrypted image and its label, once, to the coordinator's disk"
    if settings.exchange is Exchange.GRADIENTS:
        return (
            f"in each of {settings.training.rounds} rounds, a gradient for each training step: over all your encrypted "
            f"images in turn, at least {settings.training.min_local_batch} at a time; with each, the mean and variance "
            "that every batch-norm layer saw, and the training loss; after each round, the loss on your held-out "
            "images and how many of them were classified rightly; no image, but the gradient of a few images can be "
            "turned back into them, encrypted as they are (docs/threat-model.md)"
        )
    return (
        f"in each of {settings.training.rounds} rounds, the network's weights after training on your encrypted images "
        "and the training loss; with them, and once more at the end, the loss on your held-out images and how many of "
        "them were classified rightly; no image"
    )


def _connected_node(folder: Path, invite: Invite, node_key: Path, notice: Callable[[str], None]) -> SuperNode:
    """Start a SuperNode; after a crash the coordinator takes the old one for alive for about a minute."""
    deadline = time.monotonic() + _REJOIN_S
    while True:
        node = SuperNode(folder, invite.address, invite.ca_certificate, node_key)
        try:
            node.start()
        except ServiceError as error:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"the coordinator admitted this owner, but its Flower node cannot connect: {error.message}",
                    hint=f"{error.hint} If another 'client join' of this owner is running, stop it.",
                ) from None
            notice("the coordinator still counts an earlier connection of this owner as online: trying again")
            time.sleep(_REJOIN_PAUSE_S)
        else:
            return node


def _answer_until_end(
    app: OwnerApp, node: SuperNode, coordinator: CoordinatorClient, notice: Callable[[str], None]
) -> str:
    """Answer messages until the coordinator says that it ended; returns why there is no model, or ``""``."""
    executor = FlowerExecutor(
        node.runtime_address,
        node.secret,
        app.client_app(),
        lambda error: notice(f"a message was answered with an error: {error}"),
    )
    next_status = time.monotonic()
    last_answer = last_question = time.monotonic()
    told = ""
    finished: float | None = None
    try:
        while app.farewell is None:
            if _answered(executor, node, notice):
                last_answer = last_question = time.monotonic()
                continue
            node.require_running()
            time.sleep(_POLL_BUSY_S if time.monotonic() - last_question < _BUSY_S else _POLL_S)
            if finished is not None and time.monotonic() - finished > _FAREWELL_GRACE_S:
                return (
                    "the federation finished and its model is at the coordinator, but the model did not arrive here: "
                    "ask the coordinator for its model folder"
                )
            if time.monotonic() < next_status:
                continue
            next_status = time.monotonic() + _STATUS_S
            status = coordinator.status()
            if status is None:
                line = ""
                if time.monotonic() - last_answer > _UNREACHABLE_S:
                    line = "the coordinator does not answer; trying on (ctrl-C stops; the same command goes on)"
            else:
                last_answer = time.monotonic()
                line = _as_line(status)
                if status.phase is Phase.FINISHED and finished is None:
                    finished = time.monotonic()
                if status.phase in (Phase.STOPPED, Phase.FAILED):
                    return f"the federation {status.phase}: {status.message}. {_GO_ON}"
            if line and line != told:
                notice(line)
                told = line
        # The reply to the last message is on its way: let the node deliver it.
        time.sleep(_DELIVERY_S)
        return "" if app.farewell.completed else f"there is no model yet: {app.farewell.message}. {_GO_ON}"
    finally:
        executor.close()


def _as_line(status: StatusReply) -> str:
    if status.phase is Phase.WAITING:
        return f"{status.phase} ({status.owners_joined} of {status.owners_wanted} joined)"
    under_way = status.phase in (Phase.INTAKE, Phase.TRAINING)
    return f"{status.phase}: {status.message}" if under_way and status.message else str(status.phase)


def _answered(executor: FlowerExecutor, node: SuperNode, notice: Callable[[str], None]) -> bool:
    """Answer one message, if one waits; raises ServiceError where the SuperNode went away."""
    try:
        return executor.run_waiting_task()
    except UnansweredError as error:
        node.require_running()
        notice(f"{error.message}: connecting anew")
        node.stop()
        node.start()
        return False
    except httpx.HTTPError as error:
        node.require_running()
        raise ServiceError(f"Flower's SuperNode does not answer: {error}", hint="Join again.") from None
