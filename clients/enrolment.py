"""Asks the coordinator's front door for admission, and how things stand."""

from __future__ import annotations

import ssl
import time

import httpx
from pydantic import BaseModel, ValidationError

import ppfed
from clients.prepared import Prepared
from ppfed.enrolment import (
    ENROL_PATH,
    STATUS_PATH,
    EnrolmentReply,
    EnrolmentRequest,
    StatusReply,
    StatusRequest,
    key_differs,
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
            self._client = httpx.Client(
                base_url=f"https://{invite.address}",
                verify=context,
                # What is small when it arrives must not grow when it is unpacked.
                headers={"accept-encoding": "identity"},
                # No proxy of this machine, as the SuperNode uses none.
                trust_env=False,
            )
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
            held_out_images=prepared.measured(settings),
            copies=prepared.copies,
            ppfed_version=ppfed.__version__,
        )
        status, body = self._reach(ENROL_PATH, request)
        try:
            reply = EnrolmentReply.model_validate_json(body)
        except ValidationError:
            raise FederationError(
                f"{self._invite.address} does not answer as a coordinator of this version (HTTP {status})",
                hint="Owner and coordinator need the same version of ppfed.",
            ) from None
        if not reply.admitted:
            raise MismatchError(f"the coordinator refused: {reply.message}", hint=reply.hint)

    def check_ahead(self, fingerprint: str) -> None:
        """Find out what admission would fail of, before the work that comes before it.

        Raises
        ------
        MismatchError
            If the other owners use another key.
        FederationError
            If the coordinator does not answer.
        """
        _, body = self._reach(STATUS_PATH, StatusRequest(token=self._invite.token))
        try:
            agreed = StatusReply.model_validate_json(body).fingerprint
        except ValidationError:
            # Admission will say why.
            return
        if agreed and agreed != fingerprint:
            raise key_differs(agreed, fingerprint)

    def status(self) -> StatusReply | None:
        """Ask how things stand; None if there is no answer."""
        request = StatusRequest(token=self._invite.token)
        try:
            _, body = self._ask(STATUS_PATH, request, _STATUS_TIMEOUT_S)
            return StatusReply.model_validate_json(body)
        except (httpx.RequestError, ValidationError):
            return None

    def _reach(self, path: str, request: BaseModel) -> tuple[int, bytes]:
        """Ask; raises FederationError if there is no answer."""
        try:
            return self._ask(path, request, _TIMEOUT_S)
        except httpx.RequestError as error:
            raise FederationError(
                f"the coordinator at {self._invite.address} cannot be reached: {error}",
                hint="Check that 'ppfed coordinator start' runs there, that the address in the invite is right, and "
                "that a firewall lets this port through. If the federation has finished, ask for its model folder.",
            ) from None

    def _ask(self, path: str, request: BaseModel, timeout_s: float) -> tuple[int, bytes]:
        """Post a request; returns the HTTP status and the body, empty where it is packed or too large to read."""
        deadline = time.monotonic() + timeout_s
        body = b""
        with self._client.stream("POST", path, json=request.model_dump(mode="json"), timeout=timeout_s) as answer:
            if "content-encoding" in answer.headers:
                return answer.status_code, b""
            for part in answer.iter_raw():
                body += part
                if len(body) > _MOST_REPLY_BYTES:
                    return answer.status_code, b""
                # httpx limits the wait for each part, not for all of them.
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer takes too long")
        return answer.status_code, body

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
