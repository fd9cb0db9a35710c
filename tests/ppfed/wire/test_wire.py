"""What travels: every message round trips through Flower's own serialisation, and every check on arrival can fire."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from hypothesis import given, settings
from hypothesis import strategies as st

from ppfed.ciphers.spec import Scope
from ppfed.errors import PeerDataError
from ppfed.federation import FederationSettings
from ppfed.images.source import Split
from ppfed.images.types import EncryptedImages, PlainImages
from ppfed.keys.master import MasterKey
from ppfed.store import SHARD_BYTES, Shard
from ppfed.training.gradients import Moments, PartialGradient
from ppfed.training.loop import Evaluation
from ppfed.training.settings import UpdateFormat
from ppfed.wire import shards as shard_messages
from ppfed.wire import weights as weight_messages
from ppfed.wire.bfloat16 import from_bfloat16, to_bfloat16
from ppfed.wire.messages import array_of, pack_request, values_bytes
from ppfed.wire.shards import (
    Manifest,
    ShardName,
    pack_manifest,
    pack_shard,
    pack_shard_request,
    unpack_manifest,
    unpack_shard,
    unpack_shard_request,
)
from ppfed.wire.weights import (
    Farewell,
    GradientOrder,
    RoundOrder,
    RoundResult,
    pack_evaluation,
    pack_farewell,
    pack_gradient,
    pack_gradient_order,
    pack_round_order,
    pack_round_result,
    pack_weights,
    unpack_evaluation,
    unpack_farewell,
    unpack_gradient,
    unpack_gradient_order,
    unpack_round_order,
    unpack_round_result,
    unpack_weights,
    within_range,
)

MakeShard = Callable[..., Shard]
MakeSettings = Callable[..., FederationSettings]

NAME = ShardName(Split.TRAIN, 3)
STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "stem.bias": torch.tensor(-1.5), "none": torch.zeros(0, 4)}
MEASURED = {
    "stem.weight": torch.arange(6.0).reshape(2, 3),
    "norm.running_mean": torch.zeros(2),
    "norm.running_var": torch.ones(2),
}
MEASURED_LAYOUT = {name: tuple(tensor.shape) for name, tensor in MEASURED.items()}
LAYOUT = {"stem.weight": (2, 3), "stem.bias": (), "none": (0, 4)}


def travel(content: RecordDict) -> RecordDict:
    """Take apart and put together as Flower's executor and grid do."""
    objects = {name: one.deflate() for name, one in get_all_nested_objects(content).items()}
    for one in objects.values():
        validate_object_content(one)
    arrived = inflate_object_from_contents(content.object_id, objects)
    assert isinstance(arrived, RecordDict)
    return arrived


def layout_of(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])
        assert tensor.dtype == other[name].dtype


weights = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=6).map(lambda values: torch.tensor(values, dtype=torch.float32)),
    max_size=4,
)
evaluations = st.integers(0, 50).flatmap(
    lambda count: st.builds(
        Evaluation,
        st.integers(0, count),
        st.just(count),
        st.floats(0, 1e6) if count else st.just(float("nan")),
    )
)


# Round trips.


@given(shards=st.tuples(*[st.lists(st.integers(0, 2**32 - 1), max_size=2)] * 2))
def test_a_manifest_round_trips(make_settings: MakeSettings, shards: tuple[list[int], list[int]]) -> None:
    manifest = Manifest({split: tuple(listed) for split, listed in zip(Split, shards, strict=True)})
    arrived = unpack_manifest(travel(pack_manifest(manifest)), make_settings(), rows=20)
    assert arrived == manifest
    assert len(arrived.names()) == sum(map(len, shards))
    assert all(name.index < len(manifest.checksums[name.split]) for name in arrived.names())


@given(split=st.sampled_from(Split), index=st.integers(0, 999_999))
def test_a_shard_request_round_trips(split: Split, index: int) -> None:
    name = ShardName(split, index)
    assert unpack_shard_request(travel(pack_shard_request(name))) == name


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    scope=st.sampled_from(Scope),
    shuffle=st.booleans(),
)
def test_a_shard_round_trips(
    make_settings: MakeSettings, make_shard: MakeShard, rows: int, shape: Any, scope: Scope, shuffle: bool
) -> None:
    shard = make_shard(rows, shape=shape, scope=scope, colour_shuffle=shuffle)
    agreed = make_settings(
        height=shape[0], width=shape[1], channels=shape[2], cipher={"scope": scope, "colour_shuffle": shuffle}
    )
    arrived = unpack_shard(travel(pack_shard(NAME, shard)), NAME, agreed, shard.images.fingerprint, shard.checksum())
    assert np.array_equal(arrived.images.pixels, shard.images.pixels)
    assert np.array_equal(arrived.images.ids, shard.images.ids)
    assert np.array_equal(arrived.labels, shard.labels)
    assert (arrived.images.cipher, arrived.images.fingerprint) == (shard.images.cipher, shard.images.fingerprint)


