"""Work on many files: in order, in bounded memory, and in threads where these help."""

from __future__ import annotations

import threading
from itertools import chain

import pytest

from ppfed.images.pool import each, map_ahead

TINY, LARGE = 1_000, 100_000


def worked_on(sizes: list[int]) -> list[tuple[int, bool]]:
    """Number of each item in the order of the results, and whether the caller's thread worked on it."""
    caller = threading.get_ident()
    items = list(enumerate(sizes))
    groups = map_ahead(each(lambda item: (item[0], threading.get_ident() == caller)), items, lambda item: item[1])
    return list(chain.from_iterable(groups))


def test_large_items_go_to_threads_and_tiny_ones_do_not() -> None:
    assert worked_on([LARGE] * 100) == [(number, False) for number in range(100)]
    assert worked_on([TINY] * 100) == [(number, True) for number in range(100)]


def test_the_order_stays_where_sizes_change() -> None:
    found = worked_on([LARGE] * 7 + [TINY] * 64 + [LARGE] * 9 + [TINY] * 40)
    assert [number for number, _ in found] == list(range(120))
    assert {by_caller for _, by_caller in found} == {True, False}


def test_nothing_is_nothing() -> None:
    assert worked_on([]) == []


@pytest.mark.parametrize("size", [TINY, LARGE])
def test_an_error_comes_after_the_results_before_it(size: int) -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 70:
            raise ValueError("bad")
        return item

    groups = map_ahead(each(work), range(1000), lambda _item: size)
    with pytest.raises(ValueError, match="bad"):
        done.extend(chain.from_iterable(groups))
    # Groups are of 32 or fewer.
    assert done == list(range(len(done)))
    assert 70 - 32 < len(done) <= 70
