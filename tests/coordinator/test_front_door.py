"""The only public port, with a real server behind it in the SuperLink's place: what must not pass does not reach it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import generate_key_pairs, sign_message

from coordinator import front_door
from coordinator.admission import make_invite, public_key_pem
from coordinator.front_door import FrontDoor, FrontDoorServer
from coordinator.pki import Certificates, ensure_certificates
from coordinator.state import TOO_LATE, StateFolder, Status
from ppfed.enrolment import ENROL_PATH, STATUS_PATH, Phase
from ppfed.errors import ServiceError
from ppfed.federation import Invite, new_token

FINGERPRINT = "0123456789abcdef"
PUSH = "/v1/fleet/push-object"


def openssh(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


PRIVATE, STRANGERS = generate_key_pairs()[0], generate_key_pairs()[0]
NODE_KEY, STRANGER = openssh(PRIVATE), openssh(STRANGERS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Upstream:
    """Stands for the SuperLink: answers everything, and remembers it."""

    url: str = ""
    requests: list[SimpleNamespace] = field(default_factory=list)
    status: int = 200
    answer: bytes = b"an answer"

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append(
            SimpleNamespace(method=scope["method"], path=scope["raw_path"].decode(), headers=headers, body=body)
        )
        answer_headers = [(b"content-type", b"application/x-protobuf"), (b"server", b"secret"), (b"x-more", b"1")]
        await send({"type": "http.response.start", "status": self.status, "headers": answer_headers})
        await send({"type": "http.response.body", "body": self.answer})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return ensure_certificates(tmp_path_factory.mktemp("pki"), "localhost", datetime.datetime.now(datetime.UTC))


@contextlib.contextmanager
def serving(app: Any, certificates: Certificates) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=port,
            log_level="error",
            lifespan="off",
            interface="asgi3",
            ssl_certfile=str(certificates.server),
            ssl_keyfile=str(certificates.server_key),
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def running_upstream(certificates: Certificates) -> Iterator[Upstream]:
    upstream = Upstream()
    with serving(upstream.app, certificates) as url:
        upstream.url = url
        yield upstream


@pytest.fixture
def upstream(running_upstream: Upstream) -> Upstream:
    running_upstream.requests.clear()
    running_upstream.status, running_upstream.answer = 200, b"an answer"
    return running_upstream


@pytest.fixture
def state(make_state: Callable[..., StateFolder], certificates: Certificates) -> StateFolder:
    folder = make_state()
    (folder.pki / "ca.pem").write_bytes(certificates.ca.read_bytes())
    return folder


@pytest.fixture
def door(state: StateFolder, upstream: Upstream, certificates: Certificates) -> FrontDoor:
    return FrontDoor(state, upstream.url, certificates.ca, lambda _owner, _key: 7)


@pytest.fixture
def served(door: FrontDoor, certificates: Certificates) -> Iterator[str]:
    """The real thing: uvicorn over TLS on the loopback interface."""
    port = free_port()
    server = FrontDoorServer(door, "127.0.0.1", port, certificates)
    server.start()
    yield f"https://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def client(served: str, certificates: Certificates) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    with httpx.Client(base_url=served, verify=context, timeout=20) as made:
        yield made


def request(invite: Invite, **changes: Any) -> dict[str, Any]:
    settings = invite.federation
    return {
        "token": invite.token,
        "node_key": NODE_KEY,
        "settings_digest": settings.digest(),
        "fingerprint": FINGERPRINT,
        "cipher": settings.cipher.model_dump(mode="json"),
        "height": settings.height,
        "width": settings.width,
        "channels": settings.channels,
        "classes": list(settings.classes),
        "train_images": 10,
        "held_out_images": 2,
        "ppfed_version": "0.1.0",
        **changes,
    }


def presented(node_key: str, private: ec.EllipticCurvePrivateKey = PRIVATE) -> dict[str, str]:
    """What Flower's nodes send: their public key, the time, and its signature."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return {
        "flwr-public-key": base64.b64encode(public_key_pem(node_key)).decode(),
        "flwr-timestamp": now,
        "flwr-signature": base64.b64encode(sign_message(private, now.encode())).decode(),
    }


