"""Messages that would not fit into memory are given up while they are pulled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    HEAD_BODY_DIVIDER,
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_and_inflate_object_from_tree,
    pull_objects,
    validate_object_content,
)
from flwr.superlink.grid import http_grid
from flwr.supernode.runtime import run_clientapp

from ppfed.flower_waiting import pull_soon
from ppfed.wire import sizes
from ppfed.wire.messages import array_of
from ppfed.wire.sizes import MOST_OBJECTS, MessageSize

Objects = dict[str, bytes]


def deflated(listed: Any, chunks: list[bytes], shape: tuple[int, ...] = ()) -> tuple[str, Objects]:
    """Deflate an array that lists its chunks as it likes; returns its id, and all objects."""
    parts = {chunk.object_id: chunk.deflate() for chunk in (ArrayChunk(memoryview(one)) for one in chunks)}
    return joined(listed, parts, shape)


def joined(listed: Any, parts: Objects, shape: tuple[int, ...] = ()) -> tuple[str, Objects]:
    meta = {"dtype": "uint8", "shape": shape, "stype": "numpy.ndarray", "arraychunk_ids": listed}
    body = json.dumps(meta).encode()
    content = b"Array %s %d" % (",".join(parts).encode(), len(body)) + HEAD_BODY_DIVIDER + body
    validate_object_content(content)
    return get_object_id(content), {**parts, get_object_id(content): content}


def pull_all(objects: Objects, order: list[str]) -> Objects:
    pull = MessageSize(objects.__getitem__)
    return {name: pull(name) for name in order}


ORDERS = pytest.mark.parametrize("backwards", [False, True], ids=["chunks first", "arrays first"])


@ORDERS
@pytest.mark.parametrize(
    ("listed", "good"),
    [
        ([0, 1, 0], True),
        ([1] + [0] * 8, True),
        ([1] + [0] * 9, False),
        ([0, -1] * 9, False),
        ([0] * (MOST_OBJECTS + 1), False),
        ([2], False),
        ([0.5], False),
        ("00", False),
        (None, False),
    ],
)
def test_an_array_does_not_repeat_its_chunks_without_end(
    monkeypatch: pytest.MonkeyPatch, listed: Any, *, good: bool, backwards: bool
) -> None:
    name, objects = deflated(listed, [b"a" * 1000, b"b" * 500])
    (chunk, *_) = objects.values()
    monkeypatch.setattr(sizes, "MOST_REPEATED_BYTES", 7 * len(chunk))
    order = list(objects)[:: -1 if backwards else 1]
    if good:
        arrived = inflate_object_from_contents(name, pull_all(objects, order))
        assert isinstance(arrived, Array)
        assert arrived.data == b"".join((b"a" * 1000, b"b" * 500)[one] for one in listed)
    else:
        with pytest.raises(ObjectPullError):
            pull_all(objects, order)


@ORDERS
def test_an_array_is_not_made_of_arrays(*, backwards: bool) -> None:
    """Eight times as large with each level: the bound on what is repeated would be none."""
    _, inner = deflated([0], [b"a" * 10])
    content = list(inner)[-1]
    _, outer = joined([0] * 8, {content: inner[content]})
    with pytest.raises(ObjectPullError, match="something else than chunks"):
        pull_all({**inner, **outer}, list({**inner, **outer})[:: -1 if backwards else 1])


@ORDERS
def test_the_arrays_of_a_message_do_not_share_a_chunk_without_end(
    monkeypatch: pytest.MonkeyPatch, *, backwards: bool
) -> None:
    objects: Objects = {}
    for position in range(9):
        objects.update(deflated([0], [b"a" * 1000], (position,))[1])
    order = list(objects)[:: -1 if backwards else 1]
    chunk = max(len(content) for content in objects.values())
    monkeypatch.setattr(sizes, "MOST_REPEATED_BYTES", 8 * chunk)
    assert pull_all(objects, order) == objects
    monkeypatch.setattr(sizes, "MOST_REPEATED_BYTES", 8 * chunk - 1)
    with pytest.raises(ObjectPullError, match="larger than any"):
        pull_all(objects, order)


def test_a_message_has_not_too_many_bytes_or_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    _, objects = deflated(list(range(20)), [bytes([one]) * 10 for one in range(20)])
    for name, size in (("MOST_MESSAGE_BYTES", sum(map(len, objects.values()))), ("MOST_OBJECTS", len(objects))):
        with monkeypatch.context() as limited:
            limited.setattr(sizes, name, size)
            assert pull_all(objects, list(objects)) == objects
            limited.setattr(sizes, name, size - 1)
            with pytest.raises(ObjectPullError, match="than any that ppfed sends"):
                pull_all(objects, list(objects))


@pytest.mark.parametrize(
    "content",
    [b"", b"no head", b"Array  3" + HEAD_BODY_DIVIDER + b"{}", b"Array  9" + HEAD_BODY_DIVIDER + b"[" * 100_000],
)
def test_what_cannot_be_read_is_given_up(content: bytes) -> None:
    with pytest.raises(ObjectPullError, match="malformed"):
        MessageSize(lambda _name: content)("a")


@pytest.mark.parametrize("values", [np.zeros(8 << 20, np.uint8), np.arange(3 << 20, dtype=np.float32)])
def test_whatever_ppfed_sends_passes(values: np.ndarray) -> None:
    """Of one value throughout, its chunks are equal."""
    record = RecordDict({"arrays": ArrayRecord({"a": array_of(values)}), "config": ConfigRecord({"v": 1})})
    objects = {name: one.deflate() for name, one in get_all_nested_objects(record).items()}
    arrived = inflate_object_from_contents(record.object_id, pull_all(objects, list(objects)))
    assert isinstance(arrived, RecordDict)
    assert np.array_equal(arrived.array_records["arrays"]["a"].numpy(), values)


@pytest.mark.parametrize("module", [http_grid, run_clientapp])
def test_both_ends_measure_what_they_pull(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setattr(sizes, "MOST_MESSAGE_BYTES", 10)
    pull = pull_objects if module is http_grid else pull_and_inflate_object_from_tree
    monkeypatch.setattr(module, pull.__name__, pull)
    pull_soon(module)
    record = RecordDict({"config": ConfigRecord({"v": 1})})
    objects = {name: one.deflate() for name, one in get_all_nested_objects(record).items()}

    def receive() -> None:
        if module is http_grid:
            module.pull_objects(object_ids=list(objects), pull_object_fn=objects.__getitem__)
        else:
            module.pull_and_inflate_object_from_tree(get_object_tree(record), objects.__getitem__, lambda _name: None)

    with pytest.raises(ObjectPullError, match="larger than any"):
        receive()
