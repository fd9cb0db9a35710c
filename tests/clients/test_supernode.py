"""How an owner starts Flower's SuperNode: it trusts the invite's authority, signs, and runs no code of others."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from clients import supernode as module
from clients.supernode import SuperNode, ensure_node_key


def test_it_trusts_the_invites_authority_and_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services: list[Any] = []
    monkeypatch.setattr(module, "Service", lambda *arguments: services.append(arguments))
    monkeypatch.setenv("PPFED_KEY_FILE", "owners.key")
    ensure_node_key(tmp_path / "node.key")
    node = SuperNode(tmp_path, "gpu.example.org:9443", "the authority", tmp_path / "node.key")
    ((_, command, environment, _),) = services
    after = {flag: command[command.index(flag) + 1] for flag in command if flag.startswith("--")}
    assert "--insecure" not in command
    assert after["--superlink"] == "gpu.example.org:9443"
    assert Path(after["--root-certificates"]).read_text() == "the authority"
    assert after["--auth-supernode-private-key"] == str(tmp_path / "node.key")
    # Messages wait for our executor: Flower starts nothing that the coordinator sends.
    assert after["--isolation"] == "process"
    assert after["--host"] == "127.0.0.1"
    secret = Path(after["--superexec-auth-secret-file"])
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_bytes() == node.secret
    assert "PPFED_KEY_FILE" not in environment


def test_a_node_key_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    public = ensure_node_key(tmp_path / "node.key")
    assert public.startswith("ecdsa-sha2-nistp384 ")
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600
    assert ensure_node_key(tmp_path / "node.key") == public
    assert ensure_node_key(tmp_path / "other.key") != public