@pytest.fixture
def admitted(client: httpx.Client, state: StateFolder) -> dict[str, str]:
    """Headers of an admitted owner's node."""
    answer = client.post(ENROL_PATH, json=request(make_invite(state, "anna")))
    assert answer.json() == {"admitted": True, "message": "", "hint": ""}
    return presented(NODE_KEY)


def raw_request(client: httpx.Client, line: str, headers: dict[str, str]) -> int:
    """Send a request line exactly as it is: HTTP libraries tidy paths up."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = client.base_url
    with socket.create_connection((url.host, url.port), timeout=20) as plain, context.wrap_socket(plain) as secure:
        lines = [f"{line} HTTP/1.1", "Host: localhost", "Content-Length: 0", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        secure.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        reply = b""
        while chunk := secure.recv(4096):
            reply += chunk
    return int(reply.split()[1])


# What must not pass.

FORBIDDEN = [
    "POST /v1/control/start-run",
    "POST /v1/control/list-runs",
    "POST /v1/runtime/acquire-task",
    "POST /v1/runtime/pull-object",
    "POST /docs",
    "POST /openapi.json",
    "POST /health",
    "POST /",
    "POST *",
    "POST /v1/fleet",
    "POST /v1/fleet/",
    "POST /v1",
    "GET /",
    "GET /docs",
    "GET /health",
    "GET /openapi.json",
    "GET /v1/fleet/push-object",
    "GET /v1/control/list-runs",
    "GET /v1/enrol",
    "HEAD /v1/fleet/push-object",
    "PUT /v1/fleet/push-object",
    "DELETE /v1/fleet/push-object",
    "PATCH /v1/fleet/push-object",
    "OPTIONS /v1/fleet/push-object",
    "CONNECT localhost:443",
    "TRACE /v1/fleet/push-object",
    "POST /v1/fleet/../control/start-run",
    "POST /v1/fleet/..",
    "POST /v1/fleet/.",
    "POST /v1/fleet/%2e%2e/control/start-run",
    "POST /v1/fleet/%2e%2e",
    "POST /v1/fleet/%2E%2E%2Fcontrol%2Fstart-run",
    "POST /v1/fleet/..%2fcontrol%2fstart-run",
    "POST /v1/fleet/..%5ccontrol%5cstart-run",
    "POST /v1/fleet/%252e%252e%252fcontrol%252fstart-run",
    "POST /v1/fleet/%252e%252e",
    "POST /v1/fleet//push-object",
    "POST //v1/fleet/push-object",
    "POST /v1//fleet/push-object",
    "POST /v1/fleet/push-object/",
    "POST /v1/fleet/push-object/more",
    "POST /v1/fleet/push-object%00",
    "POST /v1/fleet/push-object%0d%0aX-Evil:%201",
    "POST /v1/fleet/%3fpush-object",
    "POST /v1/fleet/push-object%23",
    "POST /v1/fleet/push-object;x=1",
    "POST /v1/fleet/@evil.example.org",
    "POST /v1/FLEET/push-object",
    "POST /V1/fleet/push-object",
    "POST https://evil.example.org/v1/control/start-run",
]


def test_nothing_else_reaches_the_superlink(client: httpx.Client, admitted: dict[str, str], upstream: Upstream) -> None:
    """Not even with an admitted owner's node key."""
    reached = []
    statuses = {}
    for line in FORBIDDEN:
        statuses[line] = raw_request(client, line, admitted)
        if upstream.requests:
            reached.append((line, upstream.requests[0].path))
            upstream.requests.clear()
    assert reached == []
    assert {line: status for line, status in statuses.items() if status not in (307, 400, 403, 404, 405)} == {}


