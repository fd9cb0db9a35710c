"""The only public port: enrolment, status, and Flower's Fleet API for admitted owners.

Flower's SuperLink serves its Control and Runtime APIs, which start runs and execute code, on the same port as the Fleet
API, and node authentication does not close them. So it listens on the loopback interface only, and nothing but
``POST /v1/fleet/*`` from an admitted node's key is forwarded to it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvicorn
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from coordinator.admission import admit, agreed_fingerprint, find_owner, public_key_pem
from coordinator.pki import Certificates
from coordinator.state import TOO_LATE, StateFolder
from ppfed.enrolment import (
    ENROL_PATH,
    FLEET_PREFIX,
    STATUS_PATH,
    EnrolmentReply,
    EnrolmentRequest,
    StatusReply,
    StatusRequest,
)
from ppfed.errors import FederationError, InviteError, ServiceError
from ppfed.federation import describe_invalid
from ppfed.services import CHUNK_BYTES

_MOST_ENROLMENT_BYTES = 16 << 10
"""Besides the list of classes, of which an owner sends what its invite says."""
_MOST_STATUS_BYTES = 4 << 10
_MOST_FLEET_BYTES = 2 * CHUNK_BYTES
"""A call carries one object at most, and Flower cuts them."""
_BODY_TIMEOUT_S = 30.0
_FLEET_PAUSE_S = 30.0
_FLEET_BODY_S = 3600.0
"""The largest message takes eleven minutes on a line of 1 Mbit/s."""
_MOST_UNDER_WAY = 64
"""Calls of one owner at a time. A SuperNode makes a few: its questions, and the objects that it moves side by side."""
_MOST_CONNECTIONS = 512
_KEEP_ALIVE_S = 15
"""An idle node asks every 3 s."""

_AUDIT_EVERY_S = 60.0
_ONLINE_S = 15.0
_NODE_KEY_HEADER = "flwr-public-key"
_TIMESTAMP_HEADER = "flwr-timestamp"
_SIGNATURE_HEADER = "flwr-signature"
_KEPT_HEADERS = ("content-type", "accept", "content-encoding", "content-length")
_START_TIMEOUT_S = 20.0
_UPSTREAM_TIMEOUT_S = 120.0
_FLEET_CALL = re.compile(r"[a-z]+(-[a-z]+)*")
"""``push-object`` and its like: no dots and no escapes, which the SuperLink might read otherwise than we do."""


class _TooLargeError(Exception):
    """A request is larger than anything an owner has reason to send."""


class _TooSlowError(Exception):
    """A request does not go on, or does not end."""


class _Relayed(StreamingResponse):
    """The SuperLink's answer, passed on as it comes; its connection is given back whatever becomes of the owner's."""

    def __init__(self, answer: httpx.Response, on_end: Callable[[], None]) -> None:
        kept = {name: value for name, value in answer.headers.items() if name in _KEPT_HEADERS}
        super().__init__(answer.aiter_raw(), answer.status_code, headers=kept)
        self._answer = answer
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
            await self._answer.aclose()


@dataclass
class _Refusals:
    """Of one owner, or of strangers, since the last line about them in the audit trail."""

    count: int = 0
    reason: str = ""
    next_line: float = 0.0


@dataclass
class Traffic:
    """What the front door saw of each owner; read by the coordinator's own process."""

    received_bytes: dict[str, int] = field(default_factory=dict)
    last_seen: dict[str, float] = field(default_factory=dict)

    def online(self) -> set[str]:
        """Owners whose node was heard of in the last seconds."""
        now = time.monotonic()
        return {owner for owner, seen in list(self.last_seen.items()) if now - seen < _ONLINE_S}


