"""Images that are read from disk batch by batch: the same batches and the same training as from memory, to the bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppfed import store as store_module
from ppfed.errors import DataError
from ppfed.images.source import Split
from ppfed.networks.classifier import build_network
from ppfed.networks.config import NetworkConfig
from ppfed.services import flower_environment
from ppfed.store import PixelFile, Shard, ShardStore, locate_pixels, read_shard
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig, evaluate
from ppfed.training.ranks import ALONE, Ranks
from ppfed.training.streaming import THREAD_NAME, StoredImages

MakeShard = Callable[..., Shard]

CPU = torch.device("cpu")
SHAPE = (8, 8, 3)
NETWORK = NetworkConfig(classes=2, height=8, width=8, base_maps=4)
CONFIG = TrainingConfig(epochs=4, batch_size=8, learning_rate=0.1, seed=5)


@pytest.fixture
def make_paths(tmp_path: Path, make_shard: MakeShard) -> Callable[..., list[Path]]:
    """Write shards with so many rows each."""

    def make(*rows: int, shape: tuple[int, int, int] = SHAPE) -> list[Path]:
        store = ShardStore(tmp_path)
        return [
            store.write(Split.TRAIN, index, make_shard(count, index, shape=shape)) for index, count in enumerate(rows)
        ]

    return make


def both(paths: list[Path], shape: tuple[int, int, int] = SHAPE) -> tuple[ImageTensors, StoredImages]:
    """The same images in memory and on disk."""
    return ImageTensors.from_shards([read_shard(path) for path in paths], shape, CPU), StoredImages(paths, shape, CPU)


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith(THREAD_NAME)]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    assert threads() == []
    yield
    assert threads() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    shape=st.sampled_from([(8, 8, 3), (4, 6, 1)]),
    data=st.data(),
)
def test_batches_are_those_of_the_images_in_memory(
    make_paths: Callable[..., list[Path]], counts: list[int], shape: tuple[int, int, int], data: st.DataObject
) -> None:
    resident, streamed = both(make_paths(*counts, shape=shape), shape)
    row = st.integers(0, sum(counts) - 1)
    drawn = data.draw(st.lists(st.lists(row, max_size=9), max_size=7))
    rows = [torch.tensor(some, dtype=torch.int64) for some in drawn]
    assert len(streamed) == len(resident) == sum(counts)
    assert streamed.size_bytes == resident.images.nbytes + resident.labels.nbytes
    found, expected = list(streamed.batches(rows)), list(resident.batches(rows))
    assert len(found) == len(expected) == len(rows)
    for some, mine, theirs in zip(rows, found, expected, strict=True):
        assert torch.equal(theirs[0], resident.images[some])
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def trained(data: ImageTensors | StoredImages, ranks: Ranks = ALONE, stop: int = 4) -> tuple[list[float], list[Tensor]]:
    """Train with a stop after so many epochs; return the losses, and all weights and statistics."""
    network = build_network(NETWORK, 1)
    trainer = Trainer(network, CONFIG, CPU, ranks)
    losses = [result.loss for result in trainer.train_epochs(data, 0, stop)]
    momentum = trainer.momentum()
    again = build_network(NETWORK, 2)
    again.load_state_dict(network.state_dict())
    trainer = Trainer(again, CONFIG, CPU, ranks)
    trainer.load_momentum(momentum)
    losses += [result.loss for result in trainer.train_epochs(data, stop, 4 - stop)]
    return losses, list(again.state_dict().values())


@pytest.mark.parametrize("ranks", [ALONE, Ranks(0, 3), Ranks(2, 3)], ids=str)
def test_training_is_that_of_the_images_in_memory_to_the_bit(
    make_paths: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch, ranks: Ranks
) -> None:
    # Of several processes, what one computes on its parts; tests/coordinator/test_processes.py runs them all.
    monkeypatch.setattr(Ranks, "join", lambda _self, network, _device: network)
    monkeypatch.setattr(Ranks, "sum", lambda _self, values: values)
    resident, streamed = both(make_paths(12, 9, 12))
    losses, state = trained(resident, ranks)
    for stop in (4, 1):
        found, theirs = trained(streamed, ranks, stop)
        assert found == losses
        assert all(torch.equal(one, other) for one, other in zip(theirs, state, strict=True))


@pytest.mark.parametrize("part", [slice(None), slice(0, 3), slice(5, 21), slice(4, 4)])
def test_evaluation_is_that_of_the_images_in_memory(
    make_paths: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch, part: slice
) -> None:
    monkeypatch.setattr("ppfed.training.loop._EVALUATION_BATCH", 5)
    resident, streamed = both(make_paths(12, 9))
    network = build_network(NETWORK, 1)
    found = evaluate(network, streamed, part)
    alone = evaluate(network, ImageTensors(resident.images[part], resident.labels[part]))
    assert found.count == alone.count == len(range(21)[part])
    assert found == evaluate(network, resident, part) == alone or math.isnan(found.loss)


@pytest.mark.parametrize("rows", [[0, 21], [-1], [3, 2**40]])
def test_rows_that_do_not_exist_are_refused(make_paths: Callable[..., list[Path]], rows: list[int]) -> None:
    _, streamed = both(make_paths(12, 9))
    with pytest.raises(IndexError, match="there are 21 images"):
        list(streamed.batches([torch.tensor([20]), torch.tensor(rows)]))


def cut(path: Path) -> None:
    os.truncate(path, locate_pixels(path).start + 10)


def write_in_place(path: Path) -> None:
    modified_ns = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(b"A")
    # Some file systems keep time in steps of milliseconds.
    os.utime(path, ns=(modified_ns, modified_ns + 10**7))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes() + b"A")
    other.replace(path)


@pytest.mark.parametrize("damage", [cut, write_in_place, replace, Path.unlink])
def test_a_shard_that_changes_is_an_error_with_its_name(
    make_paths: Callable[..., list[Path]], damage: Callable[[Path], None]
) -> None:
    paths = make_paths(12, 9)
    _, streamed = both(paths)
    damage(paths[1])
    trainer = Trainer(build_network(NETWORK, 1), CONFIG, CPU)
    with pytest.raises(DataError, match=r"00001\.arrow cannot be read any more") as caught:
        list(trainer.train_epochs(streamed, 0, 1))
    assert "start again" in caught.value.hint
    # The other shard is as it was.
    ((images, _),) = streamed.batches([torch.arange(12)])
    assert torch.equal(images, torch.from_numpy(read_shard(paths[0]).images.pixels.copy()))


def test_a_shard_that_is_cut_while_it_is_read_is_an_error(
    make_paths: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory map would kill this process here."""
    (path,) = make_paths(12)
    _, streamed = both([path])
    before = path.stat()
    cut(path)
    monkeypatch.setattr(store_module.os, "fstat", lambda _descriptor: before)
    with pytest.raises(DataError, match="became shorter"):
        list(streamed.batches([torch.tensor([11])]))


