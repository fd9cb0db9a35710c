"""Flower's SuperNode as a child process of ``ppfed client join``."""

from __future__ import annotations

import secrets
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ppfed.atomic import write_atomic
from ppfed.errors import ServiceError
from ppfed.services import Service, flower_environment, flower_service, free_port

_START_TIMEOUT_S = 60.0
_CONNECTED = "SuperNode ID:"


class SuperNode:
    """Connects to the coordinator and holds messages until our executor takes them.

    Parameters
    ----------
    folder : Path
        The owner's state folder.
    address : str
        The coordinator's front door, ``host:port``.
    ca_certificate : str
        PEM; the only authority trusted.
    node_key : Path
        Private key, OpenSSH format.
    """

    def __init__(self, folder: Path, address: str, ca_certificate: str, node_key: Path) -> None:
        home = folder / "flower"
        home.mkdir(parents=True, exist_ok=True)
        ca = home / "ca.pem"
        ca.write_text(ca_certificate)
        self.secret = secrets.token_bytes(32)
        secret_file = home / "superexec.secret"
        write_atomic(secret_file, self.secret)
        self.runtime_address = f"127.0.0.1:{free_port()}"
        self._service = Service(
            "Flower's SuperNode",
            [
                *flower_service("flower-supernode", "clients.supernode_process"),
                *("--superlink", address),
                *("--root-certificates", str(ca)),
                *("--auth-supernode-private-key", str(node_key)),
                *("--isolation", "process"),
                *("--superexec-auth-secret-file", str(secret_file)),
                *("--host", "127.0.0.1", "--port", self.runtime_address.rpartition(":")[2]),
            ],
            flower_environment(home),
            folder / "logs" / "supernode.log",
        )

    def start(self) -> None:
        """Start it, and wait until the coordinator has accepted it.

        Raises
        ------
        ServiceError
            If it ends, or does not connect in time.
        """
        offset = self._service.log.stat().st_size if self._service.log.exists() else 0
        self._service.start()

        def connected() -> bool:
            if _CONNECTED not in self._service.log.read_text(errors="replace")[offset:]:
                return False
            try:
                httpx.get(f"http://{self.runtime_address}/health", timeout=2.0, trust_env=False)
            except httpx.TransportError:
                return False
            return True

        try:
            self._service.wait_until(connected, _START_TIMEOUT_S)
        except ServiceError:
            self._service.stop()
            raise

    def require_running(self) -> None:
        """Raise ServiceError if it has ended."""
        self._service.require_running()

    def stop(self) -> None:
        """Stop it; it tells the coordinator that it goes."""
        self._service.stop()


def ensure_node_key(path: Path) -> str:
    """Make the node's P-384 key on first use.

    Returns
    -------
    str
        The public half, OpenSSH format.
    """
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, private)
    loaded = serialization.load_ssh_private_key(path.read_bytes(), None)
    return loaded.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