def test_the_check_can_fail(client: httpx.Client, admitted: dict[str, str], upstream: Upstream) -> None:
    assert raw_request(client, f"POST {PUSH}", admitted) == 200
    assert [one.path for one in upstream.requests] == [PUSH]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**presented(NODE_KEY), "flwr-public-key": ""},
        {**presented(NODE_KEY), "flwr-public-key": "!!!"},
        {**presented(NODE_KEY), "flwr-public-key": "Zm9v"},
        presented(STRANGER, STRANGERS),
        {**presented(NODE_KEY), "flwr-public-key": base64.b64encode(NODE_KEY.encode()).decode()},
        {**presented(NODE_KEY), "flwr-public-key": presented(NODE_KEY)["flwr-public-key"] + "\n"},
        {"flwr-public-key-bin": presented(NODE_KEY)["flwr-public-key"]},
    ],
)
def test_without_an_admitted_node_key_nothing_is_forwarded(
    client: httpx.Client, admitted: dict[str, str], upstream: Upstream, headers: dict[str, str]
) -> None:
    with contextlib.suppress(httpx.LocalProtocolError, httpx.RemoteProtocolError):
        assert client.post(PUSH, content=b"x" * 100, headers=headers).status_code in (400, 403)
    assert upstream.requests == []


@pytest.mark.parametrize(
    "changes",
    [
        {"flwr-signature": ""},
        {"flwr-signature": "!!!"},
        {"flwr-signature": "c2ln"},
        {"flwr-signature": presented(NODE_KEY, STRANGERS)["flwr-signature"]},
        {"flwr-timestamp": "2025-01-01T00:00:00+00:00"},
        {"flwr-timestamp": "\xfc"},
    ],
)
def test_a_public_key_alone_is_refused_before_anything_is_read(
    client: httpx.Client, admitted: dict[str, str], upstream: Upstream, door: FrontDoor, changes: dict[str, str]
) -> None:
    """It is no secret: whoever has seen it could use up the owner's calls with bodies that never end."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in {**admitted, **changes}.items()]
    assert client.post(PUSH, content=b"x" * 100, headers=headers).status_code == 401
    for missing in ("flwr-signature", "flwr-timestamp"):
        less = {name: value for name, value in admitted.items() if name != missing}
        assert client.post(PUSH, headers=less).status_code == 401
    assert upstream.requests == []
    assert door.traffic.received_bytes == {}


def test_before_anybody_is_admitted_nothing_is_forwarded(client: httpx.Client, upstream: Upstream) -> None:
    assert client.post(PUSH, headers=presented(NODE_KEY)).status_code == 403
    assert upstream.requests == []


def test_an_admitted_owner_stays_admitted_after_a_restart(
    admitted: dict[str, str], state: StateFolder, upstream: Upstream, certificates: Certificates
) -> None:
    again = FrontDoor(state, upstream.url, certificates.ca, lambda _owner, _key: 7)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(again.app)
        async with (
            again.app.router.lifespan_context(again.app),
            httpx.AsyncClient(transport=transport, base_url="https://localhost") as inside,
        ):
            return await inside.post(PUSH, headers=admitted)

    assert asyncio.run(ask()).status_code == 200
    assert len(upstream.requests) == 1


def test_two_node_keys_are_none(client: httpx.Client, admitted: dict[str, str], upstream: Upstream) -> None:
    """The SuperLink might go by the other one."""
    for keys in ((NODE_KEY, STRANGER), (STRANGER, NODE_KEY), (NODE_KEY, NODE_KEY)):
        headers = [pair for key in keys for pair in presented(key).items()]
        assert client.post(PUSH, headers=headers).status_code == 403
    assert upstream.requests == []


def test_what_was_checked_is_what_is_sent(
    door: FrontDoor, client: httpx.Client, admitted: dict[str, str], upstream: Upstream
) -> None:
    """A server in between may say that we live under a prefix: it is no part of what the SuperLink serves."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(door.app, root_path="/v1/control")
        async with (
            door.app.router.lifespan_context(door.app),
            httpx.AsyncClient(transport=transport, base_url="https://localhost") as inside,
        ):
            return await inside.post(f"/v1/control{PUSH}", headers=admitted)

    assert asyncio.run(ask()).status_code == 200
    assert [one.path for one in upstream.requests] == [PUSH]


