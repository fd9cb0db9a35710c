from __future__ import annotations

from types import SimpleNamespace

from coordinator import throttle


def test_it_acts_at_once_and_not_again_before_its_time(monkeypatch):
    clock = iter((100.0, 100.0, 100.0, 100.5, 100.9, 101.0, 101.0, 101.5, 102.5, 102.5))
    monkeypatch.setattr(throttle, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    seen = []
    act = throttle.at_most_every(1.0, lambda step, steps: seen.append((step, steps)))
    for step in range(6):
        act(step, 6)
    assert seen == [(0, 6), (3, 6), (5, 6)]