@settings(max_examples=30, deadline=None)
@given(number=st.integers(1, 11), sent=weights)
def test_a_round_order_round_trips(number: int, sent: dict[str, torch.Tensor]) -> None:
    content = travel(pack_round_order(RoundOrder(number, sent)))
    arrived = unpack_round_order(content, 10, layout_of(sent))
    assert arrived.round == number
    assert_same_weights(arrived.weights, sent)


@settings(max_examples=30, deadline=None)
@given(number=st.integers(1, 10), steps=st.integers(1, 10**6), sent=weights, data=st.data())
def test_a_gradient_order_round_trips(number: int, steps: int, sent: dict[str, torch.Tensor], data: Any) -> None:
    step = data.draw(st.integers(0, steps - 1))
    content = travel(pack_gradient_order(GradientOrder(number, step, steps, sent)))
    arrived = unpack_gradient_order(content, 10, layout_of(sent))
    assert (arrived.round, arrived.step, arrived.steps) == (number, step, steps)
    assert_same_weights(arrived.weights, sent)


@settings(max_examples=30, deadline=None)
@given(
    parameters=st.integers(1, 50),
    channels=st.integers(0, 20),
    images=st.integers(1, 1000),
    loss=st.floats(0, 1e6),
    seed=st.integers(0, 99),
)
def test_a_gradient_round_trips(parameters: int, channels: int, images: int, loss: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    moments = Moments(torch.randn(channels, generator=generator), torch.rand(channels, generator=generator))
    sent = PartialGradient(torch.randn(parameters, generator=generator), moments, images, loss)
    arrived = unpack_gradient(travel(pack_gradient(sent)), images, parameters, channels)
    assert torch.equal(arrived.gradient, sent.gradient)
    assert torch.equal(arrived.moments.mean, moments.mean.double())
    assert torch.equal(arrived.moments.variance, moments.variance.double())
    assert (arrived.images, arrived.loss) == (images, loss)


@settings(max_examples=30, deadline=None)
@given(sent=weights, images=st.integers(1, 1000), loss=st.floats(0, 1e6), evaluation=evaluations)
def test_a_round_result_round_trips(
    sent: dict[str, torch.Tensor], images: int, loss: float, evaluation: Evaluation
) -> None:
    content = travel(pack_round_result(RoundResult(sent, images, loss, evaluation)))
    arrived = unpack_round_result(content, images, evaluation.count, layout_of(sent))
    assert (arrived.images, arrived.train_loss) == (images, loss)
    assert_same_weights(arrived.weights, sent)
    assert repr(arrived.evaluation) == repr(evaluation)  # nan is not equal to itself


states = st.lists(
    st.tuples(st.sampled_from(["weight", "bias", "running_mean", "running_var"]), st.integers(0, 6)), max_size=6
)


@settings(max_examples=30, deadline=None)
@given(kinds=states, seed=st.integers(0, 99), images=st.integers(1, 1000), loss=st.floats(0, 1e6))
def test_a_change_round_trips_rounded_and_statistics_exactly(
    kinds: list[tuple[str, int]], seed: int, images: int, loss: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layout = {f"layer{number}.{kind}": (size,) for number, (kind, size) in enumerate(kinds)}
    base, sent = ({name: torch.randn(shape, generator=generator) for name, shape in layout.items()} for _ in "ab")
    result = RoundResult(sent, images, loss, Evaluation(1, 2, 0.5))
    content = travel(pack_round_result(result, base))
    arrived = unpack_round_result(content, images, 2, layout, base)
    assert (arrived.images, arrived.train_loss) == (images, loss)
    expected = {
        name: sent[name] if "running" in name else base[name] + from_bfloat16(to_bfloat16(sent[name] - base[name]))
        for name in layout
    }
    assert_same_weights(arrived.weights, expected)
    for name, tensor in arrived.weights.items():
        # Eight significant bits of the change, and the last places of sums of values below 10.
        assert ((tensor - sent[name]).abs() <= (sent[name] - base[name]).abs() / 256 + 1e-6).all()
    measured = sum(size for kind, size in kinds if "running" in kind)
    assert values_bytes(content) == 2 * sum(size for _, size in kinds) + 2 * measured


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_a_gradient_in_bfloat16_round_trips_rounded(values: list[float]) -> None:
    moments = Moments(torch.tensor([0.1]), torch.tensor([0.3]))
    sent = PartialGradient(torch.tensor(values).clamp(-9e3, 9e3), moments, 3, 0.5)
    content = travel(pack_gradient(sent, UpdateFormat.BFLOAT16))
    arrived = unpack_gradient(content, 3, len(values), 1, UpdateFormat.BFLOAT16)
    assert torch.equal(arrived.gradient, sent.gradient.to(torch.bfloat16).float())
    assert torch.equal(arrived.moments.mean, moments.mean.double())
    assert torch.equal(arrived.moments.variance, moments.variance.double())
    assert values_bytes(content) == 2 * len(values) + 8


@given(evaluation=evaluations)
def test_an_evaluation_round_trips(evaluation: Evaluation) -> None:
    arrived = unpack_evaluation(travel(pack_evaluation(evaluation)), evaluation.count)
    assert repr(arrived) == repr(evaluation)


@settings(max_examples=30, deadline=None)
@given(completed=st.booleans(), message=st.text(max_size=1000), card=st.text(max_size=50), sent=weights)
def test_a_farewell_round_trips(completed: bool, message: str, card: str, sent: dict[str, torch.Tensor]) -> None:
    content = travel(pack_farewell(Farewell(completed, message, card, sent, card[::-1])))
    arrived = unpack_farewell(content, layout_of(sent))
    # It is shown, and no part of it is a line of its own.
    said = " ".join(message.splitlines())
    assert (arrived.completed, arrived.message, arrived.card, arrived.curve) == (completed, said, card, card[::-1])
    assert_same_weights(arrived.weights, sent if completed else {})


def test_a_request_travels_empty() -> None:
    content = travel(pack_request())
    assert not content.array_records
    assert not content.metric_records


# Plain images.


def test_plain_images_cannot_be_packed(make_shard: MakeShard) -> None:
    shard = make_shard(2)
    plain = PlainImages(shard.images.pixels)
    # Round the check in Shard itself, as a later mistake might.
    object.__setattr__(shard, "images", plain)
    with pytest.raises(TypeError, match="only encrypted images are sent"):
        pack_shard(NAME, shard)


# Shards that are not what they should be.


def packed(shard: Shard) -> tuple[dict[str, Array], dict[str, Any]]:
    content = pack_shard(NAME, shard)
    return dict(content.array_records["arrays"]), dict(content.config_records["config"])


def as_content(arrays: dict[str, Array], config: dict[str, Any]) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord(config)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "held-out"),
        ("index", 4),
        ("crc", 0),
        ("height", 9),
        ("width", 7),
        ("channels", 1),
        ("cipher", "np-v2"),
        ("scope", "fixed"),
        ("colour-shuffle", False),
        ("fingerprint", "0" * 16),
        ("split", ["train"]),
        ("index", "3"),
        ("height", None),
    ],
)
def test_a_shard_with_another_setting_is_refused(
    make_settings: MakeSettings, make_shard: MakeShard, key: str, value: Any
) -> None:
    shard = make_shard(4)
    arrays, config = packed(shard)
    config[key] = value
    if value is None:
        del config[key]
    with pytest.raises(PeerDataError, match=f"{key} is not the agreed one"):
        unpack_shard(
            travel(as_content(arrays, config)), NAME, make_settings(), shard.images.fingerprint, shard.checksum()
        )


