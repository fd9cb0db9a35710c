from __future__ import annotations

import time

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects
from flwr.superlink.grid import http_grid

from coordinator.flower_waiting import wait_briefly


def test_an_object_that_comes_late_is_pulled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_grid, "pull_objects", pull_objects)
    wait_briefly()
    wait_briefly()
    asked = 0

    def pull(object_id: str) -> bytes:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise ObjectUnavailableError(object_id)
        return b"content"

    started = time.monotonic()
    assert http_grid.pull_objects(["an id"], pull) == {"an id": b"content"}
    # Flower's own waits would come to 15 s.
    assert time.monotonic() - started < 5
