"""How often Flower's processes look whether something has come."""

from __future__ import annotations

import time
from types import ModuleType

import pytest
from flwr.app import ConfigRecord
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects
from flwr.superlink.grid import http_grid
from flwr.supernode import start_client_internal

from ppfed import flower_waiting
from ppfed.flower_waiting import GrowingWaits, pull_soon


@pytest.mark.parametrize("module", [http_grid, start_client_internal])
def test_an_object_that_comes_late_is_pulled_soon(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    monkeypatch.setattr(module, "pull_objects", pull_objects)
    pull_soon(module)
    pull_soon(module)
    content, asked = ConfigRecord({"v": 1}).deflate(), 0

    def pull(object_id: str) -> bytes:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise ObjectUnavailableError(object_id)
        return content

    started = time.monotonic()
    assert module.pull_objects(["an id"], pull) == {"an id": content}
    # Flower's own waits would come to 15 s.
    assert time.monotonic() - started < 5


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(flower_waiting, "time", clock)
    return clock


def looks_until(clock: Clock, waits: GrowingWaits, seconds: float, duration: float) -> tuple[int, float]:
    """Wait until so much time has passed; returns how often was looked, and how late it was noticed."""
    end, looks = clock.now + duration, 0
    while clock.now < end:
        waits.sleep(seconds)
        looks += 1
    return looks, clock.now - end


@pytest.mark.parametrize("duration", [0.01, 0.2, 1.0, 5.0, 60.0])
def test_what_comes_is_noticed_late_by_a_quarter_of_its_time(clock: Clock, duration: float) -> None:
    _, late = looks_until(clock, GrowingWaits(), 3, duration)
    assert late <= max(0.05, min(duration / 4, 3.0)) + 1e-9


def test_a_long_silence_costs_hardly_more_looks_than_flowers_own(clock: Clock) -> None:
    waits = GrowingWaits()
    looks, _ = looks_until(clock, waits, 3, 12.0)
    assert 15 < looks <= 25
    looks, _ = looks_until(clock, waits, 3, 60.0)
    assert looks == 20


def test_another_wait_begins_anew(clock: Clock) -> None:
    waits = GrowingWaits()
    looks_until(clock, waits, 3, 60.0)
    _, late = looks_until(clock, waits, 0.5, 0.1)
    assert late <= 0.05
    _, late = looks_until(clock, waits, 3, 0.1)
    assert late <= 0.05