def npy(values: Any) -> Array:
    return Array(np.asarray(values))


def raw(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("uint8", (4, 8, 8, 3), stype, data)


def header(text: str) -> bytes:
    encoded = text.encode()
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded


def pickled() -> bytes:
    data = io.BytesIO()
    np.save(data, np.array([{"never": "loaded"}], dtype=object), allow_pickle=True)
    return data.getvalue()


def zipped() -> bytes:
    data = io.BytesIO()
    np.savez(data, pixels=np.zeros((4, 8, 8, 3), np.uint8))
    return data.getvalue()


UNREADABLE = {
    "no bytes": raw(b""),
    "garbage": raw(b"\x00garbage" * 9),
    "a pickle": raw(pickle.dumps([1, 2])),
    "an npy of objects": raw(pickled()),
    "an npz": raw(zipped()),
    "half a zip": raw(zipped()[:40]),
    "a header without values": raw(header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8, 3)}")),
    # Each of these makes np.load raise something else: TokenError, SyntaxError, TypeError, MemoryError, RecursionError.
    "an open bracket": raw(header("{'descr': '<f4', 'shape': (3, 2")),
    "an octal number": raw(header("{'descr': '<f4', 'fortran_order': False, 'shape': (03, 2)}")),
    "bytes for a name": raw(header("{b'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)}")),
    "more than any memory": raw(header("{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846975,)}")),
    "nested brackets": raw(header("(" * 5000 + ")" * 5000)),
    "cloudpickle": raw(pickle.dumps([1]), "cloudpickle"),
    "no such format": raw(npy(np.zeros((4, 8, 8, 3), np.uint8)).data, "torch.Tensor"),
}


