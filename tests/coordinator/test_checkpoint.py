"""Where training stood: read as it was written, and never half of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator import checkpoint as module
from coordinator.checkpoint import Checkpoint, PassSoFar, load_checkpoint, save_checkpoint
from coordinator.norm_bound import SeenNorms
from coordinator.state import RoundRecord
from ppfed.errors import UsageError


def example(rounds: int, seed: int = 0, momentum: bool = True) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    state = {"stem.weight": torch.randn(2, 3, generator=generator), "stem.bias": torch.randn((), generator=generator)}
    record = RoundRecord(round=rounds, train_loss=0.1 + 0.2, accuracy=1 / 3, seconds=0.5, owners=2)
    average = {name: -tensor for name, tensor in state.items()} if momentum else {}
    norms = SeenNorms(longest={"ada": 0.1 * seed, "bert": 1e-9}, beyond={"ada": seed})
    return Checkpoint(rounds, state, dict(state) if momentum else {}, record, average=average, norms=norms)


def assert_equal(one: Checkpoint | None, other: Checkpoint) -> None:
    assert one is not None
    assert (one.rounds, one.record, one.norms) == (other.rounds, other.record, other.norms)
    pairs = ((one.weights, other.weights), (one.momentum, other.momentum), (one.average, other.average))
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(
    rounds=st.integers(1, 100_000),
    seed=st.integers(0, 99),
    momentum=st.booleans(),
    columns=st.integers(1, 3),
)
def test_a_checkpoint_is_read_as_it_was_written(
    tmp_path: Path, rounds: int, seed: int, momentum: bool, columns: int
) -> None:
    saved = example(rounds, seed, momentum)
    saved.weights["transposed"] = torch.arange(6.0).reshape(-1, columns).t()  # not contiguous
    save_checkpoint(tmp_path, saved)
    assert_equal(load_checkpoint(tmp_path), saved)


def test_a_round_under_way_is_kept_beside_the_finished_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(2))
    under_way = replace(example(2, seed=1), so_far=PassSoFar(steps=7, loss=0.1 + 0.2, images=12, seconds=3.5, owners=2))
    save_checkpoint(tmp_path, under_way)
    kept = load_checkpoint(tmp_path)
    assert_equal(kept, under_way)
    assert kept is not None
    assert kept.so_far == under_way.so_far
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["000002-000000007"]
    save_checkpoint(tmp_path, example(3))
    assert_equal(load_checkpoint(tmp_path), example(3))


def test_there_may_be_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "missing") is None


def test_only_the_last_one_is_kept(tmp_path: Path) -> None:
    for rounds in (1, 2, 3):
        save_checkpoint(tmp_path, example(rounds, seed=rounds))
    assert_equal(load_checkpoint(tmp_path), example(3, seed=3))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["000003"]


@pytest.mark.parametrize("step", ["first file", "second file", "progress"])
def test_the_older_one_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    save_checkpoint(tmp_path, example(1))
    real: dict[str, Callable[..., Any]] = {"save_file": module.save_file, "write_atomic": module.write_atomic}
    calls = []

    def crash_at(name: str, number: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            if calls.count(name) == number:
                raise OSError("no space left on device")
            return real[name](*arguments)

        return call

    name, number = {"first file": ("save_file", 1), "second file": ("save_file", 2), "progress": ("write_atomic", 1)}[
        step
    ]
    with monkeypatch.context() as broken:
        broken.setattr(module, name, crash_at(name, number))
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(tmp_path, example(2, seed=2))
    assert_equal(load_checkpoint(tmp_path), example(1))
    save_checkpoint(tmp_path, example(2, seed=2))
    assert_equal(load_checkpoint(tmp_path), example(2, seed=2))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("progress.json", lambda path: path.write_text("{")),
        ("progress.json", lambda path: path.write_text("[]")),
        ("progress.json", lambda path: path.write_text('{"rounds": null}')),
        ("progress.json", lambda path: path.write_text('{"rounds": 4, "record": null}')),
        ("progress.json", lambda path: path.write_text('{"rounds": 3, "record": {"round": "x"}}')),
        ("progress.json", lambda path: path.write_bytes(b"\xff")),
        ("000003/weights.safetensors", truncate),
        ("000003/weights.safetensors", lambda path: path.unlink()),
        ("000003/weights.safetensors", lambda path: path.write_bytes(b"")),
        ("000003/momentum.safetensors", truncate),
        ("000003/momentum.safetensors", lambda path: path.unlink()),
    ],
)
def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    save_checkpoint(tmp_path, example(3))
    damage(tmp_path / name)
    with pytest.raises(UsageError, match="is damaged") as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in caught.value.hint


def test_a_file_that_is_gone_while_it_is_read_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, example(3))

    def gone(_path: Path) -> None:
        raise RuntimeError("unable to open file")

    monkeypatch.setattr("coordinator.checkpoint.load_file", gone)
    with pytest.raises(UsageError, match="is damaged"):
        load_checkpoint(tmp_path)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(3))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    names = ("average", "momentum", "weights")
    assert files == [*(f"000003/{name}.safetensors" for name in names), "progress.json"]
    assert json.loads((tmp_path / "progress.json").read_text())["rounds"] == 3


def test_weights_are_on_the_disk_before_anything_points_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, example(1))
    steps: list[str] = []

    def fsync(descriptor: int) -> None:
        steps.append(str(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path)))

    def write(path: Path, data: str) -> None:
        assert (tmp_path / "000001").is_dir()
        path.write_text(data)
        steps.append(f"wrote {path.name}")

    def remove(path: Path) -> None:
        steps.append(f"removed {path.name}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(module, "write_atomic", write)
    monkeypatch.setattr(module.shutil, "rmtree", remove)
    save_checkpoint(tmp_path, example(2))
    assert steps == [
        "000002/weights.safetensors",
        "000002/momentum.safetensors",
        "000002/average.safetensors",
        "000002",
        ".",
        "wrote progress.json",
        ".",
        "removed 000001",
    ]