def test_a_call_that_the_superlink_refuses_makes_nobody_seem_present(
    client: httpx.Client, admitted: dict[str, str], upstream: Upstream, door: FrontDoor
) -> None:
    for upstream.status in (401, 403, 500):
        client.post(PUSH, headers=admitted)
        assert door.traffic.online() == set()
    upstream.status = 200
    client.post(PUSH, headers=admitted)
    assert door.traffic.online() == {"anna"}


# What passes.


def test_a_fleet_call_is_forwarded_as_it_is_and_counted(
    client: httpx.Client, admitted: dict[str, str], upstream: Upstream, door: FrontDoor
) -> None:
    upstream.answer = bytes(range(256)) * 10
    body = bytes(range(256)) * 1000
    headers = {
        **admitted,
        "content-type": "application/x-protobuf",
        "cookie": "a=b",
        "authorization": "Bearer x",
        "x-forwarded-for": "192.0.2.1",
    }
    answer = client.post(f"{PUSH}?query=dropped", content=body, headers=headers)
    assert (answer.status_code, answer.content) == (200, upstream.answer)
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert "server" not in answer.headers
    assert "x-more" not in answer.headers
    (seen,) = upstream.requests
    assert (seen.method, seen.path, seen.body) == ("POST", PUSH, body)
    for name in ("flwr-public-key", "flwr-signature", "flwr-timestamp", "content-type"):
        assert seen.headers[name] == headers[name]
    for name in ("cookie", "authorization", "x-forwarded-for"):
        assert name not in seen.headers
    assert door.traffic.received_bytes == {"anna": len(body)}
    assert door.traffic.online() == {"anna"}


def test_a_body_of_unknown_length_is_forwarded_too(
    client: httpx.Client, admitted: dict[str, str], upstream: Upstream, door: FrontDoor
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            yield b"chunk" * 100

    assert client.post(PUSH, content=chunks(), headers=admitted).status_code == 200
    assert upstream.requests[0].body == b"chunk" * 500
    assert door.traffic.received_bytes == {"anna": 2500}


def test_the_superlinks_refusal_is_passed_on(
    client: httpx.Client, admitted: dict[str, str], upstream: Upstream
) -> None:
    upstream.status, upstream.answer = 401, b"no"
    answer = client.post(PUSH, headers=admitted)
    assert (answer.status_code, answer.content) == (401, b"no")


def test_a_superlink_that_is_down_is_503(
    state: StateFolder, client: httpx.Client, admitted: dict[str, str], door: FrontDoor
) -> None:
    assert door._client is not None
    door._client.base_url = httpx.URL(f"https://127.0.0.1:{free_port()}")
    assert client.post(PUSH, headers=admitted).status_code == 503


def test_too_large_a_call_is_refused_and_counted_only_as_far_as_it_was_read(
    client: httpx.Client,
    admitted: dict[str, str],
    upstream: Upstream,
    door: FrontDoor,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front_door, "_MOST_FLEET_BYTES", 1000)
    assert client.post(PUSH, content=b"x" * 1000, headers=admitted).status_code == 200
    upstream.requests.clear()
    with contextlib.suppress(httpx.WriteError):  # refused while we were still sending
        assert client.post(PUSH, content=b"x" * 5_000_000, headers=admitted).status_code == 413
    assert upstream.requests == []
    assert door.traffic.received_bytes["anna"] <= 2000
    assert "request too large" in (state.folder / "audit.jsonl").read_text()
    assert client.post(PUSH, content=b"x", headers=admitted).status_code == 200


def test_an_owner_that_is_killed_while_sending_leaves_no_error(
    door: FrontDoor, client: httpx.Client, admitted: dict[str, str], upstream: Upstream
) -> None:
    """Else its death would fill the coordinator's terminal with a traceback."""
    events = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return next(events)

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PUSH,
        "raw_path": PUSH.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "https",
        "server": ("localhost", 443),
        "headers": [(name.encode(), value.encode()) for name, value in admitted.items()],
    }

    async def call() -> None:
        async with door._lifespan(door.app):
            await door.app(scope, receive, send)

    asyncio.run(call())
    assert sent[0]["status"] == 400
    assert upstream.requests == []


