"""Training with torch.compile: the same numbers to rounding, one graph for each size, where nobody else writes."""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ppfed.errors import UsageError
from ppfed.networks.adaptation import features_of
from ppfed.networks.classifier import build_network
from ppfed.networks.config import AdaptationKind, Backbone, InputFeatures, NetworkConfig
from ppfed.networks.state import network_state
from ppfed.training.compilation import compile_network, compiler_cache
from ppfed.training.loop import ImageTensors, Trainer, TrainingConfig, evaluate
from ppfed.training.ranks import Ranks

CPU = torch.device("cpu")
CONFIG = TrainingConfig(epochs=4, batch_size=8, learning_rate=0.01, seed=5)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Kernels that are made into one add up in another order: 1e-7 each in float32, which 20 steps of batch norm and ReLU
amplify. At this rate a training whose weights are changed by a millionth ends as close."""


class Tiny(nn.Module):
    """What the classifiers are made of, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.bn(self.conv(features_of(images, InputFeatures.SORTED_FOLD))))
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


def tiny() -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Tiny().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def images() -> ImageTensors:
    """Thirty-three: batches of 6 and 7."""
    generator = torch.Generator().manual_seed(0)
    return ImageTensors(
        torch.randint(0, 256, (33, 8, 8, 3), dtype=torch.uint8, generator=generator),
        torch.randint(0, 2, (33,), generator=generator),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "compiled"


@pytest.mark.slow
def test_compiled_training_is_eager_training_to_rounding(
    images: ImageTensors, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    eager, network = tiny(), tiny()
    expected = [one.loss for one in Trainer(eager, CONFIG, CPU).train_epochs(images, 0, 4)]
    before = counters["stats"]["unique_graphs"]
    with compiler_cache(cache):
        trainer = Trainer(network, CONFIG, CPU, compiled=True)
        losses = []
        for result in trainer.train_epochs(images, 0, 4):
            losses.append(result.loss)
            # Between epochs the network is measured as it is; that must not be compiled, nor make anything anew.
            evaluate(network, images)
    assert counters["stats"]["unique_graphs"] - before == 2
    # 33 losses of an epoch, each as close as the weights.
    assert losses == pytest.approx(expected, rel=CLOSE["rtol"])
    assert list(network.state_dict()) == list(eager.state_dict())
    torch.testing.assert_close(network.state_dict(), eager.state_dict(), **CLOSE)
    assert trainer.momentum().keys() == dict(eager.named_parameters()).keys()
    assert list(cache.rglob("*.so"))
    assert list(tmp_path.iterdir()) == []


def test_compiled_training_goes_on_where_it_stopped(images: ImageTensors, cache: Path) -> None:
    undisturbed, stopped, again = tiny(), tiny(), tiny()
    list(Trainer(undisturbed, CONFIG, CPU).train_epochs(images, 0, 4))
    with compiler_cache(cache):
        first = Trainer(stopped, CONFIG, CPU, compiled=True)
        list(first.train_epochs(images, 0, 2))
        kept = {name: tensor.contiguous() for name, tensor in first.momentum().items()}
        again.load_state_dict(network_state(stopped), strict=False)
        second = Trainer(again, CONFIG, CPU, compiled=True)
        second.load_momentum(kept)
        list(second.train_epochs(images, 2, 2))
    torch.testing.assert_close(network_state(again), network_state(undisturbed), **CLOSE)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(2, 8, 8, base_maps=4),
        NetworkConfig(2, 8, 8, base_maps=4, adaptation=(), features=InputFeatures.SORTED_FOLD_TWICE),
        NetworkConfig(2, 8, 8, 1, base_maps=4, features=InputFeatures.FOLD, mirrored_views=True),
        NetworkConfig(2, 8, 8, base_maps=4, adaptation_kind=AdaptationKind.BLOCK),
        NetworkConfig(2, 8, 8, base_maps=4, adaptation_kind=AdaptationKind.BLOCK_WISE, backbone=Backbone.CONVMIXER),
        NetworkConfig(2, 96, 96, base_maps=4),
    ],
    ids=lambda config: f"{config.backbone}-{config.adaptation_kind}-{config.features}-{config.height}",
)
def test_every_network_is_one_graph(config: NetworkConfig) -> None:
    """What torch cannot follow would raise here; this traces, and leaves the making of kernels out."""
    torch.compiler.reset()
    network = build_network(config, 0).train()
    images = torch.zeros((2, config.height, config.width, config.channels), dtype=torch.uint8)
    traced = torch.compile(copy.deepcopy(network), backend="eager", fullgraph=True, dynamic=False)
    # The same operations.
    assert torch.equal(traced(images), network(images))


def test_the_cache_is_private_and_leaves_no_trace(tmp_path: Path) -> None:
    before = dict(os.environ), tempfile.tempdir
    with compiler_cache(tmp_path / "of" / "mine"):
        assert tempfile.gettempdir().startswith(str(tmp_path / "of" / "mine"))
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "of" / "mine")
        for folder in (tmp_path / "of" / "mine", Path(tempfile.gettempdir())):
            assert folder.stat().st_mode & 0o777 == 0o700
    assert (dict(os.environ), tempfile.tempdir) == before


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
@pytest.mark.parametrize("which", ["compiled", "compiled/tmp"])
def test_a_folder_that_others_write_to_is_refused(tmp_path: Path, mode: int, which: str) -> None:
    (tmp_path / "compiled/tmp").mkdir(parents=True)
    for part in ("compiled", "compiled/tmp"):
        (tmp_path / part).chmod(mode if part == which else 0o700)
    with pytest.raises(UsageError, match="others on this machine can write"), compiler_cache(tmp_path / "compiled"):
        pass


def test_nothing_is_compiled_where_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with pytest.raises(UsageError, match="could write to the place"):
        compile_network(tiny(), CPU)
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o1777)
    for cache, temporary in ((shared, private), (private, shared)):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        with pytest.raises(UsageError, match=r"could write to .*shared"):
            Trainer(tiny(), CONFIG, CPU, compiled=True)


def test_several_processes_are_refused() -> None:
    with pytest.raises(UsageError, match="several processes"):
        Trainer(tiny(), CONFIG, CPU, Ranks(0, 2), compiled=True)


def test_crops_of_several_sizes_are_refused(cache: Path) -> None:
    with compiler_cache(cache), pytest.raises(UsageError, match="crops that grow cannot train a compiled network"):
        Trainer(tiny(), replace(CONFIG, first_crop=0.5), CPU, compiled=True)