@pytest.mark.filterwarnings("ignore")  # numpy warns of old headers
@pytest.mark.parametrize("array", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("key", ["pixels", "labels"])
def test_an_array_that_cannot_be_read_is_refused(
    make_settings: MakeSettings, make_shard: MakeShard, key: str, array: Array
) -> None:
    shard = make_shard(4)
    arrays, config = packed(shard)
    arrays[key] = array
    with pytest.raises(PeerDataError, match="an array"):
        unpack_shard(as_content(arrays, config), NAME, make_settings(), shard.images.fingerprint, shard.checksum())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("array", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_weights_that_cannot_be_read_are_refused(array: Array) -> None:
    with pytest.raises(PeerDataError):
        unpack_weights(RecordDict({"arrays": ArrayRecord({"weights": array})}), LAYOUT)


def test_nothing_is_unpickled(make_settings: MakeSettings, make_shard: MakeShard, monkeypatch: Any) -> None:
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("unpickled"))
    shard = make_shard(4)
    arrays, config = packed(shard)
    for array in UNREADABLE.values():
        arrays["pixels"] = array
        with pytest.raises(PeerDataError):
            unpack_shard(as_content(arrays, config), NAME, make_settings(), shard.images.fingerprint, shard.checksum())


@pytest.mark.parametrize(
    ("key", "array", "reason"),
    [
        ("pixels", npy(np.zeros((4, 8, 8, 3), np.int8)), "images are int8"),
        ("pixels", npy(np.zeros((4, 8, 8, 3), np.float32)), "images are float32"),
        ("pixels", npy(np.zeros((4, 8, 8, 1), np.uint8)), "images are uint8 of shape"),
        ("pixels", npy(np.zeros((4, 8, 24), np.uint8)), "images are uint8 of shape"),
        ("pixels", npy(np.uint8(1)), "images are uint8 of shape"),
        ("ids", npy(np.zeros((4, 11), np.uint8)), "ids have another"),
        ("ids", npy(np.zeros((3, 12), np.uint8)), "ids have another"),
        ("ids", npy(np.zeros((4, 12), np.int8)), "ids have another"),
        ("labels", npy(np.zeros(3, np.int64)), "labels have another"),
        ("labels", npy(np.zeros((4, 1), np.int64)), "labels have another"),
        ("labels", npy(np.zeros(4, np.int32)), "labels have another"),
        ("labels", npy(np.zeros(4, ">i8")), "labels have another"),
        ("labels", npy(np.array([0, 1, 2, 0])), "outside the class list"),
        ("labels", npy(np.array([0, 1, -1, 0])), "outside the class list"),
    ],
)
def test_a_shard_of_another_form_is_refused(
    make_settings: MakeSettings, make_shard: MakeShard, key: str, array: Array, reason: str
) -> None:
    shard = make_shard(4)
    arrays, config = packed(shard)
    arrays[key] = array
    with pytest.raises(PeerDataError, match=reason):
        unpack_shard(
            travel(as_content(arrays, config)), NAME, make_settings(), shard.images.fingerprint, shard.checksum()
        )


@pytest.mark.parametrize("part", ["pixels", "ids", "labels"])
def test_a_change_on_the_way_is_found(make_settings: MakeSettings, make_shard: MakeShard, part: str) -> None:
    shard = make_shard(4)
    arrays, config = packed(shard)
    values = arrays[part].numpy().copy()
    values.reshape(-1)[-1] ^= 1
    arrays[part] = npy(values)
    with pytest.raises(PeerDataError, match="damaged on the way"):
        unpack_shard(as_content(arrays, config), NAME, make_settings(), shard.images.fingerprint, shard.checksum())


def test_a_shard_of_another_key_is_refused(make_settings: MakeSettings, make_shard: MakeShard) -> None:
    other = make_shard(4, key=MasterKey(bytes(32)))
    with pytest.raises(PeerDataError, match="fingerprint is not the agreed one"):
        unpack_shard(pack_shard(NAME, other), NAME, make_settings(), make_shard(1).images.fingerprint, other.checksum())


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("ids"),
        lambda arrays: arrays.update(more=npy(np.zeros(1))),
        lambda arrays: arrays.clear(),
    ],
)
def test_missing_and_extra_arrays_are_refused(
    make_settings: MakeSettings, make_shard: MakeShard, change: Callable[[dict[str, Array]], object]
) -> None:
    shard = make_shard(4)
    arrays, config = packed(shard)
    change(arrays)
    with pytest.raises(PeerDataError, match="expected arrays"):
        unpack_shard(as_content(arrays, config), NAME, make_settings(), shard.images.fingerprint, shard.checksum())