@contextlib.contextmanager
def half_sent(client: httpx.Client, path: str, headers: dict[str, str], count: int) -> Iterator[list[ssl.SSLSocket]]:
    """Begin so many requests, and keep them waiting for the rest of their bodies."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Length: 1000"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with contextlib.ExitStack() as held:
        sockets = []
        for _ in range(count):
            plain = held.enter_context(socket.create_connection((client.base_url.host, client.base_url.port), 20))
            sockets.append(held.enter_context(context.wrap_socket(plain)))
            sockets[-1].sendall(("\r\n".join(lines) + "\r\n\r\nx").encode())
        yield sockets


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_owner_cannot_keep_others_waiting(
    client: httpx.Client,
    admitted: dict[str, str],
    state: StateFolder,
    door: FrontDoor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # More than connections that a client of HTTP opens by itself.
    monkeypatch.setattr(front_door, "_MOST_UNDER_WAY", 110)
    others = generate_key_pairs()[0]
    other_key = openssh(others)
    assert client.post(ENROL_PATH, json=request(make_invite(state, "bert"), node_key=other_key)).status_code == 200
    with half_sent(client, PUSH, admitted, 110):
        eventually(lambda: door._under_way["anna"] == 110)
        assert client.post(PUSH, content=b"x", headers=presented(other_key, others), timeout=10).status_code == 200
        assert client.post(PUSH, content=b"x", headers=admitted).status_code == 503
    eventually(lambda: door._under_way["anna"] == 0)
    assert client.post(PUSH, content=b"x", headers=admitted).status_code == 200
    eventually(lambda: not +door._under_way)


@pytest.mark.parametrize("limit", ["_FLEET_PAUSE_S", "_FLEET_BODY_S"])
def test_a_call_that_does_not_go_on_or_does_not_end_is_given_up(
    client: httpx.Client, admitted: dict[str, str], door: FrontDoor, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(front_door, limit, 0.3)
    with half_sent(client, PUSH, admitted, 1) as (one,):
        one.settimeout(10)
        assert b" 503 " in one.recv(100)
    eventually(lambda: not +door._under_way)


@pytest.mark.parametrize("path", [ENROL_PATH, STATUS_PATH])
def test_strangers_who_hang_up_leave_no_traceback(
    client: httpx.Client, door: FrontDoor, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    def counted() -> int:
        strangers = door._refusals.get(None)
        return 0 if strangers is None else strangers.count + bool(strangers.next_line)

    before = counted()
    for _ in range(3):
        with half_sent(client, path, {}, 1):
            time.sleep(0.05)
    eventually(lambda: counted() == before + 3)
    with half_sent(client, path, {}, 0), socket.create_connection((client.base_url.host, client.base_url.port)) as one:
        one.sendall(b"no TLS and no HTTP")
    assert "Traceback" not in capfd.readouterr().err


# Enrolment and status.


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"token": 1}', b"[" * 100_000, b'{"train_images": NaN}'],
)
def test_malformed_enrolment_is_400(client: httpx.Client, state: StateFolder, content: bytes) -> None:
    answer = client.post(ENROL_PATH, content=content)
    assert answer.status_code == 400
    assert answer.json()["admitted"] is False
    assert "malformed" in answer.json()["message"]
    assert answer.json()["hint"]


@pytest.mark.parametrize(
    "changes", [{"train_images": 0}, {"extra": 1}, {"classes": "cat"}, {"copies": 0}, {"node_key": "x" * 3000}]
)
def test_an_impossible_enrolment_is_400_and_does_not_repeat_the_token(
    client: httpx.Client, state: StateFolder, changes: dict[str, Any]
) -> None:
    invite = make_invite(state, "anna")
    answer = client.post(ENROL_PATH, json=request(invite, **changes))
    assert answer.status_code == 400
    assert invite.token not in answer.text
    assert invite.token not in (state.folder / "audit.jsonl").read_text()
    assert state.owners().enrolled() == {}


def test_too_large_an_enrolment_is_refused(client: httpx.Client, state: StateFolder) -> None:
    try:
        answer = client.post(ENROL_PATH, content=b" " * (5 << 20))
    except httpx.WriteError:
        return
    assert answer.status_code == 400
    assert "too large" in answer.json()["message"]


def test_a_refusal_says_why_and_what_to_do(client: httpx.Client, state: StateFolder) -> None:
    invite = make_invite(state, "anna")
    answer = client.post(ENROL_PATH, json=request(invite, height=16))
    assert answer.status_code == 403
    assert answer.json() == {
        "admitted": False,
        "message": "the image size differs: this federation uses 8x8x3, you offer 16x8x3",
        "hint": "Join with the invite's settings.",
    }
    unknown = client.post(ENROL_PATH, json=request(invite, token=new_token(bytes(32))))
    assert unknown.status_code == 403
    assert "does not know this invite" in unknown.json()["message"]
    events = [json.loads(line)["event"] for line in (state.folder / "audit.jsonl").read_text().splitlines()]
    assert events == ["invited", "refused", "refused"]


def test_two_that_use_one_invite_at_once_are_told_apart(client: httpx.Client, state: StateFolder) -> None:
    invite = make_invite(state, "anna")
    answers: list[int] = []

    def ask(node_key: str) -> None:
        answers.append(client.post(ENROL_PATH, json=request(invite, node_key=node_key)).status_code)

    threads = [threading.Thread(target=ask, args=(key,)) for key in (NODE_KEY, STRANGER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [200, 403]


def test_status_is_for_the_invited(client: httpx.Client, state: StateFolder) -> None:
    invite = make_invite(state, "anna")
    state.set_status(Status(phase=Phase.TRAINING, message="round 1"))
    answer = client.post(STATUS_PATH, json={"token": invite.token})
    assert answer.json() == {
        "phase": "training",
        "owners_joined": 0,
        "owners_wanted": 2,
        "message": "round 1",
        "fingerprint": "",
    }
    for content in ({"token": new_token(bytes(32))}, {"token": "x"}, {}, {"token": invite.token, "more": 1}):
        refused = client.post(STATUS_PATH, json=content)
        assert (refused.status_code, refused.text) == (403, "forbidden")


def test_whoever_joined_too_late_for_a_run_is_told(client: httpx.Client, state: StateFolder) -> None:
    tokens = {}
    for name, node_key in (("anna", NODE_KEY), ("bert", STRANGER)):
        invite = make_invite(state, name)
        assert client.post(ENROL_PATH, json=request(invite, node_key=node_key)).status_code == 200
        tokens[name] = invite.token
    for phase, late in ((Phase.TRAINING, TOO_LATE), (Phase.INTAKE, TOO_LATE), (Phase.FAILED, "why")):
        state.set_status(Status(phase=phase, message="why", owners=("anna",)))
        said = {name: client.post(STATUS_PATH, json={"token": one}).json()["message"] for name, one in tokens.items()}
        assert said == {"anna": "why", "bert": late}
    # Whoever prepares images learns with which key the others did.
    assert client.post(STATUS_PATH, json={"token": tokens["bert"]}).json()["fingerprint"] == FINGERPRINT


def test_too_large_a_status_request_is_refused(client: httpx.Client, state: StateFolder) -> None:
    invite = make_invite(state, "anna")
    body = json.dumps({"token": invite.token}).encode()
    assert client.post(STATUS_PATH, content=body.ljust(4096)).status_code == 200
    assert client.post(STATUS_PATH, content=body.ljust(4097)).status_code == 403


@pytest.mark.parametrize(("path", "status"), [(ENROL_PATH, 408), (STATUS_PATH, 403)])
def test_a_body_that_never_ends_is_not_waited_for(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    monkeypatch.setattr(front_door, "_BODY_TIMEOUT_S", 0.2)

    def slowly() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1.5)
        yield b"}"

    started = time.monotonic()
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):
        assert client.post(path, content=slowly()).status_code == status
    assert time.monotonic() - started < 10


def test_strangers_do_not_fill_the_audit_trail(
    client: httpx.Client, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    invite = make_invite(state, "anna")

    def knock() -> None:
        client.post(ENROL_PATH, content=b"{")
        client.post(ENROL_PATH, json=request(invite, token=new_token(bytes(32))))

    def lines() -> list[int]:
        found = map(json.loads, (state.folder / "audit.jsonl").read_text().splitlines())
        return [line["requests"] for line in found if line["event"] == "refused"]

    for _ in range(5):
        knock()
    assert lines() == [1]
    monkeypatch.setattr(front_door, "_AUDIT_EVERY_S", 0.0)
    time_now = time.monotonic
    monkeypatch.setattr(front_door, "time", SimpleNamespace(monotonic=lambda: time_now() + 61))
    knock()
    assert lines() == [1, 10, 1]


def test_refused_owners_do_not_fill_the_audit_trail(client: httpx.Client, state: StateFolder) -> None:
    """Two owners, a line each; and no line is long, whatever an owner says of its classes."""
    names = ["x" * 200] + [f"class {number}" for number in range(60)]
    for name in ("anna", "bert"):
        invite = make_invite(state, name)
        for _ in range(5):
            answer = client.post(ENROL_PATH, json=request(invite, classes=names))
            assert answer.status_code == 403
            assert "and 51 more besides" in answer.json()["message"]
            assert "x" * 51 not in answer.text
    found = [json.loads(line) for line in (state.folder / "audit.jsonl").read_text().splitlines()]
    refused = [line for line in found if line["event"] == "refused"]
    assert [line["owner"] for line in refused] == ["anna", "bert"]
    assert all(len(line["reason"]) < 1000 for line in refused)


def test_an_enrolment_may_be_as_large_as_the_federations_classes_make_it(
    client: httpx.Client, state: StateFolder
) -> None:
    """512 connections of megabytes each, from strangers, would fill the coordinator's memory."""
    body = json.dumps(request(make_invite(state, "anna"))).encode()
    most = front_door._MOST_ENROLMENT_BYTES + len('["cat", "dog"]')
    assert "too large" not in client.post(ENROL_PATH, content=body.ljust(most)).text
    assert "too large" in client.post(ENROL_PATH, content=body.ljust(most + 1)).json()["message"]