class FrontDoor:
    """An ASGI application behind TLS.

    Parameters
    ----------
    state : StateFolder
    superlink_url : str
        ``https://127.0.0.1:PORT``.
    ca : Path
        The authority that signed the SuperLink's certificate.
    register_node : callable
        Registers (owner, node key) with Flower and returns the node's id.
    """

    def __init__(
        self, state: StateFolder, superlink_url: str, ca: Path, register_node: Callable[[str, str], int]
    ) -> None:
        self._state = state
        self._superlink_url = superlink_url
        self._ca = ca
        self._register_node = register_node
        self._admission = asyncio.Lock()
        self._most_enrolment_bytes = _MOST_ENROLMENT_BYTES + len(json.dumps(state.plan().settings.classes))
        self._refusals: dict[str | None, _Refusals] = {}
        self._client: httpx.AsyncClient | None = None
        self._under_way: Counter[str] = Counter()
        self.traffic = Traffic(received_bytes=state.traffic())
        self._owner_of_key = {public_key_pem(one.node_key): name for name, one in state.owners().enrolled().items()}
        self.app = Starlette(
            routes=[
                Route(ENROL_PATH, self._enrol, methods=["POST"]),
                Route(STATUS_PATH, self._status, methods=["POST"]),
                Route(FLEET_PREFIX + "{call}", self._fleet, methods=["POST"]),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        context = ssl.create_default_context(cafile=str(self._ca))
        async with httpx.AsyncClient(
            base_url=self._superlink_url,
            verify=context,
            timeout=_UPSTREAM_TIMEOUT_S,
            # Calls are limited for each owner: one that waits for a connection would wait for others' owners.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_MOST_UNDER_WAY),
            trust_env=False,
        ) as client:
            self._client = client
            yield
        for owner in self._refusals:
            self._audit_refusals(owner)

    async def _enrol(self, request: Request) -> Response:
        try:
            asked = EnrolmentRequest.model_validate_json(await _read(request, self._most_enrolment_bytes))
        except (ValidationError, _TooLargeError) as error:
            self._count_stranger()
            reply = EnrolmentReply(
                admitted=False,
                message=f"the request is malformed: {describe_invalid(error)}",
                hint="Owner and coordinator need the same version of ppfed.",
            )
            return _json(reply, 400)
        except TimeoutError:
            self._count_stranger()
            return PlainTextResponse("the request took too long", 408)
        except ClientDisconnect:
            return self._went_away()
        try:
            owner = find_owner(self._state, asked.token)
        except InviteError as error:
            self._count_stranger()
            return _json(_refusal(error), 403)
        async with self._admission:
            try:
                owner = await asyncio.to_thread(admit, self._state, asked, self._register_node)
            except FederationError as error:
                self._refused(error.message, owner.name)
                return _json(_refusal(error), 403)
        enrolled = owner.enrolled
        if enrolled is None:
            raise RuntimeError("an admitted owner is enrolled")
        self._owner_of_key[public_key_pem(enrolled.node_key)] = owner.name
        self._state.audit(
            "admitted", owner=owner.name, fingerprint=enrolled.fingerprint, train_images=enrolled.train_images
        )
        return _json(EnrolmentReply(admitted=True), 200)

    async def _status(self, request: Request) -> Response:
        try:
            asked = StatusRequest.model_validate_json(await _read(request, _MOST_STATUS_BYTES))
            owner = find_owner(self._state, asked.token)
        except (ValidationError, _TooLargeError, TimeoutError, InviteError):
            return PlainTextResponse("forbidden", 403)
        except ClientDisconnect:
            return self._went_away()
        status, settings = self._state.status(), self._state.plan().settings
        enrolled = self._state.owners().enrolled()
        reply = StatusReply(
            phase=status.phase,
            owners_joined=len(enrolled),
            owners_wanted=settings.owners,
            fingerprint=agreed_fingerprint(settings, enrolled, owner.name) or "",
            message=TOO_LATE if owner.enrolled is not None and status.leaves_out(owner.name) else status.message,
        )
        return _json(reply, 200)

    async def _fleet(self, request: Request) -> Response:
        node_key = _node_key(request)
        owner = self._owner_of_key.get(node_key)
        call = request.path_params["call"]
        if owner is None or _FLEET_CALL.fullmatch(call) is None:
            return PlainTextResponse("this node key is not admitted, or there is no such call", 403)
        # The SuperLink looks at it once it has read everything: till then a public key, which is no secret, would be
        # enough to use up the owner's calls.
        if not _is_signed(request, node_key):
            return PlainTextResponse("the call is not signed by this node", 401)
        client = self._client
        if client is None:
            return PlainTextResponse("starting", 503)
        if self._under_way[owner] >= _MOST_UNDER_WAY:
            # Of refusals, this is one after which Flower tries again.
            return PlainTextResponse("too many calls at a time", 503)
        self._under_way[owner] += 1
        answer: httpx.Response | Response | None = None
        try:
            answer = await self._forward(client, request, owner, call)
        finally:
            if not isinstance(answer, httpx.Response):
                self._under_way[owner] -= 1
        if isinstance(answer, Response):
            return answer
        if answer.is_success:
            # The SuperLink checked how old the signature is.
            self.traffic.last_seen[owner] = time.monotonic()
        return _Relayed(answer, lambda: self._under_way.subtract([owner]))

    async def _forward(
        self, client: httpx.AsyncClient, request: Request, owner: str, call: str
    ) -> httpx.Response | Response:
        """Send a call on; returns the SuperLink's answer, or our own where there is none."""
        headers = {
            name: value for name, value in request.headers.items() if name in _KEPT_HEADERS or name.startswith("flwr-")
        }
        # Not the path as it came: what was checked is what is sent.
        forwarded = client.build_request(
            "POST", FLEET_PREFIX + call, headers=headers, content=self._counted(request, owner)
        )
        try:
            return await client.send(forwarded, stream=True)
        except _TooLargeError:
            self._state.audit("refused", owner=owner, reason="request too large")
            return PlainTextResponse("too large", 413)
        except _TooSlowError:
            # Not 408, after which Flower gives the call up: lines do stall.
            return PlainTextResponse("the request took too long", 503)
        except ClientDisconnect:
            return PlainTextResponse("the owner went away", 400)
        except httpx.TransportError:
            return PlainTextResponse("the SuperLink does not answer", 503)

    def _went_away(self) -> Response:
        """Answer nobody: whoever hangs up within a request must not make a traceback in the log."""
        self._count_stranger()
        return PlainTextResponse("the request was not finished", 400)

    def _count_stranger(self) -> None:
        """Count a request without a valid invite."""
        self._refused("malformed, or without a valid invite", None)

    def _refused(self, reason: str, owner: str | None) -> None:
        """Write to the audit trail, once a minute for each owner and for strangers: they must not fill the disk."""
        refusals = self._refusals.setdefault(owner, _Refusals())
        refusals.count += 1
        refusals.reason = reason
        if time.monotonic() >= refusals.next_line:
            self._audit_refusals(owner)

    def _audit_refusals(self, owner: str | None) -> None:
        refusals = self._refusals[owner]
        if refusals.count:
            who = {} if owner is None else {"owner": owner}
            self._state.audit("refused", **who, reason=refusals.reason, requests=refusals.count)
        refusals.count = 0
        refusals.next_line = time.monotonic() + _AUDIT_EVERY_S

    async def _counted(self, request: Request, owner: str) -> AsyncIterator[bytes]:
        size = 0
        stream = request.stream()
        clock = asyncio.get_running_loop().time
        end = clock() + _FLEET_BODY_S
        while True:
            try:
                async with asyncio.timeout_at(min(end, clock() + _FLEET_PAUSE_S)):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise _TooSlowError from None
            if chunk is None:
                return
            size += len(chunk)
            if size > _MOST_FLEET_BYTES:
                raise _TooLargeError
            self.traffic.received_bytes[owner] = self.traffic.received_bytes.get(owner, 0) + len(chunk)
            yield chunk


class FrontDoorServer:
    """Serves the front door in a thread of the coordinator's process."""

    def __init__(self, door: FrontDoor, host: str, port: int, certificates: Certificates) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(
                door.app,
                host=host,
                port=port,
                ssl_certfile=str(certificates.server),
                ssl_keyfile=str(certificates.server_key),
                access_log=False,
                # Of requests that are no HTTP uvicorn warns with a line each, and strangers may send them.
                log_level="error",
                server_header=False,
                date_header=False,
                ws="none",
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        self._thread = threading.Thread(target=self._run, name="front-door", daemon=True)
        self._where = f"{host}:{port}"

    def start(self) -> None:
        """Start serving.

        Raises
        ------
        ServiceError
            If the address cannot be listened on.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ServiceError(
                    f"cannot listen on {self._where}",
                    hint="Another program uses the port, perhaps: free it, or start again with --listen HOST:PORT, and "
                    "have connections to the invites' address forwarded to that.",
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            self._server.run()
        except SystemExit:
            # uvicorn exits where it cannot bind; start() reports it.
            return


def _node_key(request: Request) -> bytes:
    # Of several keys, the SuperLink might read another one than we do.
    presented = request.headers.getlist(_NODE_KEY_HEADER)
    try:
        return base64.b64decode(presented[0], validate=True) if len(presented) == 1 else b""
    except ValueError:
        return b""


def _is_signed(request: Request, node_key: bytes) -> bool:
    """Whether whoever calls has the private key too; what Flower's nodes sign is the time."""
    key = load_pem_public_key(node_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        signature = base64.b64decode(request.headers.get(_SIGNATURE_HEADER, ""), validate=True)
        signed = request.headers.get(_TIMESTAMP_HEADER, "").encode("ascii")
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async with asyncio.timeout(_BODY_TIMEOUT_S):
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise _TooLargeError("it is too large")
    return bytes(body)


def _refusal(error: FederationError) -> EnrolmentReply:
    """Tell an owner why it was not admitted; Flower's words are for the coordinator."""
    if isinstance(error, ServiceError):
        return EnrolmentReply(
            admitted=False,
            message="it could not register this owner's node",
            hint="The coordinator's audit.jsonl has the reason. Join again once that is mended.",
        )
    return EnrolmentReply(admitted=False, message=error.message, hint=error.hint)


def _json(reply: EnrolmentReply | StatusReply, code: int) -> JSONResponse:
    return JSONResponse(reply.model_dump(mode="json"), code)
