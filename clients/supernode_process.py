"""Flower's SuperNode, which looks for messages as often as they come: ``python -m clients.supernode_process ...``.

The arguments are those of ``ppfed.flower_service``.
"""

from __future__ import annotations

from flwr.supernode import start_client_internal

from ppfed.flower_service import main
from ppfed.flower_waiting import GrowingWaits, pull_soon

if __name__ == "__main__":
    pull_soon(start_client_internal)
    start_client_internal.time = GrowingWaits()  # type: ignore[assignment]
    main()