def test_what_is_no_shard_or_has_another_shape_is_refused(make_paths: Callable[..., list[Path]]) -> None:
    paths = make_paths(3)
    with pytest.raises(DataError, match=r"has images of \(8, 8, 3\), not of \(9, 8, 3\)"):
        StoredImages(paths, (9, 8, 3), CPU)
    paths[0].write_bytes(b"no shard")
    with pytest.raises(DataError, match="is not a shard"):
        StoredImages(paths, SHAPE, CPU)
    with pytest.raises(DataError, match="is not a shard"):
        StoredImages([paths[0].with_name("none.arrow")], SHAPE, CPU)


def test_compressed_pixels_cannot_be_read_one_by_one(make_paths: Callable[..., list[Path]]) -> None:
    (path,) = make_paths(12)
    batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
    with pa.OSFile(str(path), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
    assert len(read_shard(path)) == 12
    with pytest.raises(DataError, match="is not a shard"):
        locate_pixels(path)


def test_no_images_make_no_batches() -> None:
    streamed = StoredImages([], SHAPE, CPU)
    assert (len(streamed), streamed.size_bytes) == (0, 0)
    assert list(streamed.batches([])) == []
    assert evaluate(nn.Identity(), streamed).count == 0


class Reads:
    """Notes which batches were read; each holds one image, so that one read is one batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        original = PixelFile.read

        def read(file: PixelFile, rows: np.ndarray, *rest: np.ndarray) -> None:
            original(file, rows, *rest)
            self.rows.extend(rows.tolist())

        monkeypatch.setattr(PixelFile, "read", read)

    def wait_for(self, count: int) -> None:
        limit = time.monotonic() + 20
        while len(self.rows) < count and time.monotonic() < limit:
            time.sleep(0.001)


def test_two_batches_are_read_ahead_and_no_more(
    make_paths: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streamed = both(make_paths(12))
    reads = Reads(monkeypatch)
    with closing(streamed.batches(torch.arange(12).split(1))) as arriving:
        for number in range(12):
            next(arriving)
            # This thread does nothing: others read.
            reads.wait_for(min(number + 3, 12))
            time.sleep(0.01)
            assert sorted(reads.rows) == list(range(min(number + 3, 12)))


def test_a_closed_source_reads_no_more(make_paths: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed = both(make_paths(12))
    reads = Reads(monkeypatch)
    arriving = streamed.batches(torch.arange(12).split(1))
    next(arriving)
    assert threads() != []
    arriving.close()
    assert threads() == []
    assert len(reads.rows) <= 3


def test_no_thread_outlives_a_training_that_ends_early(make_paths: Callable[..., list[Path]]) -> None:
    _, streamed = both(make_paths(12, 9))
    trainer = Trainer(build_network(NETWORK, 1), CONFIG, CPU)
    seen = []

    def stop(_step: int, _steps: int) -> None:
        seen.extend(threads())
        raise InterruptedError

    # Held here, the exception holds the frames of the training.
    with pytest.raises(InterruptedError) as held:
        list(trainer.train_epochs(streamed, 0, 1, stop))
    assert seen != []
    assert threads() == []
    assert held.value is not None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of anonymous memory")
@pytest.mark.parametrize(("placement", "least", "most"), [("streamed", 0, 0.6), ("resident", 0.9, 1.5)])
def test_streamed_images_take_a_fraction_of_their_size_in_memory(
    tmp_path: Path, make_shard: MakeShard, placement: str, least: float, most: float
) -> None:
    """Resident images show that the test can fail; what is kept between steps levels off at some 100 MB."""
    store = ShardStore(tmp_path)
    shape, size_bytes = (64, 64, 3), 256 << 20
    shard = make_shard(size_bytes // 16 // (64 * 64 * 3), shape=shape)
    first = store.write(Split.TRAIN, 0, shard)
    for index in range(1, 16):
        store.path(Split.TRAIN, index).write_bytes(first.read_bytes())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("placed_memory.py")), str(tmp_path), placement],
        # As the coordinator's processes are: between trainings freed memory goes back to the system.
        env=flower_environment(tmp_path, {"OMP_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    grown = json.loads(done.stdout)
    assert grown["images"] == 16 * len(shard)
    assert least * size_bytes <= grown["bytes"] <= most * size_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_images_in_memory(make_paths: Callable[..., list[Path]]) -> None:
    paths, device = make_paths(120, 90, 101), torch.device("cuda")
    resident = ImageTensors.from_shards([read_shard(path) for path in paths], SHAPE, device)
    streamed = StoredImages(paths, SHAPE, device)
    rows = torch.randperm(311).repeat(20).split(100)
    weights = torch.randn(2000, 2000, device=device)
    for mine, theirs in zip(streamed.batches(rows), resident.batches(rows), strict=True):
        # The GPU falls behind: buffers that are used again too early would show.
        for _ in range(20):
            weights = torch.nn.functional.normalize(weights @ weights)
        for one, other in zip(mine, theirs, strict=True):
            assert one.device == other.device
            assert torch.equal(one, other)
