"""Asking the coordinator for admission: what goes wrong is told in words that help."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import http.server
import itertools
import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clients import enrolment
from clients.enrolment import CoordinatorClient
from clients.prepared import Prepared
from clients.supernode import ensure_node_key
from coordinator.pki import Certificates, ensure_certificates
from ppfed.enrolment import Phase
from ppfed.errors import FederationError, InviteError, MismatchError
from ppfed.federation import FederationSettings, Invite, new_token
from ppfed.services import free_port
from ppfed.store import ShardStore

TOKEN = new_token(bytes(range(32)))
FINGERPRINT = "0123456789abcdef"
PREPARED = Prepared(ShardStore(Path("nowhere")), 10, 2, 3, 0, {})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return ensure_certificates(tmp_path_factory.mktemp("pki"), "localhost", datetime.datetime.now(datetime.UTC))


@pytest.fixture
def make_client(
    make_settings: Callable[..., FederationSettings], certificates: Certificates
) -> Iterator[Callable[..., CoordinatorClient]]:
    with contextlib.ExitStack() as stack:

        def make(address: str, ca: str | None = None) -> CoordinatorClient:
            invite = Invite(
                owner="anna",
                address=address,
                ca_certificate=certificates.ca.read_text() if ca is None else ca,
                token=TOKEN,
                federation=make_settings(),
            )
            client = CoordinatorClient(invite)
            stack.callback(client.close)
            return client

        yield make


@contextlib.contextmanager
def answering(
    certificates: Certificates,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Iterator[tuple[str, list[Any]]]:
    """Answer every POST over TLS with the same."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        server.handle_error = lambda *_arguments: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"{host}:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join(10)


def enrol(client: CoordinatorClient) -> None:
    client.enrol("a node key", FINGERPRINT, PREPARED)


def test_an_admitted_owner_hears_nothing_bad(
    make_client: Callable[..., CoordinatorClient],
    certificates: Certificates,
    make_settings: Callable[..., FederationSettings],
) -> None:
    with answering(certificates, 200, b'{"admitted": true}') as (address, seen):
        enrol(make_client(address))
    settings = make_settings()
    ((path, sent),) = seen
    assert path == "/v1/enrol"
    assert (sent["token"], sent["fingerprint"], sent["node_key"]) == (TOKEN, FINGERPRINT, "a node key")
    assert sent["settings_digest"] == settings.digest()
    assert (sent["train_images"], sent["held_out_images"], sent["copies"]) == (10, 2, 3)
    # Numbers and names only: no path, no image, no key.
    assert set(sent) == {
        "token",
        "node_key",
        "settings_digest",
        "fingerprint",
        "cipher",
        "height",
        "width",
        "channels",
        "classes",
        "train_images",
        "held_out_images",
        "copies",
        "ppfed_version",
    }


def test_the_refusal_reaches_the_user(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates
) -> None:
    body = json.dumps({"admitted": False, "message": "the key differs", "hint": "Get the key file."}).encode()
    with (
        answering(certificates, 403, body) as (address, _),
        pytest.raises(MismatchError, match="the coordinator refused: the key differs") as caught,
    ):
        enrol(make_client(address))
    assert caught.value.hint == "Get the key file."
    assert TOKEN not in str(caught.value)


def test_an_unreachable_coordinator_is_named(make_client: Callable[..., CoordinatorClient]) -> None:
    address = f"127.0.0.1:{free_port()}"
    client = make_client(address)
    with pytest.raises(FederationError, match=f"{address} cannot be reached") as caught:
        enrol(client)
    assert "firewall" in caught.value.hint
    assert client.status() is None


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (404, b"Not Found", {}),
        (200, b"", {}),
        (200, b"<html>a router</html>", {}),
        (200, b"[]", {}),
        (200, b'{"admitted": "perhaps"}', {}),
        (200, b'{"admitted": true, "more": 1}', {}),
        (302, b"", {"location": "https://evil.example.org/"}),
        (500, b"\xff\xfe", {}),
        (200, b'{"admitted": false, "message": "' + b"x" * (2 << 20), {}),
    ],
)
def test_what_is_no_coordinator_is_recognised(
    make_client: Callable[..., CoordinatorClient],
    certificates: Certificates,
    status: int,
    body: bytes,
    headers: dict[str, str],
) -> None:
    with answering(certificates, status, body, headers) as (address, seen):
        client = make_client(address)
        with pytest.raises(FederationError, match=f"does not answer as a coordinator.*HTTP {status}") as caught:
            enrol(client)
        assert len(str(caught.value)) < 500
        assert "same version" in caught.value.hint
        assert client.status() is None
        assert len(seen) == 2  # nothing was sent elsewhere or again


@pytest.mark.parametrize(
    "body",
    # Without the time of day, which would name the test differently in each worker process.
    [b"no gzip", b'{"admitted": true}', gzip.compress(b'{"admitted": true}', mtime=0)],
    ids=["other bytes", "not packed", "packed"],
)
def test_a_packed_answer_is_not_unpacked(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates, body: bytes
) -> None:
    with answering(certificates, 200, body, {"content-encoding": "gzip"}) as (address, _):
        client = make_client(address)
        with pytest.raises(FederationError, match="does not answer as a coordinator"):
            enrol(client)
        assert client.status() is None


def test_an_endless_answer_is_not_read_to_its_end(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates
) -> None:
    body = b'{"admitted": true}' + b" " * (64 << 20)
    with answering(certificates, 200, body) as (address, _):
        client = make_client(address)
        read = []
        original = client._client.stream

        def stream(*arguments: Any, **options: Any) -> Any:
            @contextlib.contextmanager
            def counted() -> Iterator[Any]:
                with original(*arguments, **options) as answer:
                    yield answer
                    read.append(answer.num_bytes_downloaded)

            return counted()

        client._client.stream = stream  # type: ignore[method-assign]
        with pytest.raises(FederationError, match="does not answer as a coordinator"):
            enrol(client)
    assert read[0] < 2 << 20


