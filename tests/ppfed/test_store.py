"""Encrypted images at rest: what is written is read again, in order, and damage is found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppfed import store as store_module
from ppfed.ciphers.spec import Scope
from ppfed.errors import DataError
from ppfed.images.source import Split
from ppfed.images.types import EncryptedImages, PlainImages
from ppfed.store import SHARD_BYTES, Shard, ShardStore, read_shard, rows_per_shard, verify_shard

MakeShard = Callable[..., Shard]

in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


def assert_equal(one: Shard, other: Shard) -> None:
    assert np.array_equal(one.images.pixels, other.images.pixels)
    assert np.array_equal(one.images.ids, other.images.ids)
    assert np.array_equal(one.labels, other.labels)
    assert one.labels.dtype == other.labels.dtype
    assert one.images.cipher == other.images.cipher
    assert one.images.fingerprint == other.images.fingerprint
    assert one.checksum() == other.checksum()


@in_tmp_path
@given(
    rows=st.integers(0, 5),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    scope=st.sampled_from(Scope),
    shuffle=st.booleans(),
    classes=st.integers(2, 65_536),
    seed=st.integers(0, 99),
)
def test_a_shard_is_read_as_it_was_written(
    tmp_path: Path, make_shard: MakeShard, rows: int, shape: Any, scope: Scope, shuffle: bool, classes: int, seed: int
) -> None:
    shard = make_shard(rows, seed, shape=shape, scope=scope, colour_shuffle=shuffle, classes=classes)
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, shard)
    assert_equal(read_shard(path), shard)
    verify_shard(path)
    assert list(path.parent.iterdir()) == [path]


def test_only_this_user_reads_a_shard(tmp_path: Path, make_shard: MakeShard) -> None:
    before = os.umask(0)
    try:
        path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(2))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_shards_come_in_the_order_of_their_index(tmp_path: Path, make_shard: MakeShard) -> None:
    store = ShardStore(tmp_path)
    written = {index: make_shard(2, seed=index) for index in (10, 2, 0, 11, 1)}
    for index, shard in written.items():
        store.write(Split.TRAIN, index, shard)
    store.write(Split.HELD_OUT, 0, make_shard(3, seed=99))
    for shard, index in zip(store.shards(Split.TRAIN), sorted(written), strict=True):
        assert_equal(shard, written[index])
    assert (store.rows(Split.TRAIN), store.rows(Split.HELD_OUT)) == (10, 3)
    assert [path.name for path in store.paths(Split.TRAIN)] == [f"{index:05d}.arrow" for index in sorted(written)]


def test_an_empty_store_lists_nothing(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "missing")
    assert store.paths(Split.TRAIN) == []
    assert store.rows(Split.HELD_OUT) == 0


def test_a_shard_of_the_same_index_is_replaced(tmp_path: Path, make_shard: MakeShard) -> None:
    store = ShardStore(tmp_path)
    store.write(Split.TRAIN, 0, make_shard(2, seed=1))
    store.write(Split.TRAIN, 0, make_shard(3, seed=2))
    assert_equal(*store.shards(Split.TRAIN), make_shard(3, seed=2))


def test_pixels_are_mapped_not_copied(tmp_path: Path, make_shard: MakeShard) -> None:
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(64, shape=(32, 32, 3)))
    before = pa.total_allocated_bytes()
    pixels = read_shard(path).images.pixels
    assert pa.total_allocated_bytes() == before
    assert not pixels.flags.writeable
    assert not pixels.flags.owndata
    # Mapped: what is changed in the file is seen through the array.
    offset = path.read_bytes().index(pixels[0].tobytes())
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([int(pixels[0, 0, 0, 0]) ^ 0xFF]))
        changed = int(pixels[0, 0, 0, 0]) ^ 0xFF
    assert read_shard(path).images.pixels[0, 0, 0, 0] == changed


@in_tmp_path
@given(data=st.data())
def test_a_flipped_bit_in_any_image_is_found(tmp_path: Path, make_shard: MakeShard, data: st.DataObject) -> None:
    shard = make_shard(3)
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, shard)
    content = bytearray(path.read_bytes())
    start = content.index(shard.images.pixels.tobytes())
    position = data.draw(st.integers(start, start + shard.images.pixels.size - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    read_shard(path)  # its structure is sound
    with pytest.raises(DataError, match="differs from its digest"):
        verify_shard(path)


@in_tmp_path
@given(data=st.data())
def test_damage_anywhere_is_a_data_error_or_leaves_a_shard(
    tmp_path: Path, make_shard: MakeShard, data: st.DataObject
) -> None:
    """The schema, the metadata and Arrow's own structure may be hit: never anything but DataError comes out."""
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(2, shape=(2, 2, 3)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert isinstance(read_shard(path), Shard)
        verify_shard(path)


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        # In the schema, so that pyarrow itself opens the file: found by flipping bytes at random.
        (b"digest", b"dugest"),
        (b"pixels", b"pixeLs"),
        (b'"scope": "image"', b'"scope": "imagf"'),
        (b'"height": 8', b'"height": 9'),
    ],
)
def test_a_damaged_schema_is_a_data_error(tmp_path: Path, make_shard: MakeShard, found: bytes, changed: bytes) -> None:
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(2))
    content = path.read_bytes()
    assert found in content
    path.write_bytes(content.replace(found, changed))
    with pytest.raises(DataError):
        verify_shard(path)


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.decimal128(20)])
def test_labels_of_another_type_are_a_data_error(tmp_path: Path, make_shard: MakeShard, kind: pa.DataType) -> None:
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(2))
    batch = pa.ipc.open_file(path).get_batch(0)
    columns = {name: batch.column(name) for name in batch.schema.names} | {"label": pa.array([0, 1]).cast(kind)}
    write_arrow(path, columns, batch.schema.metadata)
    with pytest.raises(DataError):
        read_shard(path)


