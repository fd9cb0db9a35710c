"""Work on many files at once, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ppfed.cores import cores

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_GROUP_ITEMS = 32
"""A task holds as many items: for images of 32x32, handing over each one alone costs a quarter of the speed."""
_GROUP_BYTES = 1 << 18
_TINY_BYTES = 1 << 12
"""Mean size of a group's items below which threads stay out: with images of 32x32, Python code that holds the
interpreter lock is most of the work, and two threads took 1.4 times as long as one (docs/performance.md)."""


def each(function: Callable[[_Item], _Result]) -> Callable[[list[_Item]], list[_Result]]:
    """Make a function of one item a function of a group, for `map_ahead`."""
    return lambda group: [function(item) for item in group]


def map_ahead(
    function: Callable[[list[_Item]], list[_Result]], items: Iterable[_Item], size_bytes: Callable[[_Item], int]
) -> Iterator[list[_Result]]:
    """Apply ``function`` to groups of items in threads, and yield the results in order.

    Pillow and file access release the interpreter lock, so threads help as soon as images are more than tiny. Groups of
    tiny ones are worked on by the caller's thread.

    Parameters
    ----------
    function : callable
    items : iterable
    size_bytes : callable
        Size of an item's file. Groups are cut by it, so that few large images wait in memory.
    """
    workers = cores()
    executor = ThreadPoolExecutor(workers)
    pending: deque[Future[list[_Result]]] = deque()
    try:
        for group, group_bytes in groups(items, size_bytes):
            if group_bytes < _TINY_BYTES * len(group):
                while pending:
                    yield pending.popleft().result()
                yield function(group)
                continue
            pending.append(executor.submit(function, group))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def groups(items: Iterable[_Item], size_bytes: Callable[[_Item], int]) -> Iterator[tuple[list[_Item], int]]:
    """Cut items into groups that are worth handing over, and yield each with its size in bytes.

    Parameters
    ----------
    items : iterable
    size_bytes : callable
        Size of an item's file.
    """
    group: list[_Item] = []
    group_bytes = 0
    for item in items:
        group.append(item)
        group_bytes += size_bytes(item)
        if len(group) == _GROUP_ITEMS or group_bytes >= _GROUP_BYTES:
            yield group, group_bytes
            group, group_bytes = [], 0
    if group:
        yield group, group_bytes
