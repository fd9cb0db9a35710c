"""Who may take part: invites, and the checks an owner passes before it is admitted."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.state import Enrolled, Owner, Plan, StateFolder, now_text
from ppfed.enrolment import EnrolmentRequest, key_differs
from ppfed.errors import FederationError, InviteError, MismatchError, UsageError
from ppfed.federation import Exchange, FederationSettings, Invite, class_difference, new_token, some_names
from ppfed.images.types import ID_BYTES

_ROW_BYTES = ID_BYTES + 8 + 32
"""Of each image in the store, besides its pixels: id, label, digest."""

_ASK_AGAIN = "Ask the coordinator for a new invite: ppfed coordinator invite NAME"


def make_invite(state: StateFolder, name: str, file: Path | None = None, *, replace: bool = False) -> Invite:
    """Invite an owner; of its token only the hash is kept.

    Parameters
    ----------
    state : StateFolder
    name : str
    file : Path or None
        Where to write the invite. Where that fails nothing has changed.
    replace : bool
        Whether to take the place of an owner that has joined from it, for whoever lost the folder with its node key.
        What its former holder sent is deleted: it may have been somebody else.

    Raises
    ------
    InviteError
        If the file cannot be written.
    UsageError
        If the owner has joined already and is not to be replaced, or is while a coordinator is running; or if the
        federation is complete.
    """
    plan = state.plan()
    token = new_token(secrets.token_bytes(32))
    invite = Invite(
        owner=name,
        address=plan.address,
        ca_certificate=(state.pki / "ca.pem").read_text(),
        token=token,
        federation=plan.settings,
    )
    with ExitStack() as undo:
        # A coordinator that runs would go on with the node that it knows.
        with state.running() if replace else nullcontext(), state.changing_owners() as owners:
            owners[name] = _invited(plan, owners, name, token, replace=replace)
            if file is not None:
                invite.write(file)
                undo.callback(file.unlink, missing_ok=True)
            if replace:
                state.set_delivered(name, None)
                shutil.rmtree(state.store(name), ignore_errors=True)
        undo.pop_all()
    state.audit("replaced" if replace else "invited", owner=name)
    return invite


def _invited(plan: Plan, owners: Mapping[str, Owner], name: str, token: str, *, replace: bool) -> Owner:
    known = owners.get(name)
    joined = None if known is None else known.enrolled
    if joined is not None and not replace:
        raise UsageError(
            f"{name} has joined already",
            hint="It joins again with the invite and the --state that it has. If that folder is lost, stop the "
            "coordinator and use --replace.",
        )
    if known is None and len(owners) >= plan.settings.owners:
        raise UsageError(
            f"all {plan.settings.owners} owners of this federation are invited: {', '.join(owners)}",
            hint="Invite one of them again to replace an invite that was not used.",
        )
    former = ({} if known is None else known.former) | ({} if joined is None else {joined.node_key: joined.node_id})
    return Owner(name=name, token_sha256=_hash(token), invited_at=now_text(), former=former)


def find_owner(state: StateFolder, token: str) -> Owner:
    """Find the owner to whom a token was given.

    Raises
    ------
    InviteError
        If it was given to nobody.
    """
    hashed = _hash(token)
    found = [owner for owner in state.owners().owners.values() if hmac.compare_digest(owner.token_sha256, hashed)]
    if not found:
        raise InviteError("the coordinator does not know this invite", hint=_ASK_AGAIN)
    return found[0]


def admit(state: StateFolder, request: EnrolmentRequest, register_node: Callable[[str, str], int]) -> Owner:
    """Check an owner and admit it; the same owner with the same node key may ask again.

    Parameters
    ----------
    state : StateFolder
    request : EnrolmentRequest
    register_node : callable
        Registers (owner, node key in OpenSSH format) with Flower and returns the node's id.

    Raises
    ------
    InviteError, MismatchError, FederationError
        Saying what differs and what to do. Others are not affected.
    """
    settings = state.plan().settings
    owner = find_owner(state, request.token)
    node_key = _canonical_node_key(request.node_key)
    known = owner.enrolled
    if known is not None and known.node_key != node_key:
        raise InviteError(
            f"the invite of {owner.name} was used by another node key already",
            hint="Join with the same --state as before. If that folder is lost, or you never joined, tell the "
            f"coordinator: ppfed coordinator invite {owner.name} --replace",
        )
    _compare(settings, agreed_fingerprint(settings, state.owners().enrolled(), owner.name), request)
    if request.train_images < settings.training.min_local_batch:
        raise FederationError(
            f"this federation needs {settings.training.min_local_batch} images to train on at least, and you have "
            f"{request.train_images}",
            hint="Bring more images.",
        )
    if settings.exchange is Exchange.IMAGES:
        _require_space(state, settings, owner.name, request)
    nodes = owner.former if known is None else {known.node_key: known.node_id}
    node_id = nodes[node_key] if node_key in nodes else register_node(owner.name, node_key)
    enrolled = Enrolled(
        node_key=node_key,
        node_id=node_id,
        fingerprint=request.fingerprint,
        train_images=request.train_images,
        held_out_images=request.held_out_images,
        copies=request.copies,
        at=now_text(),
    )
    admitted = owner.model_copy(update={"enrolled": enrolled})
    with state.changing_owners() as owners:
        # Two first owners may have asked at once: the later one is measured by the earlier one's key.
        if owner.name not in owners or owners[owner.name].token_sha256 != owner.token_sha256:
            raise InviteError(f"the invite of {owner.name} was replaced by a newer one", hint=_ASK_AGAIN)
        agreed = agreed_fingerprint(settings, state.owners().enrolled(), owner.name)
        if agreed is not None and agreed != request.fingerprint:
            _compare(settings, agreed, request)
        owners[owner.name] = admitted
    return admitted


def public_key_pem(node_key: str) -> bytes:
    """Write a node key in the form in which Flower's nodes present it."""
    key = serialization.load_ssh_public_key(node_key.encode())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def agreed_fingerprint(settings: FederationSettings, enrolled: Mapping[str, Enrolled], asking: str) -> str | None:
    """Find the key that an owner has to use: the federation's, or that of the others who joined; None if it is free."""
    if settings.fingerprint is not None:
        return settings.fingerprint
    others = [one.fingerprint for name, one in enrolled.items() if name != asking]
    return others[0] if others else None


