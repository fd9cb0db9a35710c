"""Join neighbours of one kind into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")

_BATCH_BYTES = 1 << 22
"""A batch ends early here, so that large images do not fill the memory, and that whoever decodes the next ones does not
come to a stop while this one is encrypted and written."""


def join_equal(
    items: Iterable[_Item], kind: Callable[[_Item], object], size_bytes: Callable[[_Item], int], limit: int
) -> Iterator[list[_Item]]:
    """Yield runs of items of one kind, in order.

    Parameters
    ----------
    items : iterable
    kind : callable
        A run ends where it changes.
    size_bytes : callable
        What an item takes in memory; equal for items of one kind.
    limit : int
        Items in a run at most.
    """
    run: list[_Item] = []
    for item in items:
        if run and (
            kind(item) != kind(run[0]) or len(run) == limit or (len(run) + 1) * size_bytes(item) > _BATCH_BYTES
        ):
            yield run
            run = []
        run.append(item)
    if run:
        yield run