def test_a_shard_larger_than_any_is_refused_before_it_is_read(
    make_settings: MakeSettings, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_messages, "SHARD_BYTES", 100)
    monkeypatch.setattr(Array, "numpy", lambda _self: pytest.fail("read"))
    shard = make_shard(4)
    with pytest.raises(PeerDataError, match="too large"):
        unpack_shard(pack_shard(NAME, shard), NAME, make_settings(), shard.images.fingerprint, shard.checksum())
    assert SHARD_BYTES > 100


# Messages without what they should hold.

UNPACKERS: dict[str, Callable[[RecordDict], object]] = {
    "shard request": unpack_shard_request,
    "round order": lambda content: unpack_round_order(content, 10, LAYOUT),
    "gradient order": lambda content: unpack_gradient_order(content, 10, LAYOUT),
    "gradient": lambda content: unpack_gradient(content, 5, 3, 2),
    "round result": lambda content: unpack_round_result(content, 5, 2, LAYOUT),
    "round result as a change": lambda content: unpack_round_result(content, 5, 2, MEASURED_LAYOUT, MEASURED),
    "gradient in bfloat16": lambda content: unpack_gradient(content, 5, 3, 2, UpdateFormat.BFLOAT16),
    "evaluation": lambda content: unpack_evaluation(content, 2),
    "farewell": lambda content: unpack_farewell(content, LAYOUT),
    "weights": lambda content: unpack_weights(content, LAYOUT),
}


@pytest.mark.parametrize("unpack", UNPACKERS.values(), ids=UNPACKERS.keys())
@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"config": ConfigRecord()}),
        RecordDict({"arrays": ConfigRecord()}),
        RecordDict({"metrics": MetricRecord()}),
        RecordDict({"arrays": MetricRecord(), "config": ArrayRecord(), "metrics": ConfigRecord()}),
        RecordDict({"weights": ArrayRecord({"a": npy(np.zeros(1, np.float32))})}),
    ],
)
def test_missing_records_are_refused(unpack: Callable[[RecordDict], object], content: RecordDict) -> None:
    with pytest.raises(PeerDataError):
        unpack(content)


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"arrays": ArrayRecord()})])
def test_missing_records_of_shards_and_manifests_are_refused(
    make_settings: MakeSettings, fingerprint: str, content: RecordDict
) -> None:
    with pytest.raises(PeerDataError):
        unpack_shard(content, NAME, make_settings(), fingerprint, 0)
    with pytest.raises(PeerDataError):
        unpack_manifest(content, make_settings(), 10)


@pytest.mark.parametrize("listed", ["crc", 5, [0.5], ["a"], [b"1"], b"bytes", 1.5])
@pytest.mark.parametrize("split", Split)
def test_a_malformed_manifest_is_refused(make_settings: MakeSettings, split: Split, listed: Any) -> None:
    with pytest.raises(PeerDataError, match="malformed"):
        unpack_manifest(RecordDict({"config": ConfigRecord({str(split): listed})}), make_settings(), 10)


def test_a_manifest_lists_no_more_shards_than_the_images_fill(make_settings: MakeSettings) -> None:
    agreed = make_settings(height=1024, width=1024)  # 21 images fill a shard
    # Two splits, each with a last shard that is not full, and one to spare for each.
    for shards, rows, good in ((4, 0, True), (5, 0, False), (14, 210, True), (15, 210, False)):
        content = pack_manifest(Manifest({Split.TRAIN: (1,) * shards, Split.HELD_OUT: ()}))
        if good:
            assert len(unpack_manifest(content, agreed, rows).names()) == shards
        else:
            with pytest.raises(PeerDataError, match="more shards"):
                unpack_manifest(content, agreed, rows)


@pytest.mark.parametrize(
    "config",
    [
        {"split": "train"},
        {"split": "train", "index": -1},
        {"split": "train", "index": 1_000_000},
        {"split": "train", "index": 1.0},
        {"split": "train", "index": "0"},
        {"split": "../..", "index": 0},
        {"split": ["train"], "index": 0},
        {"split": b"train", "index": 0},
        {"index": 0},
    ],
)
def test_a_shard_that_cannot_exist_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PeerDataError, match="cannot exist"):
        unpack_shard_request(RecordDict({"config": ConfigRecord(config)}))