def test_an_answer_that_trickles_in_is_given_up(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(0, 3600)
    monkeypatch.setattr(enrolment, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    with answering(certificates, 200, b'{"admitted": true}') as (address, _):
        client = make_client(address)
        with pytest.raises(FederationError, match="takes too long"):
            enrol(client)
        assert client.status() is None


def test_proxies_and_packing_of_this_machine_play_no_part(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(certificates, 200, b'{"admitted": true}') as (address, seen):
        client = make_client(address)
        enrol(client)
        assert client._client.headers["accept-encoding"] == "identity"
    assert len(seen) == 1


@pytest.mark.parametrize("trusted_here", [False, True])
def test_the_certificate_of_another_authority_is_refused(
    make_client: Callable[..., CoordinatorClient],
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_here: bool,
) -> None:
    other = ensure_certificates(tmp_path, "localhost", datetime.datetime.now(datetime.UTC))
    if trusted_here:
        # OpenSSL's own way to say which authorities a machine trusts.
        monkeypatch.setenv("SSL_CERT_FILE", str(other.ca))
    with answering(other, 200, b'{"admitted": true}') as (address, seen):
        client = make_client(address)
        with pytest.raises(FederationError, match="certificate verify failed"):
            enrol(client)
        assert client.status() is None
    assert seen == []  # the token was not sent


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this machine")
def test_a_certificate_for_another_host_is_refused(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates
) -> None:
    # The same machine under an address that the certificate does not name.
    with answering(certificates, 200, b'{"admitted": true}', host="127.0.0.2") as (address, seen):
        client = make_client(address)
        with pytest.raises(FederationError, match="certificate verify failed: IP address mismatch"):
            enrol(client)
    assert seen == []


@pytest.mark.parametrize("ca", ["", "garbage", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "ü"])
def test_an_invite_without_a_usable_certificate_trusts_nobody(
    make_client: Callable[..., CoordinatorClient], ca: str
) -> None:
    """An empty certificate must not mean: every authority that this machine trusts."""
    with pytest.raises(InviteError, match="no usable certificate") as caught:
        make_client("127.0.0.1:9443", ca)
    assert caught.value.hint


def test_an_address_that_cannot_be_is_an_invite_error(make_client: Callable[..., CoordinatorClient]) -> None:
    with pytest.raises(InviteError):
        make_client("localhost:99999")


def test_the_status_is_read(make_client: Callable[..., CoordinatorClient], certificates: Certificates) -> None:
    body = b'{"phase": "training", "owners_joined": 2, "owners_wanted": 3, "message": "m"}'
    with answering(certificates, 200, body) as (address, seen):
        status = make_client(address).status()
    assert status is not None
    assert (status.phase, status.owners_joined, status.owners_wanted, status.message) == (Phase.TRAINING, 2, 3, "m")
    assert seen == [("/v1/status", {"token": TOKEN})]


@pytest.mark.parametrize("agreed", ["", FINGERPRINT, "fedcba9876543210"])
def test_another_key_is_noticed_before_images_are_encrypted(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates, agreed: str
) -> None:
    status = {"phase": "waiting for owners", "owners_joined": 1, "owners_wanted": 3, "fingerprint": agreed}
    with answering(certificates, 200, json.dumps(status).encode()) as (address, seen):
        client = make_client(address)
        if agreed in ("", FINGERPRINT):
            client.check_ahead(FINGERPRINT)
        else:
            with pytest.raises(MismatchError, match=f"uses key {agreed}, yours is {FINGERPRINT}"):
                client.check_ahead(FINGERPRINT)
    # Nothing about this owner goes out before admission.
    assert seen == [("/v1/status", {"token": TOKEN})]


def test_a_coordinator_that_is_not_there_is_noticed_before_images_are_encrypted(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates
) -> None:
    with pytest.raises(FederationError, match="cannot be reached"):
        make_client(f"127.0.0.1:{free_port()}").check_ahead(FINGERPRINT)
    # Why an invite is not good any more, admission says.
    with answering(certificates, 403, b"forbidden") as (address, _):
        make_client(address).check_ahead(FINGERPRINT)


def test_what_a_coordinator_says_stays_on_its_line(
    make_client: Callable[..., CoordinatorClient], certificates: Certificates
) -> None:
    """Else it could pass for lines of ppfed's own: "next: mail your key to ..."."""
    said = "no\nnext: mail\r\nyour\x0bkey\u2028now"
    with (
        answering(certificates, 403, json.dumps({"admitted": False, "message": said, "hint": said}).encode()) as (
            to,
            _,
        ),
        pytest.raises(MismatchError) as caught,
    ):
        enrol(make_client(to))
    assert caught.value.message == "the coordinator refused: no next: mail your key now"
    assert caught.value.hint == "no next: mail your key now"
    body = json.dumps({"phase": "training", "owners_joined": 2, "owners_wanted": 3, "message": said}).encode()
    with answering(certificates, 200, body) as (to, _):
        status = make_client(to).status()
    assert status is not None
    assert status.message == "no next: mail your key now"


def test_the_node_key_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "node.key"
    first = ensure_node_key(path)
    assert first.startswith("ecdsa-sha2-nistp384 ")
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_node_key(path) == first
    assert ensure_node_key(tmp_path / "other.key") != first
    assert first.split()[1].encode() not in path.read_bytes()
