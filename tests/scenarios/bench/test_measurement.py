from __future__ import annotations

import math
import time

import pytest

from scenarios.bench.measurement import Bound, Measurement, Turns, in_turn


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        (Bound(0.7), 0.7, True),
        (Bound(0.7), 0.69, False),
        (Bound(2, at_most=True), 2, True),
        (Bound(2, at_most=True), 2.1, False),
        (Bound(0.7), math.nan, False),
        (Bound(2, at_most=True), math.nan, False),
    ],
)
def test_a_bound_is_kept_or_not(bound: Bound, value: float, holds: bool) -> None:
    assert bound.holds(value) is holds


def test_a_row_may_miss_its_target_without_being_broken() -> None:
    row = Measurement("cipher", "encrypt", 0.5, target=Bound(0.7), floor=Bound(0.2))
    assert row.missed
    assert not row.broken


def test_turns_are_compared_one_by_one() -> None:
    # The machine was three times as slow in the second turn: neither figure sees it.
    turns = Turns(ours=(1.0, 3.0, 1.0), theirs=(2.0, 6.0, 2.0))
    assert turns.speed == pytest.approx(2.0)
    assert turns.spread == pytest.approx((2.0, 2.0))
    assert turns.overheads == pytest.approx([-50.0, -50.0, -50.0])


def test_two_calls_are_timed_in_turn() -> None:
    order: list[str] = []

    def ours() -> None:
        order.append("ours")

    def theirs() -> None:
        order.append("theirs")
        time.sleep(0.002)

    turns = in_turn(ours, theirs, budget_s=0)
    assert order == ["ours", "theirs"] * 4
    assert len(turns.ours) == len(turns.theirs) == 3
    assert turns.speed > 1


def test_what_is_left_by_calls_is_tidied_off_the_clock() -> None:
    order: list[str] = []

    def tidy() -> None:
        order.append("tidy")
        time.sleep(0.05)

    turns = in_turn(lambda: order.append("ours"), lambda: order.append("theirs"), budget_s=0, tidy=tidy)
    assert order == ["ours", "tidy", "theirs", "tidy"] * 4
    assert max(turns.ours + turns.theirs) < 0.05


def test_processor_time_stands_still_while_a_call_waits() -> None:
    turns = in_turn(lambda: time.sleep(0.05), lambda: sum(range(1_000_000)), budget_s=0, clock=time.process_time)
    # A sleep takes microseconds of the processor, the sum milliseconds.
    assert turns.speed > 1


def test_a_row_without_a_figure_breaks_and_misses_nothing() -> None:
    row = Measurement.left_out("training", "augmentation", "torchvision is not installed")
    assert math.isnan(row.value)
    assert not row.broken
    assert not row.missed