@pytest.mark.parametrize("number", [0, -1, 12, 10**9, 1.0, "1", [1]])
def test_a_round_that_was_not_agreed_is_refused(number: Any) -> None:
    content = RecordDict({"arrays": pack_weights(STATE), "config": ConfigRecord({"round": number})})
    with pytest.raises(PeerDataError, match="a round that was not agreed"):
        unpack_round_order(content, 10, LAYOUT)


RESULT = RoundResult(STATE, 5, 0.5, Evaluation(1, 2, 0.25))


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("num-examples", 4),
        ("num-examples", 0),
        ("num-examples", -5),
        ("num-examples", float("nan")),
        ("num-examples", [5]),
        ("train-loss", float("nan")),
        ("train-loss", float("inf")),
        ("train-loss", [0.5]),
        ("correct", -1),
        ("correct", 3),
        ("correct", 1.0),
        ("correct", [1]),
        ("held-out", 3),
        ("held-out", 1),
        ("held-out", 2.0),
        ("held-out-loss", float("nan")),
        ("held-out-loss", [0.25]),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_impossible_numbers_are_refused(metric: str, value: Any, missing: bool) -> None:
    content = pack_round_result(RESULT)
    metrics = content.metric_records["metrics"]
    assert metric in metrics
    if missing:
        del metrics[metric]
    else:
        metrics[metric] = value
    with pytest.raises(PeerDataError):
        unpack_round_result(travel(content), 5, 2, LAYOUT)
    if metric not in ("num-examples", "train-loss"):
        del content["arrays"]
        with pytest.raises(PeerDataError):
            unpack_evaluation(travel(content), 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.metric_records["metrics"].update({"bonus": 1.0}),
        lambda content: content.update({"more": MetricRecord({"a": 1})}),
        lambda content: content.update({"more": ArrayRecord()}),
        lambda content: content.update({"more": ConfigRecord()}),
    ],
)
def test_records_that_flower_could_not_average_are_refused(change: Callable[[RecordDict], object]) -> None:
    """FedAvg raises where replies have different metrics: one owner's whim would end the run for all."""
    content = pack_round_result(RESULT)
    change(content)
    with pytest.raises(PeerDataError):
        unpack_round_result(content, 5, 2, LAYOUT)


def change_of(**arrays: Any) -> RecordDict:
    """Pack an update as a change, with other arrays than it should have; None leaves one out."""
    content = pack_round_result(RoundResult(MEASURED, 5, 0.5, Evaluation(1, 2, 0.25)), MEASURED)
    packed = {name: array.numpy() for name, array in content.array_records["arrays"].items()} | arrays
    content["arrays"] = ArrayRecord({name: npy(one) for name, one in packed.items() if one is not None})
    return content


BAD_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "float32": ({"change": np.zeros(6, np.float32)}, "are float32, not bfloat16 in uint16"),
    "int16": ({"change": np.zeros(6, np.int16)}, "are int16, not bfloat16"),
    "float16": ({"change": np.zeros(6, np.float16)}, "are float16, not bfloat16"),
    "swapped bytes": ({"change": np.zeros(6, ">u2")}, "not bfloat16"),
    "objects": ({"change": np.zeros(6, "U1")}, "not bfloat16"),
    "too short": ({"change": np.zeros(5, np.uint16)}, "another length"),
    "too long": ({"change": np.zeros(7, np.uint16)}, "another length"),
    "in two dimensions": ({"change": np.zeros((2, 3), np.uint16)}, "another length"),
    "not a number": ({"change": np.full(6, 0x7FC0, np.uint16)}, "not finite"),
    "infinite": ({"change": np.full(6, 0xFF80, np.uint16)}, "not finite"),
    # The largest that bfloat16 has, and 2**20, which is just beyond a million.
    "huge": ({"change": np.full(6, 0x7F7F, np.uint16)}, "larger than 1e"),
    "beyond a million": ({"change": np.full(6, 0x4980, np.uint16)}, "larger than 1e"),
    "beyond a million below zero": ({"change": np.full(6, 0xC980, np.uint16)}, "larger than 1e"),
    "no statistics": ({"statistics": None}, "expected arrays"),
    "more": ({"more": np.zeros(1, np.float32)}, "expected arrays"),
    "statistics too short": ({"statistics": np.ones(3, np.float32)}, "another length"),
    "statistics in bfloat16": ({"statistics": np.ones(4, np.uint16)}, "uint16, not float32"),
    "statistics not a number": ({"statistics": np.full(4, np.nan, np.float32)}, "not finite"),
    "statistics beyond a million": ({"statistics": np.full(4, 2e6, np.float32)}, "larger than 1e"),
    "whole weights": (
        {"change": None, "statistics": None, "weights": np.zeros(10, np.float32)},
        "in format float32, and bfloat16 was agreed",
    ),
}


