"""Asks the coordinator's front door for admission, and how things stand."""

from __future__ import annotations

import ssl

import httpx
from pydantic import ValidationError

import ppfed
from clients.preparation import Prepared
from ppfed.enrolment import (
    ENROL_PATH,
    STATUS_PATH,
    EnrolmentReply,
    EnrolmentRequest,
    StatusReply,
    StatusRequest,
)
from ppfed.errors import FederationError, InviteError, MismatchError
from ppfed.federation import Invite

_TIMEOUT_S = 60.0
_STATUS_TIMEOUT_S = 5.0
_MOST_REPLY_BYTES = 1 << 20


class CoordinatorClient:
    """Talks to the front door over TLS; trusts the invite's authority and no other.

    Parameters
    ----------
    invite : Invite

    Raises
    ------
    InviteError
        If the invite's certificate or address cannot be used.
    """

    def __init__(self, invite: Invite) -> None:
        self._invite = invite
        try:
            if not 0 < int(invite.address.rpartition(":")[2]) < 65536:
                raise ValueError("there is no such port")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            # Not create_default_context: given an empty certificate it trusts every authority of this machine.
            context.load_verify_locations(cadata=invite.ca_certificate)
            self._client = httpx.Client(base_url=f"https://{invite.address}", verify=context, timeout=_TIMEOUT_S)
        except (ssl.SSLError, TypeError, ValueError, httpx.InvalidURL):
            raise InviteError(
                "the invite holds no usable certificate or address",
                hint="Ask the coordinator to make a new one: ppfed coordinator invite NAME",
            ) from None

    def enrol(self, node_key: str, fingerprint: str, prepared: Prepared) -> None:
        """Ask for admission.

        Raises
        ------
        MismatchError
            If the coordinator refuses, with its reason and what to do.
        FederationError
            If it does not answer, or not as a coordinator does.
        """
        settings = self._invite.federation
        request = EnrolmentRequest(
            token=self._invite.token,
            node_key=node_key,
            settings_digest=settings.digest(),
            fingerprint=fingerprint,
            cipher=settings.cipher,
            height=settings.height,
            width=settings.width,
            channels=settings.channels,
            classes=settings.classes,
            train_images=prepared.train_images,
            held_out_images=prepared.held_out_images,
            copies=prepared.copies,
            ppfed_version=ppfed.__version__,
        )
        try:
            answer = self._client.post(ENROL_PATH, json=request.model_dump(mode="json"))
        except httpx.RequestError as error:
            raise FederationError(
                f"the coordinator at {self._invite.address} cannot be reached: {error}",
                hint="Check that 'ppfed coordinator start' runs there, that the address in the invite is right, and "
                "that a firewall lets this port through.",
            ) from None
        try:
            reply = EnrolmentReply.model_validate_json(answer.content[:_MOST_REPLY_BYTES])
        except ValidationError:
            raise FederationError(
                f"{self._invite.address} does not answer as a coordinator of this version (HTTP {answer.status_code})",
                hint="Owner and coordinator need the same version of ppfed.",
            ) from None
        if not reply.admitted:
            raise MismatchError(f"the coordinator refused: {reply.message}", hint=reply.hint)

    def status(self) -> StatusReply | None:
        """Ask how things stand; None if there is no answer."""
        request = StatusRequest(token=self._invite.token)
        try:
            answer = self._client.post(STATUS_PATH, json=request.model_dump(mode="json"), timeout=_STATUS_TIMEOUT_S)
            return StatusReply.model_validate_json(answer.content[:_MOST_REPLY_BYTES])
        except (httpx.RequestError, ValidationError):
            return None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
