"""How Flower's SuperLink is started: strangers stay out, and what it refuses has a next step."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from coordinator import superlink as module
from coordinator.pki import ensure_certificates
from coordinator.state import StateFolder
from coordinator.superlink import SuperLink
from ppfed.errors import FederationError, ServiceError

NODE_KEY = "ecdsa-sha2-nistp384 AAAA"


@pytest.fixture
def started(make_state: Callable[..., StateFolder], monkeypatch: pytest.MonkeyPatch) -> tuple[SuperLink, list[Any]]:
    """A SuperLink that was not started, and the arguments of its services."""
    services: list[Any] = []
    monkeypatch.setattr(module, "Service", lambda *arguments: services.append(arguments))
    state = make_state()
    certificates = ensure_certificates(state.pki, "localhost", datetime.datetime.now(datetime.UTC))
    return SuperLink(state.flower, state.logs, certificates, {}), services


def test_node_authentication_and_tls_are_on(started: tuple[SuperLink, list[Any]]) -> None:
    link, ((_, command, environment, _), (_, superexec, *_)) = started
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in [*command, *superexec]
    for flag in ("--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile", "--superexec-auth-secret-file"):
        assert flag in command
    assert command[command.index("--isolation") + 1] == "process"
    # The front door is what others reach.
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert link.url.startswith("https://127.0.0.1:")
    assert "--root-certificates" in superexec
    assert "PPFED_KEY_FILE" not in environment


@pytest.mark.parametrize(
    ("said", "kind", "reason"),
    [
        ("'flwr supernode register' failed: [code: 23] Public key already in use.", FederationError, "was interrupted"),
        ("'flwr supernode register' did not answer", ServiceError, "did not answer"),
    ],
)
def test_a_key_that_flower_knows_has_a_next_step(
    started: tuple[SuperLink, list[Any]], monkeypatch: pytest.MonkeyPatch, said: str, kind: type, reason: str
) -> None:
    def fail(*_arguments: str) -> dict[str, Any]:
        raise ServiceError(said, hint="See the logs.")

    link, _ = started
    monkeypatch.setattr(link, "_flwr", fail)
    with pytest.raises(kind, match=reason) as caught:
        link.register_node("anna", NODE_KEY)
    assert type(caught.value) is kind
    assert kind is ServiceError or "node.key" in caught.value.hint
