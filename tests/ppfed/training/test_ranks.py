"""Processes that share a batch compute what one process computes of the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from ppfed.errors import DataError
from ppfed.networks.classifier import build_network
from ppfed.networks.config import NetworkConfig
from ppfed.networks.whole_batch_norm import WholeBatchNorm2d, normalise_whole_batches
from ppfed.training.augment import Augmentation
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig
from ppfed.training.ranks import ALONE, Ranks

from .whole_batch import CPU, SIZE, case, results

# Float64: values of order 100, sums of 210 of them.
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


@given(st.integers(0, 1000), st.integers(1, 9))
def test_parts_are_nearly_equal_and_leave_nothing_out(count: int, size: int) -> None:
    parts = [list(range(count))[Ranks(rank, size).part(count)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of three processes found on its part of the batch."""
    folder = tmp_path_factory.mktemp("ranks")
    script = str(Path(__file__).with_name("whole_batch.py"))
    children = [subprocess.Popen([sys.executable, script, str(folder), str(rank)]) for rank in range(SIZE)]
    assert [child.wait(120) for child in children] == [0] * SIZE
    return [load_file(folder / f"{rank}.safetensors") for rank in range(SIZE)]


def test_batch_norm_is_that_of_the_whole_batch(shared: list[dict[str, Tensor]]) -> None:
    whole = results(*case())
    assert {len(one["out"]) for one in shared} == {2, 3}
    for name in ("out", "maps", "evaluated"):
        torch.testing.assert_close(torch.cat([one[name] for one in shared]), whole[name], **CLOSE)
    for name in ("weight", "bias"):
        torch.testing.assert_close(torch.stack([one[name] for one in shared]).sum(0), whole[name], **CLOSE)
    statistics = [name for name in whole if name.startswith("state.")]
    assert len(statistics) == 5
    for one in shared:
        for name in statistics:
            torch.testing.assert_close(one[name], whole[name], **CLOSE)


def test_sums_are_over_all_processes_and_differences_are_refused(shared: list[dict[str, Tensor]]) -> None:
    assert [one["summed"].tolist() for one in shared] == [[3, 3]] * SIZE
    assert ["refused" in one for one in shared] == [False, True, True]


def test_names_and_parameters_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    names, weight = list(network.state_dict()), network[1][0].weight
    normalise_whole_batches(network, CPU)
    assert isinstance(network[1][0], WholeBatchNorm2d)
    assert network[1][0].weight is weight
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, momentum=None), nn.BatchNorm2d(2, affine=False)])
def test_a_batch_norm_of_another_kind_is_refused(norm: nn.BatchNorm2d) -> None:
    with pytest.raises(ValueError, match="needs parameters"):
        WholeBatchNorm2d(norm)


def test_one_process_needs_nobody() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    assert ALONE.first
    assert ALONE.join(network, CPU) is network
    assert type(network[0]) is nn.BatchNorm2d
    assert ALONE.sum(torch.ones(2)).tolist() == [1, 1]
    ALONE.require_same("rounds", CPU, 3)


def test_a_part_is_augmented_as_it_is_in_the_whole_batch() -> None:
    images = torch.randint(0, 256, (7, 8, 8, 3), dtype=torch.uint8)
    augmentation = Augmentation(vertical_flip=True)
    whole = augmentation(images, torch.Generator().manual_seed(1))
    parts = [Ranks(rank, 3).part(7) for rank in range(3)]
    moved = [augmentation(images[part], torch.Generator().manual_seed(1), 7, part) for part in parts]
    assert torch.equal(torch.cat(moved), whole)
    assert not torch.equal(whole, images)


def test_a_batch_with_fewer_images_than_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "join", lambda _self, network, _device: network)
    network = build_network(NetworkConfig(classes=2, height=8, width=8, base_maps=2), 0)
    trainer = Trainer(network, TrainingConfig(batch_size=3), CPU, Ranks(0, 3))
    images = ImageTensors(torch.zeros(10, 8, 8, 3, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    with pytest.raises(DataError, match="a batch of 2 images cannot be shared by 3 processes"):
        list(trainer.train_epochs(images, 0, 1))