def _compare(settings: FederationSettings, fingerprint: str | None, request: EnrolmentRequest) -> None:
    if fingerprint is not None and request.fingerprint != fingerprint:
        raise key_differs(fingerprint, request.fingerprint)
    if request.cipher != settings.cipher:
        raise MismatchError(
            f"the cipher differs: this federation uses {settings.cipher.spec}, you offer {request.cipher.spec}",
            hint="Join with the invite's settings.",
        )
    offered = (request.height, request.width, request.channels)
    if offered != settings.shape:
        raise MismatchError(
            f"the image size differs: this federation uses {_times(settings.shape)}, you offer {_times(offered)}",
            hint="Join with the invite's settings.",
        )
    if request.classes != settings.classes:
        raise MismatchError(
            f"the class list differs: {_class_difference(settings.classes, request.classes)}",
            hint=f"Name your class folders: {some_names(settings.classes)}; a class without images is an empty folder.",
        )
    if request.settings_digest != settings.digest():
        raise MismatchError("the invite is of other settings than this federation's", hint=_ASK_AGAIN)


def _require_space(state: StateFolder, settings: FederationSettings, asking: str, request: EnrolmentRequest) -> None:
    """Refuse images that the disk cannot hold besides what the others announced: a full disk ends the run for all."""
    images = request.train_images * request.copies + request.held_out_images
    for name, one in state.owners().enrolled().items():
        if name != asking:
            images += one.train_images * one.copies + one.held_out_images
    height, width, channels = settings.shape
    wanted_bytes = images * (height * width * channels + _ROW_BYTES)
    stored_bytes = sum(path.stat().st_size for path in state.folder.glob("store/*/*/*.arrow"))
    room_bytes = shutil.disk_usage(state.folder).free + stored_bytes
    if wanted_bytes > room_bytes:
        raise FederationError(
            f"the coordinator has room for {room_bytes / 1e9:.1f} GB of images, and yours make it "
            f"{wanted_bytes / 1e9:.1f} GB",
            hint="Bring fewer images or copies, or ask the coordinator to free disk space; then join again.",
        )


def _class_difference(agreed: tuple[str, ...], offered: tuple[str, ...]) -> str:
    missing, extra = class_difference(agreed, offered)
    parts = []
    if missing:
        parts.append(f"you lack {some_names(missing)}")
    if extra:
        parts.append(f"you have {some_names(extra)} besides")
    return "; ".join(parts) or "the order is another"


def _times(shape: tuple[int, int, int]) -> str:
    return "x".join(str(side) for side in shape)


def _canonical_node_key(text: str) -> str:
    try:
        key = serialization.load_ssh_public_key(text.encode())
    # A compressed point is well-formed, and not implemented.
    except (ValueError, UnsupportedAlgorithm, NotImplementedError):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise FederationError("the node key is not a P-384 public key", hint="Update ppfed and join again.")
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
