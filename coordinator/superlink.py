"""Flower's SuperLink and SuperExec on the loopback interface, and the few orders given to them."""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import tomli_w

from coordinator.pki import Certificates
from ppfed.atomic import write_atomic
from ppfed.errors import FederationError, ServiceError
from ppfed.services import Service, flower_command, flower_environment, flower_service, free_port

_KEY_TAKEN = "Public key already in use"
_CONNECTION = "ppfed"
_COMMAND_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 60.0
_BUNDLE = Path(__file__).parent / "bundle"


class SuperLink:
    """A SuperLink with sqlite, TLS and node authentication, and the SuperExec that runs our ServerApp.

    Parameters
    ----------
    home : Path
        Flower's own folder.
    logs : Path
    certificates : Certificates
    app_environment : mapping of str to str
        Added to the environment of the ServerApp's process.
    bundle : Path
        The app that is submitted; ours, unless a benchmark has one of its own.
    """

    def __init__(
        self,
        home: Path,
        logs: Path,
        certificates: Certificates,
        app_environment: Mapping[str, str],
        bundle: Path = _BUNDLE,
    ) -> None:
        self._home = home
        self._bundle = bundle
        self._ca = certificates.ca
        self._port = free_port()
        self._environment = flower_environment(home)
        secret = home / "superexec.secret"
        write_atomic(secret, secrets.token_bytes(32))
        tls = ["--ssl-certfile", str(certificates.server), "--ssl-keyfile", str(certificates.server_key)]
        self._superlink = Service(
            "Flower's SuperLink",
            [
                *flower_service("flower-superlink", "coordinator.superlink_process"),
                *tls,
                "--ssl-ca-certfile",
                str(certificates.ca),
                "--enable-supernode-auth",
                *("--isolation", "process"),
                *("--superexec-auth-secret-file", str(secret)),
                *("--database", str(home / "superlink.sqlite")),
                *("--host", "127.0.0.1", "--port", str(self._port)),
            ],
            self._environment,
            logs / "superlink.log",
        )
        self._superexec = Service(
            "Flower's SuperExec",
            [
                flower_command("flower-superexec"),
                *("--runtime-api-address", f"127.0.0.1:{self._port}"),
                *("--root-certificates", str(certificates.ca)),
                *("--superexec-auth-secret-file", str(secret)),
            ],
            flower_environment(home, app_environment),
            logs / "superexec.log",
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start both services and wait until the SuperLink answers. Raises ServiceError."""
        connection = {"address": f"127.0.0.1:{self._port}", "root-certificates": str(self._ca)}
        config = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
        (self._home / "config.toml").write_text(tomli_w.dumps(config))
        self._superlink.start().wait_until(self._answers, _START_TIMEOUT_S)
        self._superexec.start()

    def require_running(self) -> None:
        """Raise ServiceError if a service has ended."""
        self._superlink.require_running()
        self._superexec.require_running()

    def stop(self) -> None:
        """Stop both services."""
        self._superexec.stop()
        self._superlink.stop()

    def register_node(self, owner: str, node_key: str) -> int:
        """Register a node's public key (OpenSSH format) and return the node's id.

        Raises
        ------
        FederationError
            If Flower knows the key, and the coordinator does not: it was killed in between.
        ServiceError
            If it fails otherwise.
        """
        with tempfile.NamedTemporaryFile("w", dir=self._home, suffix=".pub") as file:
            file.write(node_key + "\n")
            file.flush()
            try:
                reply = self._flwr("supernode", "register", file.name, _CONNECTION, "--name", owner)
            except ServiceError as error:
                if _KEY_TAKEN not in error.message:
                    raise
                raise FederationError(
                    "this node key was registered by an attempt to join that was interrupted",
                    hint="Remove node.key from your --state folder, and join again with the same invite.",
                ) from None
        return int(reply["node-id"])

    def submit(self) -> int:
        """Submit a run of the bundle's ServerApp and return its id. Raises ServiceError."""
        return int(self._flwr("run", str(self._bundle), _CONNECTION)["run-id"])

    def run_status(self, run_id: int) -> str:
        """Status of a run in Flower's words: ``running``, ``finished:completed``, ``finished:failed``."""
        runs = self._flwr("list", _CONNECTION, "--run-id", str(run_id))["runs"]
        return str(runs[0]["status"])

    def stop_run(self, run_id: int) -> None:
        """Stop a run; nothing happens if it has ended. Raises ServiceError."""
        if not self.run_status(run_id).startswith("finished"):
            self._flwr("stop", str(run_id), _CONNECTION)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", verify=str(self._ca), timeout=2.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Run one of Flower's commands and read its JSON answer."""
        command = [flower_command("flwr"), *arguments, "--format", "json"]
        what = " ".join(arguments[:2])
        try:
            done = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(f"'flwr {what}' did not answer", hint="See the logs in the state folder.") from None
        start = done.stdout.find("{")
        try:
            answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[start:])[0]
        except ValueError:
            answer = {}
        if done.returncode != 0 or not answer.get("success"):
            reason = answer.get("error-message") or done.stderr.strip() or done.stdout.strip() or "no output"
            raise ServiceError(f"'flwr {what}' failed: {reason}", hint="See the logs in the state folder.")
        return answer
