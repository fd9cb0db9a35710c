"""The same transfer by Flower alone: its own commands as anyone would start them, and nothing of ours around them.

Only what is needed for a fair comparison is as ppfed has it: TLS, node authentication, sqlite, two messages under way
for each node, and the SuperLink, which is ppfed's with its garbage collector (``ppfed/flower_service.py``). Replies are
made of random bytes, nobody checks or keeps them, and nothing stands between node and SuperLink.
"""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path

from clients.supernode import ensure_node_key
from coordinator.pki import ensure_certificates
from coordinator.superlink import SuperLink
from ppfed.errors import ServiceError
from ppfed.services import Service, flower_command, flower_environment, free_port

_BUNDLE = Path(__file__).parent / "bare_flower_app"
_WAIT_S = 600.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Transferred:
    """How long a transfer by Flower alone took, and how much arrived."""

    seconds: float
    size_bytes: int


def transfer(folder: Path, nodes: int, messages: int, message_bytes: int) -> Transferred:
    """Send so many messages from each node.

    Raises
    ------
    ServiceError
        If Flower fails, or it takes longer than ten minutes.
    """
    folder.mkdir(parents=True)
    home, logs, result = folder / "flower", folder / "logs", folder / "result.json"
    home.mkdir()
    (folder / "pki").mkdir()
    certificates = ensure_certificates(folder / "pki", "localhost", datetime.datetime.now(datetime.UTC))
    order = {"nodes": nodes, "messages": messages, "size_bytes": message_bytes, "result": str(result)}
    environment = {"BARE_FLOWER_ORDER": json.dumps(order), "OMP_NUM_THREADS": "1"}
    superlink = SuperLink(home, logs, certificates, environment, _BUNDLE)
    services: list[Service] = []
    try:
        superlink.start()
        for number in range(nodes):
            key = folder / f"node-{number}.key"
            superlink.register_node(f"node-{number}", ensure_node_key(key))
            node_home = folder / f"node-{number}"
            node_home.mkdir()
            services.append(
                Service(
                    "Flower's SuperNode",
                    [
                        flower_command("flower-supernode"),
                        *("--superlink", superlink.url.removeprefix("https://")),
                        *("--root-certificates", str(certificates.ca), "--auth-supernode-private-key", str(key)),
                        *("--host", "127.0.0.1", "--port", str(free_port())),
                    ],
                    flower_environment(node_home, {"OMP_NUM_THREADS": "1"}),
                    logs / f"node-{number}.log",
                ).start()
            )
        run = superlink.submit()
        deadline = time.monotonic() + _WAIT_S
        while not result.exists():
            superlink.require_running()
            if time.monotonic() > deadline or superlink.run_status(run).startswith("finished:failed"):
                raise ServiceError(f"Flower alone did not get {messages} messages across", hint=f"Logs: {logs}")
            time.sleep(_POLL_S)
        done = json.loads(result.read_text(encoding="utf-8"))
    finally:
        for service in services:
            service.stop()
        superlink.stop()
    return Transferred(done["ended"] - done["started"], done["received_bytes"])
