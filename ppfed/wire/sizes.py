"""How large a message may be, known before its parts are joined: Flower knows no limit."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable

from flwr.app import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_object_body, get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

MOST_MESSAGE_BYTES = (1 << 30) + (64 << 20)
"""The weights of the largest network, and something around them."""
MOST_OBJECTS = 4096
"""That Flower cuts a message into: an array of that size has 136 chunks."""
MOST_REPEATED_BYTES = 64 << 20
"""By which a message may grow as it is joined. Only arrays of one value throughout repeat a chunk, and the longest of
them that makes sense is a shard."""

_ARRAY, _CHUNK = Array.__qualname__, ArrayChunk.__qualname__


class MessageSize:
    """Pulls the objects of one message, and fails as soon as they come to more than a message may hold.

    An array lists its chunks by number, any of them any number of times, and Flower joins them before anyone sees the
    message: one of 1 MiB could fill the memory of whoever receives it.

    Parameters
    ----------
    pull : callable
        Takes an object's id and returns its content; several threads may call it.
    """

    def __init__(self, pull: Callable[[str], bytes]) -> None:
        self._pull = pull
        self._lock = threading.Lock()
        self._bytes = 0
        self._chunks: dict[str, int] = {}
        self._others: set[str] = set()
        self._uses: Counter[str] = Counter()
        self._repeated_bytes = 0

    def __call__(self, object_id: str) -> bytes:
        """Pull one.

        Raises
        ------
        ObjectPullError
            If the message is larger than any that ppfed sends, or cannot be read.
        """
        content = self._pull(object_id)
        try:
            with self._lock:
                self._count(object_id, content)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ObjectPullError(object_id, f"the message is malformed ({type(error).__name__})") from None
        return content

    def _count(self, object_id: str, content: bytes) -> None:
        kind, children, _ = get_object_head_values_from_object_content(content)
        self._bytes += len(content)
        if kind == _CHUNK:
            self._chunks[object_id] = len(content)
            self._repeated_bytes += max(0, self._uses[object_id] - 1) * len(content)
        else:
            self._others.add(object_id)
        if kind == _ARRAY:
            self._list_chunks(object_id, children, json.loads(get_object_body(content, Array))["arraychunk_ids"])
        # Flower would join whatever has data: arrays of arrays, eight times as large with each level.
        if self._others & self._uses.keys():
            raise ObjectPullError(object_id, "an array is made of something else than chunks")
        if (
            len(self._chunks) + len(self._others) > MOST_OBJECTS
            or self._bytes > MOST_MESSAGE_BYTES
            or self._repeated_bytes > MOST_REPEATED_BYTES
        ):
            raise ObjectPullError(object_id, "the message is larger than any that ppfed sends")

    def _list_chunks(self, object_id: str, children: list[str], places: list[int]) -> None:
        if len(places) > MOST_OBJECTS:
            raise ObjectPullError(object_id, "an array has more chunks than any that ppfed sends")
        for place in places:
            chunk = children[place]
            if self._uses[chunk]:
                self._repeated_bytes += self._chunks.get(chunk, 0)
            self._uses[chunk] += 1