def test_what_flower_says_is_for_the_coordinator(
    client: httpx.Client, state: StateFolder, door: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_owner: str, _node_key: str) -> int:
        raise ServiceError("'flwr supernode register' failed: 127.0.0.1:34411", hint="See the logs.")

    monkeypatch.setattr(door, "_register_node", fail)
    answer = client.post(ENROL_PATH, json=request(make_invite(state, "anna")))
    assert answer.status_code == 403
    assert "could not register this owner's node" in answer.json()["message"]
    assert "34411" not in answer.text
    assert "34411" in (state.folder / "audit.jsonl").read_text()


def test_connections_are_limited(door: FrontDoor, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "_MOST_CONNECTIONS", 3)
    port = free_port()
    server = FrontDoorServer(door, "127.0.0.1", port, certificates)
    server.start()
    context = ssl.create_default_context(cafile=str(certificates.ca))
    statuses = []
    try:
        with contextlib.ExitStack() as held:
            for _ in range(4):
                one = held.enter_context(httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=20))
                statuses.append(one.post(STATUS_PATH, json={}).status_code)
    finally:
        server.stop()
    assert statuses == [403, 403, 503, 503]


def test_an_owner_not_heard_of_lately_is_offline(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    door.traffic.last_seen["anna"] = time.monotonic()
    assert door.traffic.online() == {"anna"}
    monkeypatch.setattr(front_door, "_ONLINE_S", 0.0)
    assert door.traffic.online() == set()


def test_a_port_in_use_is_reported(door: FrontDoor, certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = FrontDoorServer(door, "127.0.0.1", taken.getsockname()[1], certificates)
        with pytest.raises(ServiceError, match="cannot listen") as caught:
            server.start()
        assert "--listen" in caught.value.hint


def test_plain_http_gets_no_answer(served: str) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(served.replace("https", "http"), timeout=5)


def test_traffic_is_counted_on_from_an_earlier_run(
    state: StateFolder, upstream: Upstream, certificates: Certificates, tmp_path: Path
) -> None:
    state.set_traffic({"anna": 5})
    assert FrontDoor(state, upstream.url, certificates.ca, lambda *_: 1).traffic.received_bytes == {"anna": 5}