def test_a_missing_label_is_a_data_error(tmp_path: Path, make_shard: MakeShard) -> None:
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(2))
    batch = pa.ipc.open_file(path).get_batch(0)
    columns = {name: batch.column(name) for name in batch.schema.names} | {"label": pa.array([0, None], pa.int32())}
    write_arrow(path, columns, batch.schema.metadata)
    with pytest.raises(DataError):
        read_shard(path)


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowKeyError])
def test_whatever_arrow_raises_is_a_data_error(
    tmp_path: Path, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A flipped byte in the schema can announce 128-bit integers, which Arrow does not implement."""

    def fail(_source: object) -> None:
        raise error("no")

    path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(2))
    monkeypatch.setattr(pa.ipc, "open_file", fail)
    with pytest.raises(DataError):
        read_shard(path)


@in_tmp_path
@given(keep=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_a_data_error(tmp_path: Path, make_shard: MakeShard, keep: float) -> None:
    path = ShardStore(tmp_path).write(Split.TRAIN, 0, make_shard(3))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="not a shard"):
        read_shard(path)


def write_arrow(path: Path, columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None) -> None:
    table = pa.table(columns).replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(os.urandom(500)),
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: write_arrow(path, {"a": [1, 2]}),
        lambda path: write_arrow(path, {"a": [1, 2]}, {b"ppfed": b"{}"}),
        lambda path: write_arrow(path, {"a": [1, 2]}, {b"ppfed": b"[1]"}),
        lambda path: write_arrow(path, {}, {b"ppfed": b"\xff"}),
        lambda path: write_arrow(
            path,
            {"id": [b"1"], "label": [1], "pixels": [b"12"]},
            {
                b"ppfed": b'{"name": "np-v1", "scope": "image", "colour_shuffle": true, "fingerprint": "0", '
                b'"height": 1, "width": 1, "channels": 1}'
            },
        ),
    ],
)
def test_a_foreign_file_is_a_data_error(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path / "00000.arrow")
    with pytest.raises(DataError):
        read_shard(tmp_path / "00000.arrow")


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_shard(tmp_path / "none.arrow")


def test_plain_images_make_no_shard() -> None:
    plain = PlainImages(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(TypeError, match="only encrypted"):
        Shard(plain, np.zeros(1, np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [np.zeros(2, np.int64), np.zeros(3, np.int32), np.zeros((3, 1), np.int64)])
def test_there_is_one_int64_label_for_each_image(make_shard: MakeShard, labels: Any) -> None:
    with pytest.raises(ValueError, match="one int64 label"):
        Shard(make_shard(3).images, labels)


def test_a_partial_file_is_not_listed_and_not_left(
    tmp_path: Path, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ShardStore(tmp_path)
    old = make_shard(2, seed=1)
    store.write(Split.TRAIN, 0, old)

    def crash(_descriptor: int) -> None:
        raise OSError("no power")

    with monkeypatch.context() as broken:
        broken.setattr(store_module.os, "fsync", crash)
        for index in (0, 1):
            with pytest.raises(OSError, match="no power"):
                store.write(Split.TRAIN, index, make_shard(2, seed=2))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["00000.arrow"]
    assert_equal(*store.shards(Split.TRAIN), old)


@in_tmp_path
@given(data=st.data(), part=st.sampled_from(["pixels", "ids", "labels"]))
def test_the_checksum_changes_with_pixels_ids_and_labels(make_shard: MakeShard, data: st.DataObject, part: str) -> None:
    shard = make_shard(3)
    arrays = {"pixels": shard.images.pixels.copy(), "ids": shard.images.ids.copy(), "labels": shard.labels.copy()}
    where = data.draw(st.integers(0, arrays[part].size - 1))
    arrays[part].reshape(-1)[where] ^= 1
    images = EncryptedImages(arrays["pixels"], arrays["ids"], shard.images.cipher, shard.images.fingerprint)
    assert Shard(images, arrays["labels"]).checksum() != shard.checksum()


@given(side=st.integers(1, 8192), channels=st.sampled_from([1, 3]))
def test_a_full_shard_is_as_large_as_a_message_may_be(side: int, channels: int) -> None:
    rows, image = rows_per_shard((side, side, channels)), side * side * channels
    assert rows >= 1
    assert rows * image <= max(SHARD_BYTES, image) < (rows + 1) * image