@pytest.mark.parametrize(("arrays", "reason"), BAD_CHANGES.values(), ids=BAD_CHANGES.keys())
def test_a_change_other_than_the_agreed_is_refused(arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(PeerDataError, match=reason):
        unpack_round_result(travel(change_of(**arrays)), 5, 2, MEASURED_LAYOUT, MEASURED)


def test_the_change_that_bad_ones_start_from_is_accepted() -> None:
    arrived = unpack_round_result(travel(change_of()), 5, 2, MEASURED_LAYOUT, MEASURED)
    assert_same_weights(arrived.weights, MEASURED)


def test_formats_that_were_not_agreed_are_refused_by_name() -> None:
    with pytest.raises(PeerDataError, match="in format bfloat16, and float32 was agreed"):
        unpack_round_result(travel(change_of()), 5, 2, MEASURED_LAYOUT)
    part = PartialGradient(torch.zeros(3), Moments(torch.zeros(2), torch.ones(2)), 5, 0.5)
    for sent, agreed, reason in (
        (UpdateFormat.FLOAT32, UpdateFormat.BFLOAT16, "are float32, not bfloat16"),
        (UpdateFormat.BFLOAT16, UpdateFormat.FLOAT32, "are uint16, not float32"),
    ):
        with pytest.raises(PeerDataError, match=reason):
            unpack_gradient(travel(pack_gradient(part, sent)), 5, 3, 2, agreed)


@settings(max_examples=100, deadline=None)
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=6, max_size=6))
def test_a_change_of_any_bits_gives_bounded_weights_or_is_refused(bits: list[int]) -> None:
    try:
        arrived = unpack_round_result(change_of(change=np.array(bits, np.uint16)), 5, 2, MEASURED_LAYOUT, MEASURED)
    except PeerDataError:
        return
    assert within_range(arrived.weights)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.0, np.nan], np.float32),
        np.array([np.inf], np.float32),
        np.array([-np.inf], np.float32),
        np.array([0.0, 1.0001e6], np.float32),
        np.array([0.0, -1.0001e6], np.float32),
        np.array([3e38], np.float32),
        np.array([1.0], np.float64),
        np.array([1.0], np.float16),
        np.array([1.0], ">f4"),
        np.array([1], np.int64),
        np.array(["a"]),
        np.array([1 + 2j], np.complex64),
    ],
)
def test_weights_other_than_bounded_float32_are_refused(values: Any) -> None:
    record = ArrayRecord({"weights": Array(values)})
    for kind, more in (
        ("weights", {}),
        ("round order", {"config": ConfigRecord({"round": 1})}),
        ("farewell", {"config": ConfigRecord({"completed": True, "message": "", "card": "", "curve": ""})}),
    ):
        with pytest.raises(PeerDataError, match="the weights are"):
            UNPACKERS[kind](travel(RecordDict({"arrays": record, **more})))


@pytest.mark.parametrize("shape", [(0,), (6,), (8,), (7, 1), (1, 7), ()])
def test_weights_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    record = ArrayRecord({"weights": npy(np.zeros(shape, np.float32))})
    with pytest.raises(PeerDataError, match="not fit the network"):
        unpack_weights(travel(RecordDict({"arrays": record})), LAYOUT)


def test_weights_larger_than_any_network_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_messages, "_MOST_WEIGHT_BYTES", 100)
    monkeypatch.setattr(Array, "numpy", lambda _self: pytest.fail("read"))
    with pytest.raises(PeerDataError, match="too large"):
        unpack_weights(RecordDict({"arrays": pack_weights(STATE)}), LAYOUT)


@pytest.mark.parametrize(
    "change",
    [{"message": 1}, {"message": None}, {"card": None}, {"card": b""}, {"card": "x" * (5 << 20)}, {"curve": None}],
)
def test_a_malformed_farewell_is_refused(change: dict[str, Any]) -> None:
    config = {"completed": True, "message": "", "card": "", "curve": "", **change}
    config = {name: value for name, value in config.items() if value is not None}
    with pytest.raises(PeerDataError, match="last message is malformed"):
        unpack_farewell(RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord(config)}), {})


@pytest.mark.parametrize("completed", [None, 1, "True", 0])
def test_a_farewell_is_complete_only_if_it_says_so(completed: Any) -> None:
    content = pack_farewell(Farewell(True, "m" * 2000, "", {}))
    content.config_records["config"].update({} if completed is None else {"completed": completed})
    if completed is None:
        del content.config_records["config"]["completed"]
    arrived = unpack_farewell(content, {})
    assert not arrived.completed
    assert arrived.message == "m" * 1000


def test_a_shard_is_neither_empty_nor_more_than_full(
    make_settings: MakeSettings, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_messages, "rows_per_shard", lambda _shape: 3)
    for rows, good in ((0, False), (1, True), (3, True), (4, False)):
        shard = make_shard(rows)
        arguments = (NAME, make_settings(), shard.images.fingerprint, shard.checksum())
        if good:
            assert len(unpack_shard(travel(pack_shard(NAME, shard)), *arguments)) == rows
        else:
            with pytest.raises(PeerDataError, match=f"1 to 3 images, not {rows}"):
                unpack_shard(travel(pack_shard(NAME, shard)), *arguments)


# Anything at all.


def mutated_npy(data: st.DataObject) -> bytes:
    content = bytearray(npy(np.zeros((3, 2), np.float32)).data)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(data=st.data(), key=st.sampled_from(["pixels", "ids", "labels"]))
def test_bytes_of_any_kind_raise_nothing_but_peer_data_error(
    make_settings: MakeSettings, make_shard: MakeShard, data: st.DataObject, key: str
) -> None:
    content = data.draw(st.one_of(st.binary(max_size=200), st.just(None))) or mutated_npy(data)
    shard = make_shard(2)
    arrays, config = packed(shard)
    arrays[key] = raw(content)
    with pytest.raises(PeerDataError):
        unpack_shard(as_content(arrays, config), NAME, make_settings(), shard.images.fingerprint, shard.checksum())
    with contextlib.suppress(PeerDataError):
        unpack_weights(RecordDict({"arrays": ArrayRecord({"weights": raw(content)})}), LAYOUT)


values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=9),
    st.booleans(),
    st.lists(st.integers(-9, 9), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
)
keys = st.sampled_from(["round", "split", "index", "completed", "message", "card", "train", "held-out", "v", "x"])
metric_keys = st.sampled_from(["num-examples", "train-loss", "correct", "held-out", "held-out-loss", "x"])
numbers = st.one_of(st.integers(-5, 9), st.floats(), st.lists(st.floats(), max_size=2))


@settings(max_examples=200, deadline=None)
@given(
    config=st.dictionaries(keys, values, max_size=5),
    metrics=st.dictionaries(metric_keys, numbers, max_size=6),
    data=st.data(),
)
def test_settings_of_any_kind_raise_nothing_but_peer_data_error(
    make_settings: MakeSettings, fingerprint: str, config: dict[str, Any], metrics: dict[str, Any], data: st.DataObject
) -> None:
    content = RecordDict(
        {"arrays": pack_weights(STATE), "config": ConfigRecord(config), "metrics": MetricRecord(metrics)}
    )
    unpackers = [
        *UNPACKERS.values(),
        lambda one: unpack_manifest(one, make_settings(), 10),
        lambda one: unpack_shard(one, NAME, make_settings(), fingerprint, 0),
    ]
    with contextlib.suppress(PeerDataError):
        data.draw(st.sampled_from(unpackers))(content)


def test_the_tests_can_fail(make_settings: MakeSettings, make_shard: MakeShard) -> None:
    """The shard that all mutations start from is accepted."""
    shard = make_shard(4)
    arrays, config = packed(shard)
    agreed = make_settings()
    unpack_shard(as_content(arrays, config), NAME, agreed, shard.images.fingerprint, shard.checksum())
    unpack_round_result(pack_round_result(RESULT), 5, 2, LAYOUT)
    assert replace(RESULT, images=5) == RESULT
    assert isinstance(shard.images, EncryptedImages)
    assert zipfile.is_zipfile(io.BytesIO(zipped()))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(60, dtype=np.uint8).reshape(3, 5, 4),
        np.arange(60, dtype=np.int64).reshape(3, 20)[:, ::2],
        np.zeros((0, 4), np.uint8),
    ],
    ids=["pixels", "not contiguous", "empty"],
)
def test_an_array_is_packed_byte_for_byte_as_flower_packs_it(values: np.ndarray) -> None:
    ours, flowers = array_of(values), Array(values)
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (
        flowers.dtype,
        flowers.shape,
        flowers.stype,
        flowers.data,
    )
    assert ours.object_id == flowers.object_id
